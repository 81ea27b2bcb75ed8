"""Virtual time: an hour passes as fast as the code in it runs, in the same order each time."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Final

from host.tasks import TaskGroup

Work = Callable[[], Coroutine[Any, Any, None]]


class VirtualTime:
    """A clock in seconds from 0. It moves when everybody waits for it, and then to the earliest moment awaited.

    One waiter at a time is woken, and the next one when that has ended or waits again: what runs in between may do real
    I/O (a plugin process answers), and still everything happens in one order.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: Final[list[tuple[float, int, Work | asyncio.Future[None]]]] = []
        self._tick: Final = count()
        self._running = 0
        self._idle: Final = asyncio.Event()

    def now(self) -> float:
        """The present moment."""
        return self.now_s

    def at(self, moment_s: float, work: Work) -> None:
        """Start `work` at a moment."""
        heapq.heappush(self._queue, (moment_s, next(self._tick), work))

    async def sleep(self, delay_s: float) -> None:
        """Wait for `delay_s` of virtual time. Only for what was started by `at`."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (self.now_s + max(0.0, delay_s), next(self._tick), woken))
        self._less()
        await woken

    async def run(self) -> None:
        """Until nobody waits any more. Raises what `work` raised; cancelling it cancels all of them."""
        tasks = TaskGroup("simulation")
        failures: list[BaseException] = []

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)
            self._less()

        try:
            while self._queue and not failures:
                self.now_s, _, next_one = heapq.heappop(self._queue)
                self._running += 1
                self._idle.clear()
                if isinstance(next_one, asyncio.Future):
                    next_one.set_result(None)
                else:
                    tasks.start(next_one(), name="request", on_done=ended)
                await self._idle.wait()
        finally:
            await tasks.stop()
        if failures:
            raise failures[0]

    def _less(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
