"""How late an event loop runs its timers, for `pong`."""

import asyncio
from collections.abc import Callable
from typing import Final

_PERIOD_S: Final = 0.1


class LagMeter:
    """Samples the loop only while there is work: an idle plugin is not woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, is_busy: Callable[[], bool]) -> None:
        self._loop = loop
        self._is_busy = is_busy
        self._worst_s = 0.0
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def work_began(self) -> None:
        """A call came in. Sampling ends by itself, one period after the last call: timers per call are dear."""
        if self._timer is None:
            self._wait()

    def stop(self) -> None:
        """The session ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst_ms(self) -> float:
        """The largest delay since this was last asked, one that is going on included."""
        if self._timer is not None:
            self._note()
        worst_s, self._worst_s = self._worst_s, 0.0
        return round(worst_s * 1000, 1)

    def _wait(self) -> None:
        self._due_s = self._loop.time() + _PERIOD_S
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        self._note()
        self._timer = None
        if self._is_busy():
            self._wait()

    def _note(self) -> None:
        self._worst_s = max(self._worst_s, self._loop.time() - self._due_s)
