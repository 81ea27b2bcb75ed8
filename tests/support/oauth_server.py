"""A real OAuth 2.0 server on loopback that is as strict as it may be, and an API that takes its tokens.

It checks redirect addresses and PKCE, gives each code and each refresh token out for one use only (a second use revokes
everything the first one brought), and makes devices wait as RFC 8628 says.
"""

import asyncio
import base64
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

CLIENT_ID = "my-client"
CLIENT_SECRET = "my s/ecret"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
EMAIL = "me@acme.example"


@dataclass
class OAuthServer:
    """What it gave out, and how it behaves."""

    url: str = ""
    expires_in_s: int = 3600
    device_answers: list[str] = field(default_factory=list)
    """Errors of the next device polls; then the login is granted."""
    deny: bool = False
    refreshes_wait: asyncio.Event | None = None
    """Until it is set."""
    refresh_came: asyncio.Event = field(default_factory=asyncio.Event)
    confidential: bool = False
    """Whether the client has a secret."""
    token_requests: list[dict[str, str]] = field(default_factory=list)
    access_tokens: set[str] = field(default_factory=set)
    api_tokens: list[str] = field(default_factory=list)
    """The token of every request to the API, in order."""
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _refresh_tokens: set[str] = field(default_factory=set)
    _used: set[str] = field(default_factory=set)
    _number: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def plugin_config(self) -> dict[str, Any]:
        """The section of the example plugin."""
        config = {
            "enabled": True,
            "provider": "openai-compatible-acme",
            "client_id": CLIENT_ID,
            "authorization_endpoint": f"{self.url}/authorize",
            "device_authorization_endpoint": f"{self.url}/device",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "scopes": ["models"],
        }
        return config | ({"client_secret": CLIENT_SECRET} if self.confidential else {})

    def revoke_access(self) -> None:
        """The API refuses every token given out so far; refresh tokens stay good."""
        self.access_tokens.clear()

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if query["client_id"] != CLIENT_ID or not query["redirect_uri"].startswith("http://127.0.0.1:"):
            return web.json_response({"error": "invalid_request"}, status=400)
        back = {"state": query["state"]}
        if self.deny:
            back["error"] = "access_denied"
        elif query["response_type"] != "code" or query.get("code_challenge_method") != "S256":
            back["error"] = "invalid_request"
        else:
            code = back["code"] = f"code-{next(self._number)}"
            self._codes[code] = {"challenge": query["code_challenge"], "redirect_uri": query["redirect_uri"]}
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(back)}")

    async def device(self, request: web.Request) -> web.StreamResponse:
        if not await self._knows(request):
            return _refused("invalid_client", 401)
        return web.json_response(
            {
                "device_code": "device-1",
                "user_code": "WDJB-MJHT",
                "verification_uri": f"{self.url}/activate",
                "expires_in": 600,
                "interval": 0,
            }
        )

    async def token(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.token_requests.append(form)
        if not await self._knows(request):
            return _refused("invalid_client", 401)
        grant = form.get("grant_type")
        if grant == "authorization_code":
            return self._with_code(form)
        if grant == "refresh_token":
            self.refresh_came.set()
            if self.refreshes_wait is not None:
                await self.refreshes_wait.wait()
            return self._with_refresh_token(form)
        if grant == DEVICE_GRANT and form.get("device_code") == "device-1":
            return _refused(self.device_answers.pop(0)) if self.device_answers else self._granted()
        return _refused("unsupported_grant_type")

    async def userinfo(self, request: web.Request) -> web.StreamResponse:
        if _bearer(request) not in self.access_tokens:
            return web.json_response({}, status=401)
        return web.json_response({"email": EMAIL, "name": "Me"})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """The API that the tokens are for."""
        token = _bearer(request)
        self.api_tokens.append(token)
        if token not in self.access_tokens:
            return web.json_response({"error": {"message": "token expired", "code": "invalid_token"}}, status=401)
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": "c", "object": "chat.completion", "model": "m1", "choices": [choice]})

    async def _knows(self, request: web.Request) -> bool:
        """Whether the client says who it is in the way it was registered."""
        if not self.confidential:
            return (await request.post()).get("client_id") == CLIENT_ID
        expected = base64.b64encode(f"{CLIENT_ID}:my%20s%2Fecret".encode()).decode()
        return request.headers.get("Authorization") == f"Basic {expected}"

    def _with_code(self, form: dict[str, str]) -> web.StreamResponse:
        known = self._codes.pop(form.get("code", ""), None)
        verifier = form.get("code_verifier", "")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        if known is None or known["challenge"] != challenge or known["redirect_uri"] != form.get("redirect_uri"):
            return _refused("invalid_grant")
        return self._granted()

    def _with_refresh_token(self, form: dict[str, str]) -> web.StreamResponse:
        given = form.get("refresh_token", "")
        if given in self._used:
            self.access_tokens.clear()
            self._refresh_tokens.clear()
        if given not in self._refresh_tokens:
            return _refused("invalid_grant")
        self._refresh_tokens.discard(given)
        self._used.add(given)
        return self._granted()

    def _granted(self) -> web.StreamResponse:
        number = next(self._number)
        access, refresh = f"access-{number}", f"refresh-{number}"
        self.access_tokens.add(access)
        self._refresh_tokens.add(refresh)
        answer = {"access_token": access, "refresh_token": refresh, "token_type": "Bearer"}
        return web.json_response(answer | {"expires_in": self.expires_in_s, "scope": "models"})


def _refused(error: str, status: int = 400) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _bearer(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


@asynccontextmanager
async def oauth_server(**behaviour: Any) -> AsyncIterator[OAuthServer]:
    """A server on a free port."""
    server = OAuthServer(**behaviour)
    app = web.Application()
    app.router.add_get("/authorize", server.authorize)
    app.router.add_post("/device", server.device)
    app.router.add_post("/token", server.token)
    app.router.add_get("/userinfo", server.userinfo)
    app.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()
