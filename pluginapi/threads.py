"""Threads for `@blocking` hooks."""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

R = TypeVar("R")


class HookThreads:
    """Runs blocking functions in up to `size` daemon threads, started as they are needed.

    Not the loop's default executor: a plugin that blocks for ever would take the host's threads with it, and
    `concurrent.futures` joins its threads at exit, so a stuck hook would keep a dying process alive.
    """

    def __init__(self, name: str, *, size: int) -> None:
        self._name: Final = name
        self._size: Final = size
        self._work: Final[queue.SimpleQueue[Callable[[], None] | None]] = queue.SimpleQueue()
        self._started = 0
        self._busy = 0
        self._closed = False

    async def run(self, function: Callable[[], R]) -> R:
        """Wait for `function` in a thread, with the caller's context variables. Raises what it raises.

        Cancelling the wait does not stop the thread. Raises RuntimeError after `close`.
        """
        if self._closed:
            raise RuntimeError(f"the threads of {self._name} are closed")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                result, error = context.run(function), None
            except BaseException as raised:  # handed to the waiting task, which decides
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(self._settle, done, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                pass

        self._busy += 1
        self._start_thread_if_needed()
        self._work.put(work)
        return await done

    def close(self) -> None:
        """Let idle threads end; busy ones end with their function. Idempotent."""
        if not self._closed:
            self._closed = True
            for _ in range(self._started):
                self._work.put(None)

    def _settle(self, done: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        elif isinstance(error, StopIteration):
            # A future refuses it; the same text Python itself uses in coroutines.
            done.set_exception(RuntimeError("blocking hook raised StopIteration"))
        else:
            done.set_exception(error)

    def _start_thread_if_needed(self) -> None:
        if self._busy > self._started and self._started < self._size:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}:{self._started}", daemon=True).start()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
