"""Who held the event loop."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from host.runtime import loopwatch
from host.runtime.inprocess import InProcessPlugin
from host.runtime.invoke import Invoker
from host.runtime.loopwatch import LoopWatch
from pluginabi.payloads.executor import ExecutorRequest
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import binding, started


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(loopwatch, "time", fake)
    return fake


def test_a_step_longer_than_the_limit_is_reported_with_plugin_and_method(clock: FakeTime):
    seen: list[Any] = []
    watch = LoopWatch(report=lambda *report: seen.append(report))
    outer = watch.enter("call")
    assert watch.current == "call"
    clock.now_s += 0.15
    watch.leave(outer, "p", "model.route")
    assert seen == [("p", "model.route", pytest.approx(0.15))]
    assert watch.current is None


def test_a_step_within_the_limit_is_not_reported(clock: FakeTime):
    seen: list[Any] = []
    watch = LoopWatch(report=lambda *report: seen.append(report))
    outer = watch.enter("call")
    clock.now_s += 0.1
    watch.leave(outer, "p", "model.route")
    assert seen == []


def test_nested_steps_are_charged_to_the_innermost_plugin_only(clock: FakeTime):
    seen: list[Any] = []
    watch = LoopWatch(report=lambda plugin_id, method, held_s: seen.append((plugin_id, round(held_s, 3))))
    outer = watch.enter("a")
    clock.now_s += 0.05
    inner = watch.enter("b")
    clock.now_s += 0.2
    watch.leave(inner, "b", "executor.execute")
    assert watch.current == "a"
    clock.now_s += 0.04
    watch.leave(outer, "a", "model.route")
    assert seen == [("b", 0.2)]


def author_of(plugin: InProcessPlugin) -> Any:
    assert plugin._dispatcher is not None
    return plugin._dispatcher.plugin


async def test_F24_a_hook_that_blocks_the_loop_is_named(tmp_path: Path, clock: FakeTime):
    code = """
class P(Plugin):
    async def model_route(self, request):
        self.clock.now_s += 0.12
"""
    seen: list[tuple[str, str]] = []
    async with started(tmp_path, code, report=lambda plugin_id, method, held_s: seen.append((plugin_id, method))) as p:
        author_of(p).clock = clock
        await Invoker().call(binding(p, "model.route"), lambda _: ModelRouteRequest(), None)
    assert seen == [("p", "model.route")]


async def test_a_step_after_waiting_counts_and_the_waiting_does_not(tmp_path: Path, clock: FakeTime):
    code = """
class P(Plugin):
    async def model_route(self, request):
        await self.waits_for
        self.clock.now_s += 0.2
"""
    seen: list[float] = []
    loop = asyncio.get_running_loop()

    def answer(future: "asyncio.Future[None]") -> None:
        clock.now_s += 50
        future.set_result(None)

    async with started(tmp_path, code, report=lambda plugin_id, method, held_s: seen.append(round(held_s, 3))) as p:
        author = author_of(p)
        author.clock, author.waits_for = clock, loop.create_future()
        loop.call_soon(answer, author.waits_for)
        await Invoker().call(binding(p, "model.route"), lambda _: ModelRouteRequest(), None)
    assert seen == [0.2]


async def test_the_steps_of_a_stream_count_too(tmp_path: Path, clock: FakeTime):
    code = """
class P(Plugin):
    async def executor_execute_stream(self, request):
        yield b"a"
        self.clock.now_s += 0.12
        yield b"b"
"""
    seen: list[tuple[str, str]] = []
    async with started(tmp_path, code, report=lambda plugin_id, method, held_s: seen.append((plugin_id, method))) as p:
        author_of(p).clock = clock
        wanted = binding(p, "executor.execute_stream")
        reply = await Invoker().stream(wanted, lambda _: ExecutorRequest(), None)
        assert [item async for item in reply.items]
    assert seen == [("p", "executor.execute_stream")]
