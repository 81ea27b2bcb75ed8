"""A login, its tokens and their refresh, against a real OAuth server: the example plugin inside a real proxy."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from host.credentials.login import LoginSessions, LoginStatus, redirect_of
from host.credentials.manager import CredentialManager
from host.credentials.records import CredentialChange
from host.tasks import TaskGroup
from tests.integration.credentials.conftest import ask, proxy_of
from tests.support.oauth_server import CLIENT_ID, EMAIL, oauth_server

CALLBACK = "http://127.0.0.1:1/callback"
PROVIDER = "openai-compatible-acme"
NAME = f"{PROVIDER}-{EMAIL}.json"


async def browse(client: aiohttp.ClientSession, url: str) -> str:
    """Where the provider sends the browser back to."""
    async with client.get(url, allow_redirects=False) as response:
        assert response.status == 302, await response.text()
        return response.headers["Location"]


def event_of(manager: CredentialManager, wanted: Callable[[CredentialChange], bool]) -> asyncio.Event:
    """Set by the first change that is wanted."""
    event, tell = asyncio.Event(), manager.on_change

    def listen(change: CredentialChange) -> None:
        assert tell is not None
        tell(change)
        if wanted(change):
            event.set()

    manager.on_change = listen
    return event


async def log_in(running: Any, client: aiohttp.ClientSession) -> LoginStatus:
    logins = running.proxy.credential_parts.logins
    started = await logins.start(PROVIDER, CALLBACK)
    back = redirect_of(await browse(client, started.url))
    logins.callback(back.state, code=back.code, error=back.error)
    async with asyncio.timeout(60):
        return await logins.poll(started.state)


@pytest.mark.parametrize("confidential", [False, True], ids=["public client", "client with a secret"])
async def test_an_authorization_code_with_pkce_becomes_a_credential_that_serves_requests(
    tmp_path: Path, client: aiohttp.ClientSession, confidential: bool
) -> None:
    runtime = "inprocess" if confidential else "process"
    async with (
        oauth_server(confidential=confidential) as server,
        proxy_of(tmp_path, server, runtime=runtime) as running,
    ):
        assert (await ask(client, running.url))[0] == 400
        assert await log_in(running, client) == LoginStatus("ok", ids=(NAME,))
        stored = json.loads((tmp_path / "auths" / NAME).read_text())
        assert (stored["type"], stored["email"], stored["access_token"]) == (PROVIDER, EMAIL, "access-2")
        assert (tmp_path / "auths" / NAME).stat().st_mode & 0o777 == 0o600
        status, answer = await ask(client, running.url)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello")
        assert server.api_tokens == ["access-2"]
        assert ("client_id" in server.token_requests[0]) is not confidential


async def test_a_code_that_was_stolen_or_a_login_that_was_denied_brings_nothing(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    async with oauth_server() as server, proxy_of(tmp_path, server) as running:
        logins = running.proxy.credential_parts.logins
        first, second = [await logins.start(PROVIDER, CALLBACK) for _ in range(2)]
        stolen = redirect_of(await browse(client, first.url)).code
        logins.callback(second.state, code=stolen)
        assert await logins.poll(second.state) == LoginStatus("error", "invalid_grant")
        server.deny = True
        assert (await log_in(running, client)).error == "access_denied"
        assert not list((tmp_path / "auths").iterdir())


async def test_the_device_flow_waits_slows_down_and_ends_with_a_credential(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    waiting = ["authorization_pending", "slow_down"]
    async with oauth_server(device_answers=waiting) as server, proxy_of(tmp_path, server, flow="device") as running:
        logins = running.proxy.credential_parts.logins
        now_s = 0.0
        logins = LoginSessions(
            running.proxy.credential_parts.plugins,
            running.proxy.credential_parts.editor,
            TaskGroup("test"),
            clock=lambda: now_s,
        )
        started = await logins.start(PROVIDER, CALLBACK)
        assert (started.user_code, started.url) == ("WDJB-MJHT", f"{server.url}/activate")
        assert 590 < started.lifetime_s <= 600
        assert [(await logins.poll(started.state)).status for _ in range(3)] == ["wait"] * 3
        assert len(server.token_requests) == 2  # the third came within the five seconds it was told to wait
        now_s = 5.0
        assert (await logins.poll(started.state)).status == "ok"
        assert (await ask(client, running.url))[0] == 200
        server.device_answers = ["expired_token"]
        again = await logins.start(PROVIDER, CALLBACK)
        assert await logins.poll(again.state) == LoginStatus("error", "expired_token")


async def test_tokens_are_refreshed_in_time_with_rotating_refresh_tokens_and_a_new_login_repairs_a_revoked_one(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    async with oauth_server(expires_in_s=1) as server, proxy_of(tmp_path, server) as running:
        parts = running.proxy.credential_parts
        refreshed = event_of(parts.manager, lambda change: NAME in change.refreshed)
        await log_in(running, client)
        async with asyncio.timeout(60):
            await refreshed.wait()
        assert server.token_requests[-1] == {
            "grant_type": "refresh_token",
            "refresh_token": "refresh-2",
            "client_id": CLIENT_ID,
        }
        stored = json.loads((tmp_path / "auths" / NAME).read_text())
        assert (stored["access_token"], stored["refresh_token"], stored["email"]) == ("access-3", "refresh-3", EMAIL)
        assert (await ask(client, running.url))[0] == 200
        assert server.api_tokens == ["access-3"]

        server._refresh_tokens.clear()
        assert await parts.manager.refresh_now(NAME) is False
        assert parts.manager.by_id[NAME].refresh_error.http_status == 401
        await log_in(running, client)
        assert parts.manager.by_id[NAME].refresh_error is None
        assert (await ask(client, running.url))[0] == 200


async def test_requests_whose_token_the_upstream_refuses_share_one_refresh_and_are_repeated(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    async with oauth_server() as server, proxy_of(tmp_path, server) as running:
        await log_in(running, client)
        server.revoke_access()
        answers = await asyncio.gather(*(ask(client, running.url) for _ in range(4)))
        assert [status for status, _ in answers] == [200] * 4
        assert (server.api_tokens[0], server.api_tokens.count("access-3")) == ("access-2", 4)
        assert [form["grant_type"] for form in server.token_requests] == ["authorization_code", "refresh_token"]


async def test_a_token_that_is_given_out_while_the_proxy_stops_is_kept(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    async with oauth_server() as server, asyncio.timeout(60):
        async with proxy_of(tmp_path, server) as running:
            await log_in(running, client)
            refresher = running.proxy.credential_parts.refresher
            server.refreshes_wait = asyncio.Event()
            refresh = asyncio.create_task(refresher.refresh_now(NAME))
            await server.refresh_came.wait()
            finish = refresher.finish

            async def answered() -> None:
                assert server.refreshes_wait is not None
                server.refreshes_wait.set()
                await finish()

            refresher.finish = answered
        assert await refresh
        assert json.loads((tmp_path / "auths" / NAME).read_text())["refresh_token"] == "refresh-3"


async def test_a_registration_that_is_not_complete_is_named_when_the_plugin_starts(tmp_path: Path) -> None:
    async with oauth_server() as server, proxy_of(tmp_path, server, client_id="", token_endpoint="") as running:
        (status,) = [row for row in running.proxy.registry.statuses() if row.id == "oauth-login"]
        assert "set client_id, token_endpoint" in status.reason
