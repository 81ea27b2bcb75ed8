"""`POST /api-call`: a request of the operator's choice, made by the proxy (spec credentials 8.6, 12.8).

Off unless the configuration says `remote-management.api-call: true`, for whoever has the key reaches with it whatever
this machine reaches. A credential's token goes to the scheme, host and port of its own upstream and nowhere else.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from aiohttp import web

from host.config.model import Config
from host.credentials.attach import is_bound
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.credentials.secret import MASK
from host.management.calls import INVALID, Call, ManagementError, only, reply
from host.management.table import Endpoint
from host.upstream import InvalidRequest, UpstreamClient, UpstreamError, UpstreamRequest, parse_proxy

log = structlog.get_logger("host.management.api_call")

LIMIT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
TOKEN: Final = "$TOKEN$"
_INDEX_NAMES: Final = ("auth_index", "authIndex", "AuthIndex")
_NAMES: Final = frozenset({*_INDEX_NAMES, "method", "url", "header", "data", "proxy_url"})
_SECRET_TEXT: Final = 6
"""Characters from which on a secret is looked for in an answer."""


class ApiCallEndpoints:
    """The row of `/api-call`."""

    def __init__(self, client: UpstreamClient, manager: CredentialManager, config: Callable[[], Config]) -> None:
        self._client: Final = client
        self._manager: Final = manager
        self._config: Final = config

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (Endpoint("POST", "/api-call", self._call),)

    async def _call(self, call: Call) -> web.Response:
        if not self._config().remote_management.api_call:
            raise ManagementError(403, "api_call_disabled", "set `remote-management.api-call: true` on the machine")
        fields = await call.json_object(INVALID)
        headers = _headers_in(fields)
        method, url = _text(fields, "method").upper(), _text(fields, "url")
        if not method:
            raise ManagementError(400, "missing method")
        if not url:
            raise ManagementError(400, "missing url")
        index = next((_text(fields, name) for name in _INDEX_NAMES if fields.get(name)), "")
        record = self._manager.by_index(index) if index else None
        token = self._token(record, url, headers)
        if token:
            headers = [(name, value.replace(TOKEN, token)) for name, value in headers]
        proxy_url = self._proxy(record, _text(fields, "proxy_url"), has_token=bool(token), url=url)
        request = UpstreamRequest(method, url, headers, _text(fields, "data", strip=False).encode(), proxy_url)
        log.info("management.api_call", caller=call.caller, method=method, host=_host(url), auth_index=index)
        return await self._made(request, token)

    def _token(self, record: Credential | None, url: str, headers: Sequence[tuple[str, str]]) -> str:
        """What stands for `$TOKEN$`; nothing when no credential is named or the placeholder is not used."""
        if record is None or not any(TOKEN in value for _, value in headers):
            return ""
        if record.secret is None:
            raise ManagementError(400, "auth token not found")
        if not is_bound(record, url):
            raise ManagementError(403, "host_not_bound", f"the token of {record.label!r} goes to its own upstream only")
        return record.secret.reveal()

    def _proxy(self, record: Credential | None, asked: str, *, has_token: bool, url: str) -> str | None:
        if asked and has_token and not url.lower().startswith("https://"):
            raise ManagementError(403, "host_not_bound", "through a proxy of the caller a token goes with TLS only")
        wanted = asked or (record.proxy_url if record is not None else "") or self._config().proxy_url
        try:
            parse_proxy(wanted or None)
        except InvalidRequest as error:
            raise ManagementError(400, "invalid proxy_url", str(error)) from None
        return wanted or None

    async def _made(self, request: UpstreamRequest, token: str) -> web.Response:
        try:
            async with asyncio.timeout(LIMIT_S), await self._client.send(request) as response:
                body = await response.read(MAX_ANSWER_BYTES)
        except InvalidRequest:
            raise ManagementError(400, "invalid url") from None
        except (UpstreamError, TimeoutError) as error:
            raise ManagementError(502, "request failed", str(error) or "it took too long") from None
        found: dict[str, list[str]] = {}
        for name, value in response.headers:
            found.setdefault(name, []).append(_hidden(value, token))
        answer = {"status_code": response.status, "header": found}
        return reply({**answer, "body": _hidden(body.decode("utf-8", "replace"), token)})


def _hidden(text: str, token: str) -> str:
    """An upstream may say what it was sent: the token does not come back with it."""
    return text.replace(token, MASK) if len(token) >= _SECRET_TEXT else text


def _headers_in(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    headers = fields.get("header") or {}
    only(fields, _NAMES)
    if not isinstance(headers, dict):
        raise ManagementError(400, INVALID)
    found = []
    for name, value in headers.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ManagementError(400, INVALID)
            found.append((name, text))
    return found


def _text(fields: Mapping[str, Any], name: str, *, strip: bool = True) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise ManagementError(400, INVALID)
    return value.strip() if strip else value


def _host(url: str) -> str:
    """Scheme and host for the log; a path or a query may hold a secret."""
    return "/".join(url.split("/")[:3]).rpartition("@")[2]
