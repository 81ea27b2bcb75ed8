"""Who held the event loop."""

import asyncio
import threading
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Call:
    plugin_id: str
    method: str = "model.route"


def test_a_step_longer_than_the_limit_is_reported_with_plugin_and_method(clock: FakeTime):
    seen: list[Any] = []
    watch = LoopWatch(report=lambda *report: seen.append(report))

    def held(value: int) -> int:
        assert watch.current == Call("p")
        clock.now_s += 0.15
        return value + 1

    assert watch.step(held, 1, Call("p")) == 2
    assert seen == [("p", "model.route", pytest.approx(0.15))]
    assert watch.current is None


def test_a_step_within_the_limit_is_not_reported(clock: FakeTime):
    seen: list[Any] = []
    watch = LoopWatch(report=lambda *report: seen.append(report))

    def raising(_: None) -> None:
        clock.now_s += 0.1
        raise StopIteration("done")

    with pytest.raises(StopIteration, match="done"):
        watch.step(raising, None, Call("p"))
    assert watch.current is None
    assert seen == []


def test_nested_steps_are_charged_to_the_innermost_plugin_only(clock: FakeTime):
    seen: list[Any] = []
    watch = LoopWatch(report=lambda plugin_id, method, held_s: seen.append((plugin_id, round(held_s, 3))))

    def inner(_: None) -> None:
        clock.now_s += 0.2

    def outer(_: None) -> None:
        clock.now_s += 0.05
        watch.step(inner, None, Call("b"))
        assert watch.current == Call("a")
        clock.now_s += 0.04

    watch.step(outer, None, Call("a"))
    assert seen == [("b", 0.2)]


def test_a_step_that_does_not_end_is_reported_from_a_thread_with_the_authors_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loopwatch, "STUCK_LIMIT_S", 0.01)
    seen: list[Any] = []
    reported = threading.Event()

    def report(*what: Any) -> None:
        seen.append(what)
        reported.set()

    watch = LoopWatch(limit_s=60.0, stuck=report)
    watch.start()
    watch.start()

    def this_line_holds_the_loop(seconds: float) -> bool:
        return reported.wait(seconds)

    assert watch.step(this_line_holds_the_loop, 10.0, Call("p"))
    watch.stop()
    (plugin_id, method, held_s, stack) = seen[0]
    assert (plugin_id, method) == ("p", "model.route")
    assert held_s > 0.01
    assert "this_line_holds_the_loop" in stack
    assert len(seen) == 1


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
