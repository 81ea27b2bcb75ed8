"""The deadlines of many calls on one timer of the event loop: most calls end long before theirs."""

import asyncio
import heapq
from collections.abc import Callable, Container
from typing import Final

_TIDY_AT: Final = 256


class Deadlines:
    """Calls `expired(id)` for each id still in `alive` when its time is up.

    An id is never taken out: what is no longer alive is dropped when its time comes or when too much piles up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, alive: Container[int], expired: Callable[[int], None]) -> None:
        self._loop = loop
        self._alive = alive
        self._expired = expired
        self._due: list[tuple[float, int]] = []
        self._tidy_at = _TIDY_AT
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0

    def add(self, call_id: int, timeout_ms: int) -> None:
        """`expired(call_id)` after `timeout_ms`."""
        due_s = self._loop.time() + timeout_ms / 1000
        heapq.heappush(self._due, (due_s, call_id))
        if self._timer is None or due_s < self._timer_s:
            self._arm(due_s)
        if len(self._due) > self._tidy_at:
            self._due = [entry for entry in self._due if entry[1] in self._alive]
            heapq.heapify(self._due)
            self._tidy_at = max(_TIDY_AT, 2 * len(self._due))

    def stop(self) -> None:
        """Nothing expires any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._loop.call_at(due_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._due:
            due_s, call_id = self._due[0]
            if due_s > now_s and call_id in self._alive:
                break
            heapq.heappop(self._due)
            if call_id in self._alive:
                self._expired(call_id)
        if self._due and self._timer is None:
            self._arm(self._due[0][0])
