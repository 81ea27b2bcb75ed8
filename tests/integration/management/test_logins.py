"""Logins through plugins over HTTP."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from host.management.calls import MAX_PUBLIC_BODY_BYTES
from tests.support.management import Managed, managed_proxy

PLUGIN = """
from pluginapi import AuthLoginPollResponse, AuthLoginStartResponse, CredentialRecord, RegisterResponse

class P(Plugin):
    async def plugin_register(self, request, ctx):
        self.count = 0
        return RegisterResponse(auth_provider="acme")

    async def auth_login_start(self, request, ctx):
        self.count += 1
        state = f"state-{self.count}"
        url = f"https://login.example/?state={state}&to={request.callback_url}"
        return AuthLoginStartResponse(url=url, state=state)

    async def auth_login_poll(self, request, ctx):
        if request.error:
            return AuthLoginPollResponse(status="error", message=request.error)
        if not request.code:
            return AuthLoginPollResponse(status="wait")
        record = CredentialRecord(file_name=f"{request.state}.json", storage={"access_token": f"at-{request.code}"})
        return AuthLoginPollResponse(status="success", records=[record])
"""
UNKNOWN = {"status": "error", "error": "unknown or expired state"}


@pytest.fixture
async def managed(directory: Path) -> AsyncIterator[Managed]:
    async with managed_proxy(directory, {"acme": PLUGIN}) as managed:
        yield managed


async def begin(managed: Managed) -> str:
    answer = await managed.api.get("/acme-auth-url")
    assert answer.json["status"] == "ok", answer.json
    assert answer.json["url"].endswith(f"to={managed.api.base}/v0/management/oauth-callback")
    state: str = answer.json["state"]
    return state


async def status(managed: Managed, state: str) -> object:
    return (await managed.api.get(f"/get-auth-status?state={state}")).json


async def test_J22_of_two_logins_one_is_finished_by_the_browser_and_the_other_still_waits(managed: Managed) -> None:
    api = managed.api
    assert (await api.get("/oauth-providers")).json == {"providers": ["acme"]}
    with structlog.testing.capture_logs() as begun_lines:
        first, second = await begin(managed), await begin(managed)
    assert await status(managed, first) == {"status": "wait"}
    browser = {"Accept": "text/html,*/*"}
    with structlog.testing.capture_logs() as logged:
        page = await api.get(f"/oauth-callback?state={first}&code=one-time-code", headers=browser)
    begun = [line for line in begun_lines if line["event"] == "management.write"]
    assert [(line["method"], line["path"]) for line in begun] == [("GET", "/acme-auth-url")] * 2
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    assert b"one-time-code" not in page.body and "one-time-code" not in str(logged)
    assert await status(managed, first) == {"status": "ok", "credentials": [f"{first}.json"]}
    assert json.loads((managed.directory / "auths" / f"{first}.json").read_text())["access_token"] == "at-one-time-code"
    assert await status(managed, second) == {"status": "wait"}
    with structlog.testing.capture_logs() as logged:
        again = await api.call("POST", "/oauth-callback", json={"state": first, "code": "x"}, headers={})
    assert [entry["caller"] for entry in logged if entry["event"] == "management.write"] == ["public"]
    assert (again.status, again.json) == (409, {"status": "error", "error": "oauth flow is not pending"})
    assert (await api.call("DELETE", f"/oauth-session?state={second}")).json == {"status": "ok", "cancelled": True}
    assert (await api.call("DELETE", f"/oauth-session?state={second}")).json == {"status": "ok", "cancelled": False}
    assert await status(managed, second) == UNKNOWN
    assert (await api.get("/get-auth-status")).json == {"status": "ok"}


async def test_M139_J18_J20_J21_what_the_browser_brings_is_checked_in_order(managed: Managed) -> None:
    state = await begin(managed)
    too_large = await managed.api.call("POST", "/oauth-callback", data=b" " * (MAX_PUBLIC_BODY_BYTES + 1), headers={})
    assert too_large.status == 413
    redirect = "http://localhost/cb?state={}&code=c"
    for body, expected in (
        ([], (400, "invalid body")),
        ({"redirect_url": "http://["}, (400, "invalid redirect_url")),
        ({}, (400, "state is required")),
        ({"state": "a/../b", "code": "c"}, (400, "invalid state")),
        ({"state": state}, (400, "code or error is required")),
        ({"redirect_url": redirect.format("unheard-of")}, (404, "unknown or expired state")),
        ({"state": state, "code": "c", "provider": "!"}, (400, "unsupported provider")),
        ({"state": state, "code": "c", "provider": "claude"}, (400, "provider does not match state")),
        ({"redirect_url": redirect.format(state), "provider": "ACME"}, (200, "")),
    ):
        answer = await managed.api.call("POST", "/oauth-callback", json=body, headers={})
        assert (answer.status, answer.json.get("error", "")) == expected, body
    assert await status(managed, state) == {"status": "ok", "credentials": [f"{state}.json"]}
    failing = await begin(managed)
    answer = await managed.api.get(f"/oauth-callback?state={failing}&error_description=denied", headers={})
    assert answer.json == {"status": "ok"}
    assert await status(managed, failing) == {"status": "error", "error": "denied"}
    late = await managed.api.call("POST", "/oauth-callback", json={"state": failing, "code": "c"}, headers={})
    assert (late.status, late.json["error"]) == (409, "denied")


async def test_a_login_needs_the_key_and_a_plugin_for_the_provider(managed: Managed) -> None:
    for path in ("/acme-auth-url", "/get-auth-status?state=x", "/oauth-providers"):
        assert (await managed.api.get(path, headers={})).status == 401
    unknown = await managed.api.get("/nobody-auth-url")
    assert (unknown.status, unknown.json["status"]) == (404, "error")
    malformed = await managed.api.get("/get-auth-status?state=a/../b")
    assert (malformed.status, malformed.json) == (400, {"status": "error", "error": "invalid state"})


async def test_a_browser_may_come_back_to_an_address_of_the_providers_own(managed: Managed) -> None:
    state = await begin(managed)
    browser = {"Accept": "text/html"}
    for path, expected in (
        (f"/other/callback?state={state}&code=c", 400),
        ("/acme/callback?state=unheard-of&code=c", 404),
        (f"/acme/callback/more?state={state}&code=c", 404),
        (f"/ACME/callback?state={state}&code=c&provider=ignored", 200),
    ):
        page = await managed.api.call("GET", path, below="", headers=browser)
        assert page.status == expected, path
    assert page.headers["Content-Type"].startswith("text/html")
    assert (page.headers["Cache-Control"], page.headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert b"the login goes on" in page.body
    assert await status(managed, state) == {"status": "ok", "credentials": [f"{state}.json"]}
    assert (await managed.api.call("POST", f"/acme/callback?state={state}", below="", headers={})).status == 404


async def test_without_a_management_key_no_browser_comes_back_to_anything(directory: Path) -> None:
    async with managed_proxy(directory, {"acme": PLUGIN}, remote={"secret-key": ""}) as managed:
        state = (await managed.running.proxy.credential_parts.logins.start("acme", "http://127.0.0.1:1/x")).state
        assert (
            await managed.api.call("GET", f"/acme/callback?state={state}&code=c", below="", headers={})
        ).status == 404


async def test_a_browser_that_brings_a_refusal_is_not_told_that_all_is_well(managed: Managed) -> None:
    state = await begin(managed)
    page = await managed.api.get(f"/oauth-callback?state={state}&error=access_denied", headers={"Accept": "text/html"})
    assert (page.status, b"The login was refused" in page.body, b"access_denied" in page.body) == (200, True, False)
    assert await status(managed, state) == {"status": "error", "error": "access_denied"}
