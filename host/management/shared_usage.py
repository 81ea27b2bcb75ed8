"""Usage records of all nodes in one queue on the state server; what it cannot take now waits in this process."""

import asyncio
import secrets
from typing import Any, Final

import msgspec
import structlog

from host.management.error_events import ErrorEvents
from host.management.records import MAX_RECORDS, Records
from host.pipeline.settle import rfc3339
from host.state.store import SharedQueue, SharedState, StateError
from host.tasks import TaskGroup

log = structlog.get_logger("host.management.shared_usage")

COLLECT_S: Final = 0.05
"""Records are sent together, at most this long after the first."""
BATCH: Final = 200


class SharedUsage:
    """Sends what `records` holds to the queue, oldest first. A record is in one of the two places, never in both."""

    def __init__(
        self, records: Records, shared: SharedState, queue: SharedQueue, tasks: TaskGroup, *, events: ErrorEvents
    ) -> None:
        """Before the shared state is started."""
        self._events: Final = events
        self._shared: Final = shared
        self._records: Final = records
        self._queue: Final = queue
        self._tasks: Final = tasks
        self._sending: Final = asyncio.Lock()
        self._waiting: asyncio.TimerHandle | None = None
        self._batch: tuple[str, list[bytes]] | None = None
        """Sent without a known outcome: the same again until there is one."""
        self._is_stopped = False
        shared.on_available(self._soon)
        records.on_used = self._soon
        records.on_failed = events.note

    async def take(self, count: int) -> list[Any]:
        """Up to `count` records of all nodes, oldest first; they are gone then. Raises StateError."""
        # A full server takes nothing more, and is emptied by taking from it.
        await self._try_to_send()
        taken = await self._queue.take(count, oldest=self._time(-self._records.retention_s))
        return [_without_queued_at(msgspec.json.decode(item)) for item in taken]

    async def send(self) -> None:
        """Send everything that waits. Raises StateError; what was not sent is kept."""
        async with self._sending:
            while True:
                if self._batch is None:
                    if not (items := self._records.take_encoded(BATCH)):
                        return
                    self._batch = (secrets.token_hex(8), items)
                name, items = self._batch
                ttl_s = self._records.retention_s
                # From now on it waits: when its request began says nothing about that.
                now = b',"queued_at":"%s"}' % self._time().encode()
                queued, oldest = [item.removesuffix(b"}") + now for item in items], self._time(-ttl_s)
                await self._queue.push(queued, batch=name, oldest=oldest, keep=MAX_RECORDS, ttl_s=ttl_s)
                self._batch = None

    async def stop(self) -> None:
        """Send what is left. A server that is away now loses it."""
        self._is_stopped = True
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        await self._try_to_send()

    def _time(self, later_s: float = 0.0) -> str:
        return rfc3339(self._shared.wall_s() + later_s)

    def _soon(self) -> None:
        if self._waiting is None and not self._is_stopped:
            self._waiting = asyncio.get_running_loop().call_later(COLLECT_S, self._due)

    def _due(self) -> None:
        self._waiting = None
        if not self._is_stopped:
            self._tasks.start(self._try_to_send(), name="send-usage")

    async def _try_to_send(self) -> None:
        try:
            await self.send()
            # Whoever listens hears of it now or not at all.
            if events := self._events.take():
                await self._queue.announce(events)
        except StateError as error:
            # Sent with the next record, or when the server is back.
            log.debug("usage.not_sent", reason=str(error))


def _without_queued_at(record: Any) -> Any:
    """A record as it was before it was queued; what others have put there as it is."""
    if isinstance(record, dict):
        record.pop("queued_at", None)
    return record
