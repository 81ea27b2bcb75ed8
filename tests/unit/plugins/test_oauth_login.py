"""The example plugin for OAuth logins when the provider is away, slow, or not quite what the RFCs say."""

import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.callbacks import HttpResponse
from pluginabi.payloads.credentials import AuthLoginPollRequest, AuthLoginStartRequest, AuthRefreshRequest
from pluginapi import CredentialRecord
from pluginapi.testing import FakeHost, PluginHarness

FILE = Path(__file__).parents[3] / "examples/oauth-login/oauth_login.py"
DEVICE = {"device_code": "d", "user_code": "U", "verification_uri": "https://acme/activate", "expires_in": "900"}
CONFIG = {
    "provider": "acme",
    "client_id": "me",
    "token_endpoint": "https://acme/token",
    "authorization_endpoint": "https://acme/authorize",
    "device_authorization_endpoint": "https://acme/device",
}
AWAY = PluginError(ErrorBody(message="no route", code="upstream_unreachable", http_status=502, origin="host"))
TOKENS = {"access_token": "a", "refresh_token": "r", "expires_in": "3600"}


def answer(document: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, body=Body.from_bytes(json.dumps(document).encode()))


@asynccontextmanager
async def plugin(host: FakeHost, **config: str) -> AsyncIterator[PluginHarness]:
    spec = importlib.util.spec_from_file_location("oauth_login_example", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Login(module.OAuthLogin):  # type: ignore[name-defined, misc]
        id, version = "oauth-login", "1"

    async with PluginHarness(Login, host=host, config={**CONFIG, **config}, permissions=("http",)) as harness:
        yield harness


async def poll(harness: PluginHarness, started: Any, **more: Any) -> Any:
    request = AuthLoginPollRequest(provider="acme", state=started.state, metadata=started.metadata, **more)
    return await harness.call("auth.login.poll", request)


@pytest.mark.parametrize("trouble", [AWAY, answer("<html>", 503), answer({"error": "slow"}, 429)])
async def test_a_device_login_outlives_a_provider_that_is_away_and_asks_it_less_often(trouble: Any) -> None:
    host = FakeHost()
    host.on("host.http.do", answer(DEVICE), trouble, trouble, answer(TOKENS))
    async with plugin(host, flow="device") as harness:
        started = await harness.call("auth.login.start", AuthLoginStartRequest(provider="acme"))
        assert started.poll_after_ms == 5000
        waits_ms = []
        for _ in range(2):
            found = await poll(harness, started)
            assert found.status not in ("error", "success")
            waits_ms.append(found.poll_after_ms)
            started = type(started)(state=started.state, url="", metadata=found.metadata)
        assert waits_ms == [10_000, 20_000]
        assert (await poll(harness, started)).status == "success"


async def test_a_code_is_exchanged_again_when_the_provider_was_away() -> None:
    host = FakeHost()
    host.on("host.http.do", AWAY, answer(TOKENS))
    async with plugin(host) as harness:
        started = await harness.call(
            "auth.login.start", AuthLoginStartRequest(provider="acme", callback_url="http://127.0.0.1:1/x")
        )
        assert (await poll(harness, started, code="c")).status not in ("error", "success")
        assert (await poll(harness, started, code="c")).status == "success"
        sent = [it.body.to_bytes() for it in host.asked("host.http.do")]
        assert sent[0] == sent[1]


@pytest.mark.parametrize("about", [AWAY, answer("not an object"), HttpResponse(status=200, body=Body.from_bytes(b"{"))])
async def test_tokens_are_not_lost_for_a_name_that_nobody_tells(about: Any) -> None:
    host = FakeHost()
    host.on("host.http.do", answer(TOKENS), about)
    async with plugin(host, userinfo_endpoint="https://acme/me") as harness:
        started = await harness.call(
            "auth.login.start", AuthLoginStartRequest(provider="acme", callback_url="http://127.0.0.1:1/x")
        )
        found = await poll(harness, started, code="c")
        assert found.status == "success"
        stored = found.records[0].metadata
        assert stored["access_token"] == "a" and stored["expires_at"]


async def test_only_a_refused_grant_ends_the_refreshes_of_a_credential() -> None:
    host = FakeHost()
    request = AuthRefreshRequest(credential=CredentialRecord(provider="acme", metadata={"refresh_token": "r"}))
    host.on(
        "host.http.do",
        answer({"error": "invalid_client"}, 401),
        answer("unauthorized", 401),
        answer({"error": "invalid_grant"}, 400),
    )
    async with plugin(host) as harness:
        statuses = []
        for _ in range(3):
            with pytest.raises(PluginError) as refused:
                await harness.call("auth.refresh", request)
            statuses.append(refused.value.body.http_status)
        assert statuses == [400, 502, 401]


async def test_a_device_answer_without_what_is_needed_is_named() -> None:
    host = FakeHost()
    host.on("host.http.do", answer({"device_code": "d", "interval": None}))
    async with plugin(host, flow="device") as harness:
        with pytest.raises(PluginError, match="gave no user_code, verification_uri"):
            await harness.call("auth.login.start", AuthLoginStartRequest(provider="acme"))
