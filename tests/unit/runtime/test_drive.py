"""Stepping a plugin's coroutine inside the caller's task."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from host.runtime import drive
from host.runtime.drive import Driver
from host.runtime.loopwatch import LoopWatch
from pluginabi.errors import PluginTimeout


class Call:
    plugin_id = "p"
    method = "model.route"

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Stage:
    """A driver with what it needs."""

    def __init__(self) -> None:
        self.driver = Driver(LoopWatch())
        self.call = Call()
        self.dropped: list[Any] = []

    async def run(self, work: Any, timeout_s: float | None = None) -> Any:
        return await self.driver.run(work, self.call, timeout_s=timeout_s, dropped=self.dropped.append)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "DEADLINE_GRACE_S", 0.01)
    monkeypatch.setattr(drive, "CANCEL_GRACE_S", 0.01)


async def test_a_hook_that_never_waits_needs_no_timer(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_at", None)
    monkeypatch.setattr(loop, "call_later", None)

    async def hook() -> int:
        return 3

    assert await stage.run(hook(), timeout_s=1.0) == 3


async def test_a_hook_that_waits_runs_in_the_callers_task_with_its_context(stage: Stage):
    seen = []

    async def hook() -> int:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())
        return 4

    assert await stage.run(hook(), timeout_s=5.0) == 4
    assert seen == [asyncio.current_task()] * 2


async def test_what_a_hook_raises_passes_through_before_and_after_waiting(stage: Stage):
    async def at_once() -> None:
        raise ValueError("now")

    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    with pytest.raises(ValueError, match="now"):
        await stage.run(at_once())
    with pytest.raises(ValueError, match="later"):
        await stage.run(later(), timeout_s=5.0)


async def test_the_exception_of_an_awaited_future_reaches_the_hook(stage: Stage):
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hook() -> str:
        try:
            await future
        except OSError as error:
            return str(error)
        return "nothing"

    task = asyncio.ensure_future(stage.run(hook()))
    asyncio.get_running_loop().call_soon(future.set_exception, OSError("boom"))
    assert await task == "boom"


async def test_the_deadline_cancels_the_hook_and_raises_plugin_timeout(stage: Stage):
    cleaned = []

    async def hook() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(PluginTimeout) as caught:
        await stage.run(hook(), timeout_s=0.01)
    assert caught.value.timeout_ms == 10
    assert cleaned == [True]
    assert stage.call.cancelled
    assert not_cancelled()


async def test_a_hook_that_ignores_its_deadline_is_closed_after_the_grace(stage: Stage, no_grace: None, within: Any):
    ended = []

    async def hook() -> str:
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    ended.append("cancelled")
        finally:
            ended.append("closed")

    with pytest.raises(PluginTimeout):
        await within(stage.run(hook(), timeout_s=0.01))
    assert ended == ["cancelled", "closed"]
    assert stage.driver.stuck == 1
    assert not_cancelled()


async def test_a_hook_that_ignores_even_its_closing_holds_nobody_up(
    stage: Stage, no_grace: None, within: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.unraisablehook", lambda problem: None)
    event = asyncio.Event()

    async def hook() -> None:
        while not event.is_set():
            try:
                await event.wait()
            except BaseException:
                pass

    with pytest.raises(PluginTimeout):
        await within(stage.run(hook(), timeout_s=0.01))
    event.set()
    gc.collect()


async def test_cleanup_within_the_grace_is_completed_before_the_caller_goes_on(stage: Stage):
    done = []

    async def hook() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append(True)

    with pytest.raises(PluginTimeout):
        await stage.run(hook(), timeout_s=0.01)
    assert done == [True]


async def test_a_cancelled_caller_is_free_after_the_grace_whatever_the_hook_does(
    stage: Stage, no_grace: None, within: Any
):
    started = asyncio.Event()

    async def hook() -> None:
        started.set()
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    task = asyncio.ensure_future(stage.run(hook()))
    await within(started.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)


async def test_an_answer_given_upon_cancellation_is_handed_to_dropped(stage: Stage):
    async def hook() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        return "never"

    with pytest.raises(PluginTimeout):
        await stage.run(hook(), timeout_s=0.01)
    assert stage.dropped == ["late"]


async def test_cancelling_the_caller_cancels_the_hook(stage: Stage, within: Any):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hook() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.ensure_future(stage.run(hook(), timeout_s=60.0))
    await within(started.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert cancelled.is_set()


async def test_a_cancellation_from_outside_is_not_mistaken_for_the_deadline(stage: Stage, within: Any):
    """Both happen before the task runs again: the caller must stay cancelled."""
    started = asyncio.Event()

    async def hook() -> None:
        started.set()
        await asyncio.Event().wait()

    timers: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    original = loop.call_later
    loop.call_later = lambda delay, callback, *args, **kwargs: (  # type: ignore[method-assign,assignment]
        timers.append(callback),
        original(delay, callback, *args, **kwargs),
    )[1]
    try:
        task = asyncio.ensure_future(stage.run(hook(), timeout_s=60.0))
        await started.wait()
    finally:
        loop.call_later = original  # type: ignore[method-assign]
    timers[0]()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)


async def test_cleanup_that_fails_is_not_the_callers_problem(stage: Stage):
    async def hook() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("cleanup")

    with pytest.raises(PluginTimeout):
        await stage.run(hook(), timeout_s=0.01)


@pytest.mark.parametrize("answer", ["value", "error"])
async def test_a_cancelled_caller_stays_cancelled_although_the_hook_answers(stage: Stage, within: Any, answer: str):
    started = asyncio.Event()

    async def hook() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if answer == "error":
                raise ValueError("instead") from None
        return "value"

    task = asyncio.ensure_future(stage.run(hook(), timeout_s=60.0))
    await within(started.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert stage.dropped == (["value"] if answer == "value" else [])


async def test_asyncio_timeout_inside_a_hook_still_works(stage: Stage):
    async def hook() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "own timeout"
        return "none"

    assert await stage.run(hook(), timeout_s=30.0) == "own timeout"
    assert not_cancelled()


async def test_an_inner_timeout_with_cleanup_that_waits_is_no_cancellation(stage: Stage):
    async def hook() -> str:
        try:
            async with asyncio.timeout(0.01):
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
        except TimeoutError:
            await asyncio.sleep(0)
            return "went on"
        return "none"

    assert await stage.run(hook(), timeout_s=30.0) == "went on"
    assert stage.driver.stuck == 0


async def test_the_deadline_of_a_nested_call_ends_only_the_nested_call(stage: Stage):
    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> str:
        try:
            await stage.run(inner(), timeout_s=0.01)
        except PluginTimeout:
            await asyncio.sleep(0)
            return "inner timed out"
        return "none"

    assert await stage.run(outer(), timeout_s=30.0) == "inner timed out"
    assert not_cancelled()


async def test_the_deadline_of_an_outer_call_ends_the_nested_one_too(stage: Stage):
    seen = []

    async def inner() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("inner")

    async def outer() -> None:
        try:
            await stage.run(inner(), timeout_s=30.0)
        finally:
            seen.append("outer")

    with pytest.raises(PluginTimeout) as caught:
        await stage.run(outer(), timeout_s=0.01)
    assert caught.value.timeout_ms == 10
    assert seen == ["inner", "outer"]
    assert not_cancelled()


def not_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() == 0
