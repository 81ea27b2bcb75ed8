"""What to do when a plugin process died, and whether it is still alive. Policy without processes."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from pluginabi.errors import AbiError
from pluginabi.session import Session


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay_s`; 0 is at once and is not counted."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It died too often; only a reset or another configuration starts it again."""

    reason: str


class CrashPolicy:
    """Counts the deaths of one plugin. A pure state machine: the clock and the dice are given.

    A process that had been ready for `stable_s` is restarted at once. Any other death waits, twice as long each time
    with full jitter, and counts; `crash_limit` of them within `crash_window_s` end it.
    """

    def __init__(
        self,
        timings: ProcessTimings,
        *,
        clock: Callable[[], float],
        dice: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._timings = timings
        self._clock = clock
        self._dice = dice
        self._counted_s: deque[float] = deque()
        self._in_a_row = 0

    def after_death(self, *, ready_for_s: float | None) -> Restart | GiveUp:
        """The decision about a process that had been ready for that long; None: never."""
        timings = self._timings
        if ready_for_s is not None and ready_for_s >= timings.stable_s:
            self._in_a_row = 0
            return Restart(0.0)
        now_s = self._clock()
        while self._counted_s and now_s - self._counted_s[0] > timings.crash_window_s:
            self._counted_s.popleft()
        self._counted_s.append(now_s)
        if len(self._counted_s) >= timings.crash_limit:
            return GiveUp(f"died {len(self._counted_s)} times within {timings.crash_window_s:g} s without getting far")
        ceiling_s = min(timings.backoff_max_s, timings.backoff_min_s * 2.0 ** (self._in_a_row + 1))
        self._in_a_row += 1
        return Restart(self._dice(timings.backoff_min_s, ceiling_s))

    def forget(self) -> None:
        """Start counting from nothing: an operator's reset."""
        self._counted_s.clear()
        self._in_a_row = 0


class Liveness:
    """Pings one session. Any frame counts as a sign of life, so a busy plugin is never taken for a dead one."""

    def __init__(
        self,
        session: Session,
        timings: ProcessTimings,
        *,
        tasks: TaskGroup,
        on_change: Callable[[bool], None],
        kill: Callable[[str], None],
    ) -> None:
        self._session = session
        self._timings = timings
        self._tasks = tasks
        self._on_change = on_change
        self._kill = kill
        self._responsive = True

    async def run(self) -> None:
        """Watch until the session ends or the plugin was silent for too long."""
        timings, loop = self._timings, asyncio.get_running_loop()
        while not self._session.closed:
            asked_s = loop.time()
            pong = self._tasks.start(self._ping(), name="ping")
            while not pong.done():
                waiting_since_s = loop.time()
                await asyncio.wait([pong], timeout=timings.ping_interval_s)
                if loop.time() - waiting_since_s > 2 * timings.ping_interval_s:
                    asked_s = loop.time()  # it was this process that did not run
                silent_s = loop.time() - max(asked_s, self._session.last_received_s)
                if not pong.done() and silent_s >= timings.ping_kill_s:
                    self._kill(f"silent for {silent_s:.1f} s")
                    return
                self._note(pong.done() or silent_s < timings.ping_unresponsive_s)
            await asyncio.sleep(max(0.0, timings.ping_interval_s - (loop.time() - asked_s)))

    async def _ping(self) -> None:
        try:
            await self._session.ping()
        except AbiError:
            pass  # the session ended, which its owner sees

    def _note(self, responsive: bool) -> None:
        if responsive is not self._responsive:
            self._responsive = responsive
            self._on_change(responsive)
