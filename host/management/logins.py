"""Endpoints for logins through plugins: begin one, ask how it stands, bring what the browser brought, give it up.

Spec credentials 8.5 and 12.8.
"""

import asyncio
import html
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web

from host.credentials.editor import CredentialError
from host.credentials.login import UNKNOWN_TEXT, LoginSessions, Redirect, redirect_of
from host.management.calls import Call, ManagementError, reply
from host.management.paths import BASE
from host.management.peers import Peers
from host.management.table import Endpoint
from host.worker import ASKED_BY_A_WORKER

CALLBACK_PATH: Final = "/oauth-callback"
ASKED_AT_ONCE: Final = 4
"""How often the other workers are asked about a state at the same time: anybody may make states up."""
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Jackfield</title></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""
_PAGE_HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
_FIELDS: Final = ("provider", "redirect_url", "code", "state", "error")


class LoginEndpoints:
    """The rows of logins. One worker of several knows a login: whoever is asked asks the others."""

    def __init__(self, logins: LoginSessions, peers: Peers | None, *, url: Callable[[], str]) -> None:
        self._logins: Final = logins
        self._peers: Final = peers
        self._url: Final = url
        self._asking: Final = asyncio.Semaphore(ASKED_AT_ONCE)

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table. The browser comes back without a key: the state of the login is what admits it."""
        return (
            Endpoint("GET", "/oauth-providers", self._providers),
            Endpoint("GET", "/{provider}-auth-url", self._start, audited=True),
            Endpoint("GET", "/get-auth-status", self._status),
            Endpoint("DELETE", "/oauth-session", self._cancel),
            Endpoint("GET", CALLBACK_PATH, self._landing, public=True),
            Endpoint("POST", CALLBACK_PATH, self._callback, public=True),
            Endpoint("GET", f"{CALLBACK_PATH}/{{provider}}", self._landing, public=True),
        )

    async def _providers(self, call: Call) -> web.Response:
        return reply({"providers": list(self._logins.providers())})

    async def _start(self, call: Call) -> web.Response:
        try:
            started = await self._logins.start(call.params["provider"], f"{self._url()}{BASE}{CALLBACK_PATH}")
        except CredentialError as error:
            return _failed(error.http_status, str(error))
        answer: dict[str, Any] = {"status": "ok", "url": started.url, "state": started.state}
        return reply({**answer, "user_code": started.user_code} if started.user_code else answer)

    async def _status(self, call: Call) -> web.Response:
        state = call.argument("state").strip()
        if not state:
            return reply({"status": "ok"})
        try:
            found = await self._logins.poll(state)
        except CredentialError as error:
            return _failed(error.http_status, str(error))
        if found.error == UNKNOWN_TEXT and (other := await self._elsewhere(call)) is not None:
            return other
        answer: dict[str, Any] = {"status": found.status}
        if found.error:
            answer["error"] = found.error
        return reply({**answer, "credentials": list(found.ids)} if found.ids else answer)

    async def _cancel(self, call: Call) -> web.Response:
        state = call.argument("state").strip()
        if not state:
            return _failed(400, "state is required")
        cancelled = self._logins.cancel(state)
        if not cancelled and (other := await self._elsewhere(call)) is not None:
            return other
        return reply({"status": "ok", "cancelled": cancelled})

    async def _callback(self, call: Call) -> web.Response:
        """From a page or a tool, as JSON; what is missing is looked for in `redirect_url`."""
        try:
            fields = await call.json_object()
        except ManagementError:
            return _failed(400, "invalid body")
        if any(not isinstance(fields.get(name) or "", str) for name in _FIELDS):
            return _failed(400, "invalid body")
        given = {name: str(fields.get(name) or "").strip() for name in _FIELDS}
        try:
            found = redirect_of(given["redirect_url"]) if given["redirect_url"] else Redirect()
        except CredentialError as error:
            return _failed(error.http_status, str(error))
        redirect = Redirect(
            state=given["state"] or found.state,
            code=given["code"] or found.code,
            error=given["error"] or found.error,
            provider=given["provider"] or found.provider,
        )
        return await self._brought(call, redirect)

    async def _landing(self, call: Call) -> web.Response:
        """From the browser itself, which gets a page. An address of the provider's own admits only its logins: who
        answers cannot be mistaken for another (RFC 9700 section 4.4)."""
        redirect = Redirect(
            state=call.argument("state"),
            code=call.argument("code"),
            error=call.argument("error") or call.argument("error_description"),
            provider=call.params.get("provider") or call.argument("provider"),
        )
        answer = await self._brought(call, redirect)
        if "text/html" not in ",".join(call.headers.get("accept", ())):
            return answer
        return _page(answer.status, refused=bool(redirect.error))

    async def _brought(self, call: Call, redirect: Redirect) -> web.Response:
        try:
            self._logins.callback(redirect.state, code=redirect.code, error=redirect.error, provider=redirect.provider)
        except CredentialError as error:
            if error.http_status == 404 and (other := await self._elsewhere(call)) is not None:
                return other
            return _failed(error.http_status, str(error))
        return reply({"status": "ok"})

    async def _elsewhere(self, call: Call) -> web.Response | None:
        """What the worker that knows the login answers; None when none does."""
        if self._peers is None or (call.local and call.headers.get(ASKED_BY_A_WORKER)):
            return None
        query = call.request.raw_path.partition("?")[2]
        target = f"{call.path}?{query}" if query else call.path
        body = await call.json_value() if await call.body() else None
        async with self._asking:
            answers = await self._peers.ask(call.method, target, body)
        for answer in sorted(answers, key=lambda it: it.status >= 500):
            # One that did not answer in time may be another than the one that knows it.
            knows = answer.document.get("error") != UNKNOWN_TEXT and answer.document.get("cancelled") is not False
            if knows and answer.status != 404:
                return reply(answer.document, status=answer.status)
        return None


def _failed(status: int, error: str) -> web.Response:
    return reply({"status": "error", "error": error}, status=status)


def _page(status: int, *, refused: bool) -> web.Response:
    """What the browser shows; nothing of what it brought is in it."""
    if status != 200:
        title, text = "The login cannot go on", "Begin it anew, please."
    elif refused:
        title, text = "The login was refused", "The provider said no. This window can be closed."
    else:
        title, text = "Back from the provider", "This window can be closed; the login goes on by itself."
    page = _PAGE.format(title=html.escape(title), text=html.escape(text))
    return web.Response(text=page, status=status, content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS)
