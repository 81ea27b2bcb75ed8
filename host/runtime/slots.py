"""How many calls a plugin works on at once, and who waits for a turn."""

import asyncio
from collections import deque

from pluginabi.errors import Phase, PluginTransportError
from pluginabi.limits import QUEUE_MAX_CALLS


class Slots:
    """`max_inflight` calls until their `result`; beyond that a bounded queue, first come, first served.

    The caller takes a free slot itself (`free`), because this is on the path of every call.
    """

    def __init__(self, plugin_id: str, *, max_inflight: int, wait_s: float) -> None:
        self.free = max_inflight
        self.max_inflight = max_inflight
        self._plugin_id = plugin_id
        self._wait_s = wait_s
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed: tuple[Phase, str] | None = None

    @property
    def taken(self) -> int:
        """Slots in use, those of abandoned calls without an answer included."""
        return self.max_inflight - self.free

    @property
    def waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self, method: str) -> None:
        """Take a slot, waiting for one if need be. Raises PluginTransportError (overload, or why it was closed)."""
        if self._closed is not None:
            raise self._error(method, *self._closed)
        if self.free > 0:
            self.free -= 1
            return
        if len(self._waiters) >= QUEUE_MAX_CALLS and self.waiting >= QUEUE_MAX_CALLS:
            raise self._error(method, "overload", f"{QUEUE_MAX_CALLS} calls wait for it already")
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter
        except TimeoutError:
            self._give_up(waiter)
            raise self._error(method, "overload", f"no turn within {self._wait_s:g} s") from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        if self._closed is not None:
            raise self._error(method, *self._closed)

    def release(self) -> None:
        """Give a slot back, or hand it to whoever waits longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.free += 1

    def close(self, phase: Phase, cause: str) -> None:
        """Nobody gets a slot any more; those who wait fail now."""
        self._closed = (phase, cause)
        self.free = 0
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _give_up(self, waiter: "asyncio.Future[None]") -> None:
        # The slot may have been handed over in the same turn of the loop in which the wait ended.
        if waiter.done() and not waiter.cancelled() and self._closed is None:
            self.release()
        waiter.cancel()

    def _error(self, method: str, phase: Phase, cause: str) -> PluginTransportError:
        return PluginTransportError(self._plugin_id, method, phase=phase, cause=cause)
