"""Keep-alives: something harmless is written when a client has waited for a while."""

import asyncio
from collections.abc import Callable


class KeepAlive:
    """Calls `beat` whenever `interval_s` passed without `touch`. A timer, not a task: writes never interleave."""

    __slots__ = ("_beat", "_handle", "_interval_s", "_last_s", "_loop")

    def __init__(self, interval_s: float, beat: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval_s = interval_s
        self._beat = beat
        self._last_s = self._loop.time()
        self._handle: asyncio.TimerHandle | None = self._loop.call_later(interval_s, self._fire)

    def touch(self) -> None:
        """Something was written."""
        self._last_s = self._loop.time()

    def stop(self) -> None:
        """No beat after this; safe to call twice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        now_s = self._loop.time()
        idle_s = now_s - self._last_s
        if idle_s >= self._interval_s * 0.99:
            self._last_s = now_s
            idle_s = 0.0
            self._beat()
        if self._handle is not None:
            self._handle = self._loop.call_later(self._interval_s - idle_s, self._fire)
