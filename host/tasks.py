"""Tasks with an owner, a name and an end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("host.tasks")


class TaskGroup:
    """Owns background tasks: keeps them referenced, logs what they raise, cancels and awaits them on `stop`.

    Unlike `asyncio.TaskGroup` one failing task does not cancel the others: a plugin's supervisor must not take down
    its neighbour's.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def start(
        self, work: Coroutine[Any, Any, Any], *, name: str, on_done: Callable[[asyncio.Task[Any]], None] | None = None
    ) -> asyncio.Task[Any]:
        """Run `work` until it ends or the group stops. Raises RuntimeError after `stop`."""
        if self._stopped:
            work.close()
            raise RuntimeError(f"task group {self._owner} is stopped")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        if on_done is not None:
            task.add_done_callback(on_done)
        return task

    async def stop(self) -> None:
        """Cancel what still runs and wait for it; safe to call twice."""
        self._stopped = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def join(self) -> None:
        """Wait until every task has ended on its own."""
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            await asyncio.wait(tasks)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=task.get_name(), exc_info=error)
