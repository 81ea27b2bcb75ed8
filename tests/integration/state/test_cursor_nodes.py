"""Nodes that share a server and take turns: who is idle or new goes on where the others are, who is busy stays."""

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import msgspec
import pytest
from structlog.testing import capture_logs

from host.credentials import shared_cursors
from host.credentials.select import Cursors
from host.credentials.shared_cursors import SharedCursors
from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy
from tests.support.redis_server import RedisServer, redis_server

CHAT = {"model": "m1", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value_s in (("LOOK_S", 0.01), ("QUIET_S", 0.0), ("KEEP_EVERY_S", 0.0)):
        monkeypatch.setattr(shared_cursors, name, value_s)


def config_of(server: RedisServer, upstream: FakeUpstream) -> str:
    provider = {
        "name": "acme",
        "base-url": f"{upstream.url}/v1",
        "api-key-entries": [{"api-key": f"k{number}"} for number in range(5)],
        "models": [{"name": "m1"}],
    }
    return json.dumps({"openai-compatibility": [provider], "state": server.section})


def cursors_of(node: RunningProxy) -> dict[str, int]:
    return node.proxy.gateway.state.pool.health.cursors.positions


async def ask(node: RunningProxy) -> None:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client,
        client.post(f"{node.url}/v1/chat/completions", json=CHAT) as response,
    ):
        assert response.status == 200


async def agreed(*nodes: RunningProxy, on: dict[str, int] | None = None) -> None:
    """Wait until all of them stand at the same place."""
    async with asyncio.timeout(30):
        while not all(cursors_of(node) == (on or cursors_of(nodes[0])) for node in nodes):  # noqa: ASYNC110 - they have no event for it
            await asyncio.sleep(0)


async def kept(server: RedisServer, position: int) -> None:
    """Wait until a node has left on the server where it stands."""
    state = server.state()
    await state.start()
    try:
        async with asyncio.timeout(30):
            while True:
                found = shared_cursors._latest(await state.store.items("cursor"))
                if [row.position for row in found.values()] == [position]:
                    return
    finally:
        await state.stop()


def used(upstream: FakeUpstream) -> Counter[str]:
    return Counter(sent.headers["Authorization"] for sent in upstream.requests)


@pytest.mark.usefixtures("quick_looks")
async def test_nodes_go_on_around_each_other_and_one_that_starts_goes_on_where_they_are(
    server: RedisServer, upstream: FakeUpstream
):
    config = config_of(server, upstream)
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(running_proxy(config)) for _ in range(2)]
        async with asyncio.timeout(30):
            while await server.subscribers("jackfield:topic:cursor") < 2:  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0)
        for node in (one, two, one):
            await ask(node)
            await agreed(one, two)
        await kept(server, 3)
        third = await stack.enter_async_context(running_proxy(config))
        await agreed(third, on=dict(cursors_of(one)))
        await ask(third)
        await agreed(one, two, third)
        await ask(two)
        await agreed(one, two, third)
        assert set(used(upstream).values()) == {1}
        assert len(used(upstream)) == 5
        there = dict(cursors_of(two))

        with capture_logs() as lines:
            await server.stop()
            for _ in range(5):
                await ask(one)
            assert set(used(upstream).values()) == {2}
            await ask(one)
        assert [line["event"] for line in lines if "cursor" in line["event"]] == []
        alone = dict(cursors_of(one))
        assert alone != there
        assert [cursors_of(node) for node in (two, third)] == [there, there], "nobody could tell them"
        await server.start()
        async with asyncio.timeout(30):
            while await server.subscribers("jackfield:topic:cursor") < 3:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert cursors_of(one) == alone, "a server that comes back empty moves nobody"
        await agreed(one, two, third)
        assert cursors_of(one) == alone, "whoever moved meanwhile tells it"
        await ask(one)
        await agreed(one, two, third)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_busy_cursor_keeps_its_own_turns_and_follows_when_it_has_been_quiet(tmp_path: Path):
    clock = Clock()
    async with redis_server(tmp_path) as server:
        state = server.state()
        await state.start()
        cursors = Cursors()
        mine = SharedCursors(cursors, state, members_of=lambda key: None, clock=clock)
        cursors.move("c", 1)
        await mine.look()
        told = msgspec.msgpack.encode([("c", 7, "", 0.0), ("other", 3, "", 0.0)])
        mine._hear_message(told)
        assert cursors.positions == {"c": 1, "other": 3}
        cursors.move("c", 2)
        await mine.look()
        clock.now_s += 2
        await mine.look()
        assert cursors.positions == {"c": 2, "other": 3}, "its own turn was later"
        mine._hear_message(told)
        assert cursors.positions == {"c": 7, "other": 3}
        mine._hear_message(b"\xc1")
        await state.stop()


async def test_what_the_server_kept_is_older_than_what_was_told_while_it_was_read(tmp_path: Path):
    async with redis_server(tmp_path) as server:
        state = server.state()
        await state.start()
        kept = msgspec.msgpack.encode([("a", 2, "", 1.0), ("b", 2, "", 1.0)])
        await state.store.set(shared_cursors.NAMESPACE, "other", kept)
        cursors = Cursors()
        mine = SharedCursors(cursors, state, members_of=lambda key: None)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(mine._read())
            tasks.create_task(mine._read())
            await asyncio.sleep(0)
            mine._hear_message(msgspec.msgpack.encode([("a", 5, "", 2.0)]))
            assert not reading.done()
        assert cursors.positions == {"a": 5, "b": 2}
        await mine._read()
        assert cursors.positions == {"a": 2, "b": 2}, "a reading that began later counts"
        await state.stop()
