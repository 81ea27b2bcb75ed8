"""The management API as one function from request to answer: reach, key, endpoint, audit line, error shape."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import parse_qsl, unquote

import structlog
from aiohttp import web

from host import VERSION
from host.config.model import Config
from host.errors import to_error_body
from host.management.auth import Authenticator, Origin, offered_key
from host.management.calls import Call, ManagementError, reply
from host.management.paths import BASE, RESOURCE_BASE, is_below, landing_path, segments_of
from host.management.table import READING, Handler, Table
from host.observe.logs import REQUEST_ID, mask_query, redact
from host.tasks import TaskGroup
from host.web.clients import TrustedProxies, peer_address
from pluginabi.errors import AbiError
from pluginabi.immutable import Headers, freeze_headers

log = structlog.get_logger("host.management")

_PROTECTION: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "Jackfield",
}


class PluginPages(Protocol):
    """What plugins serve below the two bases."""

    def route(self, method: str, path: str) -> Handler | None:
        """A plugin's management route."""

    def resource(self, path: str) -> Handler | None:
        """A plugin's public page, by its full path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Which build answers, for the headers of every answer."""

    version: str = VERSION
    commit: str = "unknown"
    date: str = "unknown"

    def headers(self) -> dict[str, str]:
        """The headers that say so."""
        return {
            "X-Jackfield-Version": self.version,
            "X-Jackfield-Commit": self.commit,
            "X-Jackfield-Build-Date": self.date,
            "X-Jackfield-Support-Plugin": "1",
        }


class ManagementApp:
    """Serves calls from any listener. Make it inside the event loop."""

    def __init__(
        self,
        table: Table,
        authenticator: Authenticator,
        *,
        config: Callable[[], Config],
        pages: PluginPages,
        tasks: TaskGroup,
        build: Build | None = None,
    ) -> None:
        self._table = table
        self._authenticator = authenticator
        self._config = config
        self._pages = pages
        self._tasks = tasks
        self._headers = {**_PROTECTION, **(build or Build()).headers()}
        self._proxies = TrustedProxies(())
        self._proxies_of: Config | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer; None when there is nothing here, the API being off included: the listener's own 404 is due."""
        path = unquote(request.raw_path.partition("?")[0])
        if is_below(path, RESOURCE_BASE):
            return await self._resource(request, path)
        inside = landing_path(path) if request.method in READING else None
        if inside is None and is_below(path, BASE):
            inside = path.removeprefix(BASE) or "/"
        if inside is None or not self._authenticator.enabled:
            return None
        call = self._call(request, inside)
        answer = await self._answered(self._managed(call))
        for name, value in self._headers.items():
            answer.headers[name] = value
        answer.headers["X-Request-Id"] = call.request_id
        self._audit(call, answer)
        return answer

    async def handle_local(self, request: web.BaseRequest) -> web.StreamResponse:
        """The same endpoints for the control socket: whoever can open it is the user that runs the proxy."""
        call = self._call(request, unquote(request.raw_path.partition("?")[0]), caller="local")
        answer = await self._answered(self._dispatched(call))
        self._audit(call, answer)
        return answer

    async def _managed(self, call: Call) -> web.StreamResponse:
        """Admit the caller, unless the endpoint is public, then serve it."""
        origin = self._origin(call.request, call.headers)
        call.address = origin.address
        if self._table.is_public(call.method, segments_of(call.path)):
            call.caller = "public"
        else:
            call.caller = await self._authenticator.admit(origin, offered_key(call.headers))
        return await self._dispatched(call)

    async def _dispatched(self, call: Call) -> web.StreamResponse:
        found = self._table.find(call.method, segments_of(call.path))
        if found is None:
            page = self._pages.route(call.method, BASE + call.path)
            if page is None:
                raise ManagementError(404, "not_found", f"there is no {call.method} {call.path}")
            return await page(call)
        call.params, call.audited = found.params, found.endpoint.audited
        if not found.endpoint.writes:
            return await found.endpoint.handler(call)
        await call.body()
        # A change that has begun is finished, whether or not somebody still waits for its answer.
        work = self._tasks.start(self._answered(found.endpoint.handler(call)), name=f"{call.method} {call.path}")
        return await asyncio.shield(work)

    async def _resource(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        """A public page. On a machine that does not serve others, no web page of another host may read it."""
        page = self._pages.resource(path) if request.method == "GET" else None
        if page is None:
            return None
        call = self._call(request, path, caller="public")
        origin = self._origin(request, call.headers)
        call.address = origin.address
        if origin.on_this_machine and not (self._authenticator.allows_remote or origin.of_this_machine):
            return reply({"error": "only requests addressed to localhost are served"}, status=403)
        return await self._answered(page(call))

    async def _answered(self, work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """What `work` answers, or what it raises as an answer. Every error leaves here, with its own status."""
        try:
            return await work
        except ManagementError as error:
            answer = reply(error.document, status=error.status)
            for name, value in error.headers.items():
                answer.headers[name] = value
            return answer
        except AbiError as error:
            body = to_error_body(error)
            answer = reply({"error": body.code, "message": redact(body.message)}, status=body.http_status)
            if body.retry_after_ms is not None:
                answer.headers["Retry-After"] = str(-(-body.retry_after_ms // 1000))
            return answer
        except Exception as error:
            log.error("management.failed", exc_info=error)
            return reply({"error": "internal_error"}, status=500)

    def _call(self, request: web.BaseRequest, path: str, *, caller: str = "") -> Call:
        request_id = f"m{secrets.token_hex(12)}"
        REQUEST_ID.set(request_id)
        query = request.raw_path.partition("?")[2]
        return Call(
            method=request.method,
            path=path,
            request=request,
            request_id=request_id,
            caller=caller,
            headers=freeze_headers(request.headers.items()),
            query=freeze_headers(parse_qsl(query, keep_blank_values=True)),
        )

    def _origin(self, request: web.BaseRequest, headers: Headers) -> Origin:
        config = self._config()
        if config is not self._proxies_of:
            self._proxies, self._proxies_of = TrustedProxies(config.trusted_proxies), config
        return Origin.of(peer_address(request), headers, self._proxies)

    def _audit(self, call: Call, answer: web.StreamResponse) -> None:
        """One line for every write that was admitted, and for every caller that was not."""
        if call.method in ("GET", "HEAD") and answer.status not in (401, 403) and not call.audited:
            return
        query = call.request.raw_path.partition("?")[2]
        facts = {
            "method": call.method,
            "path": f"{call.path}?{mask_query(query)}" if query else call.path,
            "status": answer.status,
            "client": call.address,
        }
        if call.caller:
            log.info("management.write", caller=call.caller, **facts)
        else:
            log.warning("management.refused", **facts)
