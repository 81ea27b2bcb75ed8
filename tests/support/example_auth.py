"""Scripts of the examples that deal with credentials."""

import html
import json
from typing import Any

from msgspec import UNSET, Raw

from pluginapi import (
    AuthGetResponse,
    AuthListResponse,
    AuthLoginPollRequest,
    AuthRefreshRequest,
    AuthSaveFileResponse,
    Body,
    CredentialRecord,
    HttpRequest,
    HttpResponse,
    ManagementHandleRequest,
    PluginError,
)
from pluginapi.testing import FakeHost
from tests.support.example_steps import Error, Script, Step

OAUTH_CONFIG = {
    "provider": "openai-compatible-acme",
    "client_id": "c",
    "authorization_endpoint": "https://login.acme.example/authorize",
    "token_endpoint": "https://login.acme.example/token",
}
GRANTED = {"access_token": "a2", "refresh_token": "r2", "token_type": "Bearer", "ignored": 1}


def token_endpoint() -> FakeHost:
    """A host whose upstream grants the code `good` and the refresh token `r1`, and nothing else."""

    def answer(request: HttpRequest) -> HttpResponse:
        assert (request.method, request.url) == ("POST", OAUTH_CONFIG["token_endpoint"])
        form = request.body.to_bytes().decode()
        granted = form in (
            "grant_type=authorization_code&code=good&redirect_uri=http%3A%2F%2Fcb&code_verifier=v&client_id=c",
            "grant_type=refresh_token&refresh_token=r1&client_id=c",
        )
        document = GRANTED if granted else {"error": "invalid_grant", "error_description": "no such grant"}
        return HttpResponse(status=200 if granted else 400, body=Body.from_value(document))

    host = FakeHost()
    host.on("host.http.do", answer)
    return host


def poll(**fields: str) -> AuthLoginPollRequest:
    metadata = {"verifier": "v", "redirect_uri": "http://cb"}
    return AuthLoginPollRequest(provider="openai-compatible-acme", state="s", metadata=metadata, **fields)


def refresh(token: str) -> AuthRefreshRequest:
    return AuthRefreshRequest(credential=CredentialRecord(storage=Raw(b'{"refresh_token":"%s"}' % token.encode())))


STORED = {"access_token": "a2", "refresh_token": "r2", "token_type": "Bearer"}
REFUSED = Error({"message": "no such grant", "code": "invalid_grant", "http_status": 401})

OAUTH_LOGIN = Script(
    "oauth-login",
    config=OAUTH_CONFIG,
    permissions=("http",),
    host=token_endpoint,
    steps=[
        Step("auth.login.poll", poll(), {}),
        Step(
            "auth.login.poll",
            poll(code="good"),
            {"status": "success", "records": [{"provider": "openai-compatible-acme", "metadata": STORED}]},
        ),
        Step("auth.login.poll", poll(code="stolen"), REFUSED),
        Step("auth.login.poll", poll(error="access_denied"), {"status": "error", "message": "access_denied"}),
        Step("auth.refresh", refresh("r1"), {"record": {"metadata": STORED}}),
        Step("auth.refresh", refresh("old"), REFUSED),
    ],
)

FILES: list[dict[str, str]] = [{"name": "<b>.json", "auth_index": "1f"}]
STATUS_PAGE = "/v0/resource/plugins/auth-files-page/status"
KEYED = "/v0/management/host-auth-files"


def auth_host() -> FakeHost:
    host = FakeHost()
    host.on("host.auth.list", AuthListResponse(files=FILES))
    host.on("host.auth.get_runtime", PluginError("auth not found for auth_index x", http_status=404))
    host.on("host.auth.get", AuthGetResponse(name="a.json", path="/auths/a.json", file=Raw(b'{"type":"acme"}')))
    host.on("host.auth.save", AuthSaveFileResponse(name="a.json", path="/auths/a.json"))
    return host


def visit(path: str, method: str = "GET", body: str = "", **query: str) -> ManagementHandleRequest:
    return ManagementHandleRequest(
        method=method,
        path=path,
        query={name: (value,) for name, value in query.items()},
        body=Body(text=body) if body else UNSET,
    )


def page(op: str, text: str, status: int = 200) -> dict[str, Any]:
    document = f"<!doctype html><title>Host auth files</title><h1>{op}</h1><pre>{html.escape(text)}</pre>"
    shown: dict[str, Any] = {"headers": {"content-type": ["text/html; charset=utf-8"]}, "body": document}
    return shown if status == 200 else {"status": status, **shown}


HANDLE = "management.handle"
SAVED = {"name": "a.json", "path": "/auths/a.json"}

AUTH_FILES_PAGE = Script(
    "auth-files-page",
    permissions=("auth.read", "auth.write"),
    host=auth_host,
    steps=[
        Step(HANDLE, visit(STATUS_PAGE), page("list", json.dumps({"files": FILES}, indent=2))),
        Step(
            HANDLE,
            visit(STATUS_PAGE, op="runtime", auth_index="x"),
            page("runtime", "auth not found for auth_index x"),
        ),
        Step(HANDLE, visit(STATUS_PAGE, op="runtime"), page("runtime", "auth_index is missing")),
        Step(
            HANDLE,
            visit(STATUS_PAGE, op="save", name="a.json", json="{}"),
            page("save", f"this needs the management key: {KEYED}", 403),
        ),
        Step(HANDLE, visit(KEYED, op="save"), page("save", "saving is a POST", 405)),
        Step(
            HANDLE,
            visit(KEYED, op="get", auth_index="1f"),
            page("get", json.dumps({**SAVED, "json": {"type": "acme"}}, indent=2)),
        ),
        Step(
            HANDLE,
            visit(KEYED, "POST", '{"op": "save", "name": "a.json", "json": {"type": "acme"}}'),
            page("save", json.dumps(SAVED, indent=2)),
        ),
        Step(HANDLE, visit(KEYED, op="drop"), page("drop", "there is no operation 'drop': list, get, runtime, save")),
        Step(HANDLE, visit(KEYED, "POST", "[1]"), page("error", "the body is no JSON object", 400)),
    ],
)

CREDENTIALS = [OAUTH_LOGIN, AUTH_FILES_PAGE]
