"""Where round robins stand, over all nodes that share state: who is new goes on where the others are.

A pick knows nothing of it: a worker looks at the cursors a few times a second, and tells which have moved. A node that
is busy with a cursor keeps its own turns, for they are exactly even, and those of a group that is corrected while it
moves are not; one that has not moved for a while goes to where the others are. Nobody waits for any of it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from host.credentials.ready import Members
from host.credentials.select import Cursors
from host.state.store import UNREADABLE, SharedState, StateError
from host.tasks import TaskGroup

log = structlog.get_logger("host.credentials.cursors")

NAMESPACE: Final = "cursor"
TOPIC: Final = "cursor"
LOOK_S: Final = 0.25
"""Between two looks at what has moved."""
QUIET_S: Final = 1.0
"""A cursor that moved here more recently follows nobody."""
KEEP_EVERY_S: Final = 2.0
REFUSED_S: Final = 60.0
"""After a message that the server did not take."""
TTL_S: Final = 3600.0
"""How long a node's cursors are on the server after it moved one."""
MAX_TOLD: Final = 512
"""Cursors of one message, and of one node on the server: the ones that moved last."""

MembersOf = Callable[[str], Members | None]
"""Over whom a cursor goes, as far as that is known."""


class CursorRow(Struct, frozen=True, array_like=True):
    """One cursor."""

    key: str
    position: int
    """Where the next turn begins, among the sender's credentials."""
    last: str
    """The id of whoever stands before that; empty: not known."""
    at_s: float
    """When it moved, in Unix seconds."""


_ROWS: Final = msgspec.msgpack.Decoder(list[CursorRow])


class SharedCursors:
    """One per process. Start and stop it with the shared state's event loop."""

    def __init__(
        self,
        cursors: Cursors,
        shared: SharedState,
        *,
        members_of: MembersOf,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cursors: Final = cursors
        self._shared: Final = shared
        self._members_of: Final = members_of
        self._clock: Final = clock
        self._wall: Final = wall_clock
        self._seen: dict[str, int] = {}
        """Where the cursors stood when they were looked at last, or were put."""
        self._moved_s: dict[str, float] = {}
        """When a cursor was last seen to have moved here."""
        self._heard: dict[str, CursorRow] = {}
        """Where others are, until a cursor that moves here has been quiet."""
        self._told: dict[str, CursorRow] = {}
        """What this node keeps on the server, the latest last."""
        self._untold: dict[str, CursorRow] = {}
        """What moved since the others were told, the latest last."""
        self._reads: list[set[str]] = []
        """For each reading that goes on, what others told of meanwhile: what the server has of that is older."""
        self._kept_s = -KEEP_EVERY_S
        self._silent_until_s = 0.0
        self._is_kept = True

    def start(self, tasks: TaskGroup) -> None:
        """Before the shared state is started."""
        self._shared.subscribe(TOPIC, self._hear_message)
        self._shared.on_available(lambda: self._read_soon(tasks))
        tasks.start(self._follow(), name="cursors")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Tell what has moved, and go where others are with what has not. Raises nothing."""
        self._note_moves()
        for row in tuple(self._heard.values()):
            self._take_over(row)
        if not self._shared.available:
            return
        if self._untold and self._clock() >= self._silent_until_s:
            await self._tell()
        if not self._is_kept and self._clock() - self._kept_s >= KEEP_EVERY_S:
            await self._keep()

    async def _tell(self) -> None:
        rows, self._untold = self._untold, {}
        if await self._shared.publish(TOPIC, msgspec.msgpack.encode(list(rows.values()))):
            return
        if self._shared.available:
            # It is refused, and each refusal is logged.
            self._silent_until_s = self._clock() + REFUSED_S
        else:
            self._untold = rows

    def _note_moves(self) -> None:
        positions, seen = self._cursors.positions, self._seen
        if positions == seen:
            return
        now_s, at_s = self._clock(), self._wall()
        moved = [key for key, position in positions.items() if seen.get(key) != position]
        self._seen = dict(positions)
        # Where there are more, which are told is left to chance: all of them are hints.
        rows = [self._row_of(key, at_s) for key in moved[-MAX_TOLD:] if not key.endswith("#shown")]
        for key in moved:
            self._moved_s.pop(key, None)
            self._moved_s[key] = now_s
            self._heard.pop(key, None)  # this is later
        self._moved_s = {key: it for key, it in self._moved_s.items() if key in positions}
        for latest in (self._told, self._untold):
            _add_latest(latest, rows)
        self._is_kept = self._is_kept and not rows

    def _row_of(self, key: str, at_s: float) -> CursorRow:
        position, members = self._cursors.positions[key], self._members_of(key)
        is_known = members is not None and 0 < position <= len(members)
        return CursorRow(key, position, members.ids[position - 1] if members is not None and is_known else "", at_s)

    def _hear_message(self, message: bytes) -> None:
        try:
            rows = _ROWS.decode(message)
        except UNREADABLE as error:
            log.warning("cursors.unreadable", reason=str(error))
            return
        for row in rows[:MAX_TOLD]:
            for told in self._reads:
                told.add(row.key)
            self._take_over(row)

    def _take_over(self, row: CursorRow) -> None:
        """Go where others are, unless the cursor moves here; then look again later."""
        positions, key = self._cursors.positions, row.key
        if positions.get(key) != self._seen.get(key) or row.position < 0:
            self._heard.pop(key, None)
            return
        if self._clock() - self._moved_s.get(key, -QUIET_S) < QUIET_S:
            self._heard[key] = row
            return
        self._heard.pop(key, None)
        if key not in positions and len(positions) >= self._cursors.limit:
            return
        position, members = row.position, self._members_of(key)
        if members is not None:
            # Others may have other credentials: a place among those means nothing here.
            if row.last not in members.positions:
                return
            position = members.positions[row.last] + 1
        positions[key] = self._seen[key] = position
        self._untold.pop(key, None)

    async def _keep(self) -> None:
        self._kept_s, self._is_kept = self._clock(), True
        value = msgspec.msgpack.encode(list(self._told.values()))
        try:
            await self._shared.store.set(NAMESPACE, self._shared.node, value, ttl_s=TTL_S)
        except StateError:
            self._is_kept = False

    def _read_soon(self, tasks: TaskGroup) -> None:
        self._is_kept = not self._told  # it may have come back empty
        tasks.start(self._read(), name="read-cursors")

    async def _read(self) -> None:
        told: set[str] = set()
        self._reads.append(told)
        try:
            found = _latest(await self._shared.store.items(NAMESPACE))
        except StateError:
            return
        finally:
            self._reads = [it for it in self._reads if it is not told]
        own = self._told
        for row in found.values():
            if row.key not in told and (row.key not in own or own[row.key].at_s < row.at_s):
                self._take_over(row)


def _add_latest(latest: dict[str, CursorRow], rows: list[CursorRow]) -> None:
    """Put them last, and let go what is then too much."""
    for row in rows:
        latest.pop(row.key, None)
        latest[row.key] = row
    while len(latest) > MAX_TOLD:
        del latest[next(iter(latest))]


def _latest(items: Mapping[str, bytes]) -> dict[str, CursorRow]:
    """What all nodes have left, of each cursor what is newest."""
    found: dict[str, CursorRow] = {}
    for data in items.values():
        try:
            rows = _ROWS.decode(data)
        except UNREADABLE as error:
            log.warning("cursors.unreadable", reason=str(error))
            continue
        for row in rows[:MAX_TOLD]:
            if row.key not in found or found[row.key].at_s < row.at_s:
                found[row.key] = row
    return found
