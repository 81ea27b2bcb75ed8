"""Nodes whose clocks disagree by minutes: what one says means the same to the others."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from host.credentials.classify import Verdict
from host.credentials.cooldown import CooldownBook
from host.credentials.shared_cooldowns import SharedCooldowns
from host.tasks import TaskGroup
from tests.support.redis_server import RedisServer

GUESS = Verdict(rotate=True, reason="transient", cooldown_s=60.0)


class Node:
    def __init__(self, server: RedisServer, *, ahead_s: float = 0.0) -> None:
        self.state = server.state(clock=lambda: time.time() + ahead_s)
        self.tasks = TaskGroup("node")
        self.book = CooldownBook()
        self.told = asyncio.Event()
        self.book.listeners.append(lambda credential_id: self.told.set())
        cooldowns = SharedCooldowns(
            self.book, self.state, self.tasks, accepts=lambda it, *, forced: True, wall_clock=self.state.wall_s
        )
        cooldowns.start()

    async def __aenter__(self) -> "Node":
        await self.state.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.tasks.stop()
        await self.state.stop()

    def rest_s(self, credential_id: str) -> float:
        block = self.book.block(credential_id, "m")
        return 0.0 if block is None else block.until_s - self.book.clock()


@pytest.mark.parametrize("ahead_s", [300.0, -300.0])
async def test_a_block_of_a_minute_is_one_on_a_node_whose_clock_is_five_minutes_off(
    server: RedisServer, ahead_s: float
):
    with capture_logs() as lines:
        async with Node(server) as right, Node(server, ahead_s=ahead_s) as wrong, asyncio.timeout(60):
            while await server.subscribers() < 2:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0)
            for one, other, name in ((right, wrong, "a"), (wrong, right, "b")):
                other.told.clear()
                one.book.failed(name, "m", GUESS)
                await other.told.wait()
                assert 30 < other.rest_s(name) <= 60
            assert abs(wrong.state.wall_s() - time.time()) < 30
    assert [round(line["ahead_s"], -1) for line in lines if line["event"] == "state.clock_differs"] == [ahead_s]


async def test_clocks_that_agree_are_left_alone_and_one_that_was_set_right_again_too(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    ahead_s = 0.0
    state = server.state(clock=lambda: 1000.0 + ahead_s)
    async with asyncio.timeout(60):
        await state.start()
        await state.stop()
        state = server.state(clock=lambda: time.time() + ahead_s)
        await state.start()
        assert state.wall_s() <= time.time() <= state.wall_s() + 1
        ahead_s = 3600.0
        await state.probe()
        assert abs(state.wall_s() - time.time()) < 30
        ahead_s = 0.0
        await state.probe()
        assert state.wall_s() <= time.time() <= state.wall_s() + 1
        await state.stop()
