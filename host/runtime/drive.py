"""Runs an in-process plugin's coroutine inside the calling task: no task switch, and no timer unless it suspends.

The price of a call that never waits is one `send`. A call that waits gets a timer; when the deadline passes or the
caller is cancelled, the plugin's code is cancelled once and the caller goes on at once, whatever the plugin does: what
is left of it is finished by a background task of bounded life.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Protocol

import structlog

from host.runtime.loopwatch import LoopWatch
from host.tasks import TaskGroup
from pluginabi.errors import PluginTimeout

log = structlog.get_logger("host.runtime.drive")

LEFTOVER_LIMIT_S: Final = 10.0
"""How long a cancelled hook may take to clean up before its coroutine is closed."""

Work = Coroutine[Any, Any, Any]


class DrivenCall(Protocol):
    """What the driver needs of the call it works for."""

    def cancel(self) -> None:
        """Nobody wants the answer any more."""


class Driver:
    """Steps the coroutines of one plugin."""

    __slots__ = ("_plugin_id", "_tasks", "_watch", "stuck")

    def __init__(self, plugin_id: str, *, watch: LoopWatch, tasks: TaskGroup) -> None:
        self._plugin_id = plugin_id
        self._watch = watch
        self._tasks = tasks
        self.stuck = 0
        """Hooks that went on after they were cancelled, since the start."""

    @types.coroutine
    def run(
        self,
        work: Work,
        method: str,
        *,
        timeout_s: float | None,
        call: DrivenCall,
        dropped: Callable[[Any], None] | None = None,
    ) -> Generator[Any, Any, Any]:
        """Await `work`; `call` identifies it to the watch, `dropped` gets a result that comes too late.

        Raises PluginTimeout after `timeout_s`, otherwise whatever `work` raises. Cancelling it cancels `work`.
        """
        watch = self._watch
        outer = watch.enter(call)
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            return done.value
        finally:
            watch.leave(outer, self._plugin_id, method)
        return (yield from self._wait(_Suspended(work, method, call, waits_for), timeout_s, dropped))

    def _wait(
        self, state: "_Suspended", timeout_s: float | None, dropped: Callable[[Any], None] | None
    ) -> Generator[Any, Any, Any]:
        deadline = _Deadline(timeout_s)
        try:
            while True:
                try:
                    yield state.waits_for
                except asyncio.CancelledError as cancelled:
                    state.call.cancel()
                    # Before the cancellation is taken back: the plugin's side asks the task whether it is cancelled.
                    self._abandon(state, cancelled, dropped)
                    if deadline.is_cause():
                        timeout_ms = round((timeout_s or 0.0) * 1000)
                        raise PluginTimeout(self._plugin_id, state.method, timeout_ms=timeout_ms) from None
                    raise
                except GeneratorExit:
                    state.work.close()
                    raise
                except BaseException as error:
                    self._step(state, error)
                else:
                    self._step(state, None)
        except _Finished as finished:
            return finished.value
        finally:
            deadline.stop()

    def _step(self, state: "_Suspended", error: BaseException | None) -> None:
        """One step of the plugin's code. Raises _Finished when it returned, and what it raises."""
        outer = self._watch.enter(state.call)
        try:
            state.waits_for = state.work.send(None) if error is None else state.work.throw(error)
        except StopIteration as done:
            raise _Finished(done.value) from None
        finally:
            self._watch.leave(outer, self._plugin_id, state.method)

    def _abandon(
        self, state: "_Suspended", cancelled: asyncio.CancelledError, dropped: Callable[[Any], None] | None
    ) -> None:
        """Cancel the plugin's code; if that does not end it, let a task of ours wait for it."""
        try:
            self._step(state, cancelled)
        except _Finished as finished:
            if dropped is not None:
                dropped(finished.value)
        except asyncio.CancelledError:
            pass
        except Exception:
            log.warning("plugin.cleanup_failed", plugin_id=self._plugin_id, method=state.method, exc_info=True)
        else:
            self.stuck += 1
            self._tasks.start(self._leftover(state, dropped), name=f"leftover:{self._plugin_id}:{state.method}")

    async def _leftover(self, state: "_Suspended", dropped: Callable[[Any], None] | None) -> None:
        try:
            async with asyncio.timeout(LEFTOVER_LIMIT_S):
                value = await self._resume(state)
        except TimeoutError:
            log.error("plugin.ignores_cancellation", plugin_id=self._plugin_id, method=state.method)
        except Exception:
            log.warning("plugin.cleanup_failed", plugin_id=self._plugin_id, method=state.method, exc_info=True)
        else:
            if dropped is not None:
                dropped(value)

    @types.coroutine
    def _resume(self, state: "_Suspended") -> Generator[Any, Any, Any]:
        try:
            while True:
                try:
                    yield state.waits_for
                except (asyncio.CancelledError, GeneratorExit):
                    _close(state.work)
                    raise
                except BaseException as error:
                    self._step(state, error)
                else:
                    self._step(state, None)
        except _Finished as finished:
            return finished.value


class _Suspended:
    """A coroutine that waits for something."""

    __slots__ = ("call", "method", "waits_for", "work")

    def __init__(self, work: Work, method: str, call: DrivenCall, waits_for: Any) -> None:
        self.work = work
        self.method = method
        self.call = call
        self.waits_for = waits_for


class _Finished(Exception):
    """Carries a coroutine's return value; StopIteration cannot leave a generator."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _Deadline:
    """Cancels the running task when time is up, and can tell that cancellation from anybody else's."""

    __slots__ = ("_before", "_expired", "_handle", "_task")

    def __init__(self, timeout_s: float | None) -> None:
        self._expired = False
        self._handle: asyncio.TimerHandle | None = None
        if timeout_s is None:
            return
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._handle = asyncio.get_running_loop().call_later(timeout_s, self._expire)

    def is_cause(self) -> bool:
        """Whether the cancellation just seen is this deadline's; takes it back then."""
        if not self._expired:
            return False
        self._expired = False
        # Somebody else may have cancelled the task as well; then it stays cancelled.
        return self._task.uncancel() <= self._before

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._expired:
            self._task.uncancel()

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


def _close(work: Work) -> None:
    """End a coroutine that went on after its cancellation; one that ignores this too is left to the collector."""
    try:
        work.close()
    except Exception:
        log.warning("plugin.ignores_close", exc_info=True)
