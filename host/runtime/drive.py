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

    __slots__ = ("_deadlines", "_watch", "stuck")

    def __init__(self, watch: LoopWatch) -> None:
        self._watch = watch
        self._deadlines = _Deadlines()
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
        try:
            waits_for = self._watch.step(work.send, None, call)
        except StopIteration as done:
            return done.value
        guard = _Guard(timeout_s, self._deadlines)
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
            resume = state.work.send if error is None else state.work.throw
            try:
                state.waits_for = self._watch.step(resume, error, state.call)
            except StopIteration as done:
                return done.value
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


class _Deadlines:
    """The deadlines of all waiting calls of a plugin, behind one timer: nearly every call ends long before its own,
    and making and cancelling a timer costs more than the rest of a call that waits."""

    __slots__ = ("_guards", "_timer", "_timer_due_s")

    def __init__(self) -> None:
        self._guards: set[_Guard] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0

    def add(self, guard: "_Guard", loop: asyncio.AbstractEventLoop) -> None:
        """Call `guard.expire` at `guard.due_s`."""
        self._guards.add(guard)
        if self._timer is None or guard.due_s < self._timer_due_s:
            self._set_timer(guard.due_s, loop)

    def remove(self, guard: "_Guard") -> None:
        self._guards.discard(guard)

    def _set_timer(self, due_s: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_s = due_s
        self._timer = loop.call_later(max(0.0, due_s - loop.time()), self._fire)

    def _fire(self) -> None:
        # The timer may be for a call that has ended; it goes on with the earliest one that has not.
        self._timer = None
        loop = asyncio.get_running_loop()
        due_now_s = max(loop.time(), self._timer_due_s)
        for guard in [guard for guard in self._guards if guard.due_s <= due_now_s]:
            self._guards.discard(guard)
            guard.expire()
        if self._guards:
            self._set_timer(min(guard.due_s for guard in self._guards), loop)


class _Guard:
    """Cancels the running task when time is up, and can tell that cancellation from anybody else's.

    An `asyncio.timeout` inside the plugin also cancels this task, and takes it back when it leaves its block: only
    while a cancellation is not taken back is the call interrupted.
    """

    __slots__ = ("_before", "_cancels", "_deadlines", "_grace", "_task", "_timeout_s", "due_s", "expired", "overdue")

    def __init__(self, timeout_s: float | None, deadlines: _Deadlines) -> None:
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
        self._deadlines: _Deadlines | None = None
        if timeout_s is not None:
            loop = task.get_loop()
            self.due_s = loop.time() + timeout_s
            self._deadlines = deadlines
            deadlines.add(self, loop)

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
        if self._deadlines is not None:
            self._deadlines.remove(self)
        if self._grace is not None:
            self._grace.cancel()

    def expire(self) -> None:
        """The deadline has come."""
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
