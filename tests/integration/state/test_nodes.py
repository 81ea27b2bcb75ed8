"""Two proxies and one Redis: what one learns about credentials the other respects, and a server that goes away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest

from host.credentials.cooldown import CooldownBook
from host.management.shared_failures import SharedFailures
from host.tasks import TaskGroup
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy
from tests.support.redis_server import RedisServer

CHAT = {"model": "m1", "messages": [{"role": "user", "content": "Hi"}]}
LIMITED = Behaviour(status=429, headers={"Retry-After": "120"})


def config_of(server: RedisServer, upstream: FakeUpstream) -> str:
    """`k1` is asked before `k2`."""
    providers = [
        {
            "name": name,
            "priority": priority,
            "base-url": f"{upstream.url}/v1",
            "api-key-entries": [{"api-key": key}],
            "models": [{"name": "m1"}],
        }
        for name, key, priority in (("first", "k1", 9), ("second", "k2", 1))
    ]
    return json.dumps({"openai-compatibility": providers, "state": server.section})


@pytest.fixture
async def nodes(server: RedisServer, upstream: FakeUpstream) -> AsyncIterator[tuple[RunningProxy, RunningProxy]]:
    config = config_of(server, upstream)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running_proxy(config))
        two = await stack.enter_async_context(running_proxy(config))
        await hearing(server, 2)
        yield one, two


async def hearing(server: RedisServer, count: int) -> None:
    """Wait until so many nodes listen to what others say."""
    async with asyncio.timeout(30):
        while await server.subscribers() < count:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)


def book_of(node: RunningProxy) -> CooldownBook:
    return node.proxy.gateway.state.pool.book


async def until(book: CooldownBook, holds: Callable[[], bool]) -> float:
    """Wait for a change of the book after which something holds; when that was."""
    changed = asyncio.Event()

    def noted(credential_id: str) -> None:
        changed.set()

    book.listeners.append(noted)
    try:
        async with asyncio.timeout(30):
            while not holds():
                changed.clear()
                await changed.wait()
        return time.monotonic()
    finally:
        book.listeners.remove(noted)


async def until_blocked(book: CooldownBook) -> float:
    return await until(book, lambda: blocked(book) == 1)


def blocked(book: CooldownBook) -> int:
    return sum(state.blocked for _, states in book.all_states() for state in states.values())


async def ask(client: aiohttp.ClientSession, node: RunningProxy) -> int:
    async with client.post(f"{node.url}/v1/chat/completions", json=CHAT) as answer:
        await answer.read()
        return answer.status


async def test_a_cooldown_of_one_node_is_respected_and_ended_by_the_other(
    nodes: tuple[RunningProxy, RunningProxy],
    server: RedisServer,
    upstream: FakeUpstream,
    client: aiohttp.ClientSession,
    record_property: Callable[[str, object], None],
):
    one, two = nodes
    upstream.behave_for_key("k1", LIMITED)
    set_at = asyncio.create_task(until_blocked(book_of(one)))
    known_at = asyncio.create_task(until_blocked(book_of(two)))
    assert await ask(client, one) == 200
    took_s = await known_at - await set_at
    record_property("cooldown_known_after_ms", round(took_s * 1000, 2))
    print(f"the other node knew the cooldown after {took_s * 1000:.1f} ms")

    asked = len(upstream.requests)
    assert await ask(client, two) == 200
    assert [sent.headers["Authorization"] for sent in upstream.requests[asked:]] == ["Bearer k2"]
    [(credential_id, states)] = book_of(two).all_states()
    [state] = states.values()
    assert (state.cause.status, state.exact, state.quota) == (429, True, True)
    assert 110 < state.until_s - book_of(two).clock() <= 120

    # A node that comes later learns it before it serves.
    async with running_proxy(config_of(server, upstream)) as third:
        await until_blocked(book_of(third))

    freed = asyncio.create_task(until(book_of(one), lambda: not blocked(book_of(one))))
    await asyncio.sleep(0)
    assert two.proxy.gateway.state.reset_quota(two.proxy.gateway.state.pool.by_id[credential_id].auth_index)
    await freed
    assert not blocked(book_of(two))


async def test_without_the_server_nobody_waits_and_what_was_learnt_meanwhile_is_told_when_it_is_back(
    nodes: tuple[RunningProxy, RunningProxy],
    server: RedisServer,
    upstream: FakeUpstream,
    client: aiohttp.ClientSession,
):
    one, two = nodes
    statuses: list[int] = []
    slowest_s = 0.0
    stop = asyncio.Event()

    async def load(node: RunningProxy) -> None:
        nonlocal slowest_s
        while not stop.is_set():
            began_s = time.monotonic()
            statuses.append(await ask(client, node))
            slowest_s = max(slowest_s, time.monotonic() - began_s)

    async with asyncio.TaskGroup() as group:
        for node in (one, two):
            group.create_task(load(node))
        await upstream.request(4)
        await server.stop()
        await readiness(client, one, "unavailable")
        await readiness(client, two, "unavailable")
        upstream.behave_for_key("k1", LIMITED)
        await asyncio.gather(*(until_blocked(book_of(node)) for node in nodes))
        # What one node proves wrong while the server is away is the later evidence.
        stop.set()
    [credential_id] = [found for found, _ in book_of(two).all_states()]
    two.proxy.gateway.state.reset_quota(two.proxy.gateway.state.pool.by_id[credential_id].auth_index)
    assert blocked(book_of(one))
    await server.start()
    await readiness(client, one, "available")
    if blocked(book_of(one)):
        await until(book_of(one), lambda: not blocked(book_of(one)))
    assert not blocked(book_of(two))
    assert set(statuses) == {200}
    print(f"{len(statuses)} requests, the slowest took {slowest_s * 1000:.0f} ms")


async def readiness(client: aiohttp.ClientSession, node: RunningProxy, wanted: str) -> None:
    """Wait until the node says this about its state server; it stays ready all the time."""
    async with asyncio.timeout(30):
        while True:
            async with client.get(f"{node.url}/readyz") as answer:
                said = await answer.json()
                assert (answer.status, said["status"]) == (200, "ready")
                if said["state"] == wanted:
                    return


async def test_wrong_management_keys_are_counted_over_all_nodes(server: RedisServer):
    tasks = TaskGroup("test")
    states = [server.state() for _ in range(3)]
    tables = [
        SharedFailures(state, tasks, machine=machine) for state, machine in zip(states, ("a", "a", "b"), strict=True)
    ]
    for state in states:
        await state.start()
    try:
        async with asyncio.timeout(30):
            while await server.subscribers("jackfield:topic:management-key") < 3:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            for turn in range(5):
                tables[turn % 3].failed("10.0.0.1")
                tables[turn % 2].failed("127.0.0.1")
            while not all(table.banned_for_s("10.0.0.1") for table in tables):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            while not tables[0].banned_for_s("127.0.0.1"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            assert not tables[2].banned_for_s("127.0.0.1"), "the loopback address of another machine"
            tables[1].failed("10.0.0.2")
            tables[2].succeeded("10.0.0.1")
            while tables[0].banned_for_s("10.0.0.1"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            while len(tables[2]) != 1:  # noqa: ASYNC110 - as above; the failure of 10.0.0.2
                await asyncio.sleep(0)
    finally:
        await tasks.stop()
        for state in states:
            await state.stop()
