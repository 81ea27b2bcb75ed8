"""Runs an in-process plugin's coroutine inside the calling task: no task switch, and no timer unless it suspends.

The price of a call that never waits is one `send`. A call that waits gets a timer. When its deadline passes, the
plugin's code is cancelled like any other coroutine; what it does about that may take a short while, then it is closed,
whatever it wants. It is never moved to another task: code that remembered its task, as `asyncio.timeout` does, would
later cancel the wrong one.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Protocol

import structlog

from host.runtime.loopwatch import LoopWatch, WatchedCall
from pluginabi.errors import PluginTimeout

log = structlog.get_logger("host.runtime.drive")

DEADLINE_GRACE_S: Final = 0.25
"""How long a hook may clean up after its deadline: its caller waits for that."""
CANCEL_GRACE_S: Final = 2.0
"""The same after the caller was cancelled, when nobody waits for an answer."""

Work = Coroutine[Any, Any, Any]


class DrivenCall(WatchedCall, Protocol):
    """What the driver needs of the call it works for."""

    def cancel(self) -> None:
        """Nobody wants the answer any more."""


class Driver:
    """Steps the coroutines of plugins."""

    __slots__ = ("_watch", "stuck")

    def __init__(self, watch: LoopWatch) -> None:
        self._watch = watch
        self.stuck = 0
        """Hooks that had to be closed because they went on after they were cancelled."""

    @types.coroutine
    def run(
        self,
        work: Work,
        call: DrivenCall,
        *,
        timeout_s: float | None,
        dropped: Callable[[Any], None] | None = None,
    ) -> Generator[Any, Any, Any]:
        """Await `work`, which is the plugin's part of `call`; `dropped` gets a result that nobody wants any more.

        Raises PluginTimeout after `timeout_s`, otherwise whatever `work` raises. Cancelling it cancels `work`, and it
        ends as cancelled even when `work` answers all the same.
        """
        watch = self._watch
        outer = watch.enter(call)
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            return done.value
        finally:
            watch.leave(outer)
        guard = _Guard(timeout_s)
        try:
            value = yield from self._wait(_Suspended(work, call, waits_for), guard)
        except GeneratorExit:
            raise
        except BaseException as error:
            self._settle(guard, call, error)
            raise
        finally:
            guard.stop()
        if guard.interrupted:
            if dropped is not None:
                dropped(value)
            self._settle(guard, call, None)
        return value

    def _wait(self, state: "_Suspended", guard: "_Guard") -> Generator[Any, Any, Any]:
        """Pass on what the work waits for until it ends, or until its grace is over."""
        while True:
            error: BaseException | None = None
            try:
                yield state.waits_for
            except GeneratorExit:
                state.work.close()
                raise
            except BaseException as raised:
                error = raised
            if guard.overdue:
                self.stuck += 1
                call = state.call
                log.error("plugin.ignores_cancellation", plugin_id=call.plugin_id, method=call.method)
                _close(state.work)
                raise asyncio.CancelledError
            if guard.expired:
                state.call.cancel()
            outer = self._watch.enter(state.call)
            try:
                state.waits_for = state.work.send(None) if error is None else state.work.throw(error)
            except StopIteration as done:
                return done.value
            finally:
                self._watch.leave(outer)
            if error is not None and guard.interrupted:
                guard.start_grace()

    def _settle(self, guard: "_Guard", call: DrivenCall, error: BaseException | None) -> None:
        """Raise what an interrupted call ends with, whatever the plugin made of its cancellation."""
        if not guard.interrupted:
            return
        if error is not None and not isinstance(error, asyncio.CancelledError):
            log.info("plugin.late_error", plugin_id=call.plugin_id, method=call.method, error=str(error))
        if guard.take_back():
            raise PluginTimeout(call.plugin_id, call.method, timeout_ms=guard.timeout_ms) from None
        if not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError


class _Suspended:
    """A coroutine that waits for something."""

    __slots__ = ("call", "waits_for", "work")

    def __init__(self, work: Work, call: DrivenCall, waits_for: Any) -> None:
        self.work = work
        self.call = call
        self.waits_for = waits_for


class _Guard:
    """Cancels the running task when time is up, and can tell that cancellation from anybody else's.

    An `asyncio.timeout` inside the plugin also cancels this task, and takes it back when it leaves its block: only
    while a cancellation is not taken back is the call interrupted.
    """

    __slots__ = ("_before", "_cancels", "_grace", "_handle", "_task", "_timeout_s", "expired", "overdue")

    def __init__(self, timeout_s: float | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.expired = False
        """The deadline has passed."""
        self.overdue = False
        """The grace after a cancellation has passed too."""
        self._timeout_s = timeout_s
        self._task = task
        self._before = task.cancelling()
        self._cancels = 0
        self._grace: asyncio.TimerHandle | None = None
        self._handle = None if timeout_s is None else task.get_loop().call_later(timeout_s, self._expire)

    @property
    def interrupted(self) -> bool:
        """Whether this deadline or somebody outside has cancelled the call."""
        return self._task.cancelling() > self._before

    @property
    def timeout_ms(self) -> int:
        return round((self._timeout_s or 0.0) * 1000)

    def start_grace(self) -> None:
        """The plugin goes on after a cancellation: let it, for a while."""
        if self._grace is None:
            delay_s = DEADLINE_GRACE_S if self.expired else CANCEL_GRACE_S
            self._grace = self._task.get_loop().call_later(delay_s, self._end_grace)

    def take_back(self) -> bool:
        """Undo this guard's own cancellations; True when it was the deadline and nobody else has cancelled the task."""
        self.stop()
        while self._cancels:
            self._cancels -= 1
            self._task.uncancel()
        return self.expired and self._task.cancelling() <= self._before

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._grace is not None:
            self._grace.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._cancel()

    def _end_grace(self) -> None:
        self._grace = None
        if self.interrupted:
            self.overdue = True
            self._cancel()

    def _cancel(self) -> None:
        self._cancels += 1
        self._task.cancel()


def _close(work: Work) -> None:
    """End a coroutine on the spot; one that ignores this too is dropped, nothing will ever wake it again."""
    try:
        work.close()
    except Exception:
        log.warning("plugin.ignores_close", exc_info=True)
