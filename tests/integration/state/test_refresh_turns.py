"""Several processes with the same credential files: a refresh token is used once, by whoever has the turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from host.credentials import refresh_turns
from host.credentials.refresh import Refresher
from host.credentials.refresh_turns import SharedTurns
from host.credentials.renew import Renewer
from host.credentials.secret import Secret
from host.state import redis as shared
from host.state.redis import RedisState
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.credentials import AuthRefreshRequest, AuthRefreshResponse
from tests.support.auth_plugins import ScriptedAuth, record
from tests.support.auth_site import Site
from tests.support.redis_server import RedisServer, redis_server


class Provider:
    """Hands out a new refresh token each time, and takes the old one back."""

    def __init__(self) -> None:
        self.valid = 1
        self.refused: PluginError | None = None
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.calls = 0

    async def refresh(self, request: AuthRefreshRequest) -> Any:
        self.calls += 1
        self.asked.set()
        await self.go_on.wait()
        if self.refused is not None:
            return self.refused
        if f'"r{self.valid}"'.encode() not in bytes(request.credential.storage).replace(b" ", b""):
            return PluginError(ErrorBody(message="this token was used before", code="invalid_grant"))
        self.valid += 1
        storage = {"access_token": f"new{self.valid}", "refresh_token": f"r{self.valid}", "expires_at": 90_000}
        return AuthRefreshResponse(record=record(storage))


class Node:
    """One process with the files."""

    def __init__(self, directory: Path, provider: Provider, state: RedisState, tasks: TaskGroup) -> None:
        self.store = state.store
        self.plugins = ScriptedAuth(refreshed={"acme": provider.refresh})
        self.site = Site(directory, self.plugins)
        turns = SharedTurns(self.site.manager, self.site.directory, state)
        renewer = Renewer(self.site.manager, self.site.directory, self.plugins)
        self.refresher = Refresher(self.site.manager, renewer, tasks)
        self.refresher.turns = turns
        self.site.manager.refresher = self.refresher

    @property
    def secret(self) -> Secret | None:
        return self.site.manager.by_id["a.json"].secret


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PROBE_INTERVAL_S", 0.05)
    monkeypatch.setattr(refresh_turns, "POLL_S", 0.01)


@pytest.fixture
async def server(tmp_path: Path, quick: None) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as running:
        yield running


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def nodes(tmp_path: Path, server: RedisServer, provider: Provider) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            state = server.state()
            await state.start()
            stack.push_async_callback(state.stop)
            tasks = TaskGroup("test")
            stack.push_async_callback(tasks.stop)
            node = Node(tmp_path, provider, state, tasks)
            node.site.put("a.json", type="acme", access_token="old", refresh_token="r1", expires_at=1500)
            await node.site.opened()
            found.append(node)
        yield found


async def both_refresh(nodes: list[Node], provider: Provider, *, once: asyncio.Event | None = None) -> list[bool]:
    """The provider answers once it was asked, and `once` has happened."""
    async with asyncio.timeout(30):
        asking = [asyncio.create_task(node.refresher.refresh_now("a.json")) for node in nodes]
        await provider.asked.wait()
        if once is not None:
            await once.wait()
        provider.go_on.set()
        return await asyncio.gather(*asking)


@pytest.mark.parametrize("server_is_away", [False, True], ids=["with the server", "without it"])
async def test_of_two_processes_one_refreshes_and_the_other_takes_the_new_token_over(
    nodes: list[Node], provider: Provider, server: RedisServer, server_is_away: bool
):
    if server_is_away:
        await server.stop()
    assert await both_refresh(nodes, provider) == [True, True]
    assert provider.calls == 1
    assert [node.secret for node in nodes] == [Secret("new2"), Secret("new2")]
    # Whoever is next goes on with the token that another process got.
    for node in (nodes[1], nodes[0], nodes[0]):
        assert await node.refresher.refresh_now("a.json")
    assert provider.calls == 3
    assert nodes[0].secret == Secret("new4")


async def test_the_key_alone_keeps_nodes_apart_whose_lock_files_do_not_see_each_other(
    nodes: list[Node], provider: Provider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(refresh_turns, "_lock", lambda handle: True)
    assert await both_refresh(nodes, provider) == [True, True]
    assert provider.calls == 1


async def test_who_waited_for_an_attempt_that_failed_does_not_try_again_at_once(
    nodes: list[Node], provider: Provider, monkeypatch: pytest.MonkeyPatch
):
    somebody_waits, lock = asyncio.Event(), refresh_turns._lock

    def noted(handle: int) -> bool:
        is_mine = lock(handle)
        if not is_mine:
            somebody_waits.set()
        return is_mine

    monkeypatch.setattr(refresh_turns, "_lock", noted)
    provider.refused = PluginError(ErrorBody(message="revoked", code="invalid_grant", http_status=400))
    assert await both_refresh(nodes, provider, once=somebody_waits) == [False, False]
    assert provider.calls == 1
    errors = [node.site.manager.by_id["a.json"].refresh_error for node in nodes]
    assert [error.http_status for error in errors if error is not None] == [401, 401]


async def test_a_process_that_died_with_the_turn_is_not_waited_for_longer_than_its_lock(
    nodes: list[Node], provider: Provider
):
    assert await nodes[0].store.set(refresh_turns.NAMESPACE, "a.json", b"gone", ttl_s=0.2)
    provider.go_on.set()
    async with asyncio.timeout(30):
        assert await nodes[0].refresher.refresh_now("a.json")


async def test_a_note_that_was_written_while_a_process_waited_for_its_turn_is_no_new_token(
    nodes: list[Node], provider: Provider
):
    provider.go_on.set()
    path = nodes[0].site.put(
        "a.json", type="acme", access_token="old", refresh_token="r1", expires_at=1500, note="new", priority=3
    )
    assert await nodes[0].refresher.refresh_now("a.json") is True
    assert (provider.calls, nodes[0].secret) == (1, Secret("new2"))
    assert nodes[0].site.manager.by_id["a.json"].note == "new"
    assert Path(path).read_text().count("r2") == 1
