"""Cooldowns of all nodes that share state: a block that one sets, or ends, is respected by the others at once.

Each change is published, and kept under a key until the block ends, for nodes that come later. Nobody waits for any of
it: while the server is away each node goes by what it knows, and when it is back everybody reads what the others found
out and tells what it found out itself. Of two pictures of one credential and model the later evidence wins. Times
travel as Unix seconds: the clocks of the nodes have to agree as well as blocks are meant to be exact.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from math import isfinite
from typing import Final, Protocol

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from host.credentials.classify import PASSING, Verdict
from host.credentials.cooldown import ALL_MODELS, Cause, CooldownBook, CoolState
from host.state.store import UNREADABLE, SharedState, StateError, StateUnavailable
from host.tasks import TaskGroup

log = structlog.get_logger("host.credentials.cooldowns")

NAMESPACE: Final = "cooldown"
TOPIC: Final = "cooldown"
MAX_MESSAGE_ROWS: Final = 100
STEP_S: Final = 1.0
"""By how much the wall clock may be corrected before it counts as set."""
_PURGE_ABOVE: Final = 1024
_SAME_S: Final = 0.01
"""Two ends of a block that differ by less are one: clocks were read at different moments."""

Key = tuple[str, str]
"""Credential id and model."""


class CooldownRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one credential and model. Times are Unix seconds."""

    credential: str
    model: str = ""
    """Empty: the whole credential."""
    at_s: float
    """When the evidence came."""
    until_s: float
    """When the block ends; of an ended block when it would have."""
    ended: bool = False
    """Something proved that the block is over."""
    reason: str = ""
    quota: bool = False
    exact: bool = False
    forced: bool = False
    level: int = 0
    status: int = 0
    code: str = ""
    message: str = ""
    rest_s: float = 0.0
    """From the evidence to the end: what no clock can change. 0: not told."""
    origin: str = ""
    """Names the evidence, whatever the clocks say."""
    cleared_s: float = 0.0
    """Evidence up to here is void: it was proved wrong, or its block had ended, before this came."""
    guard_s: float = 0.0
    """Until when a node that was cut off may still believe what this has overruled; 0: no longer than the block."""

    @property
    def key(self) -> Key:
        """What the row is about."""
        return self.credential, self.model

    @property
    def told_until_s(self) -> float:
        """How long it has to be there for whoever comes back."""
        return max(self.until_s, self.guard_s)


_ROWS: Final = msgspec.msgpack.Decoder(list[CooldownRow])
_ROW: Final = msgspec.msgpack.Decoder(CooldownRow)


def merged(one: CooldownRow, other: CooldownRow) -> CooldownRow:
    """What is so when both were reported, in whichever order: the later evidence, but what an upstream said is not
    shortened by a later guess, and a refused key not mended by a limit that ends soon."""
    older, newer = sorted((one, other), key=lambda row: (row.at_s, row.until_s, row.ended))
    corrects = newer.exact and not older.exact and (older.reason == newer.reason or older.reason in PASSING)
    is_void = older.ended or older.at_s <= newer.cleared_s
    if is_void or newer.ended or corrects or older.until_s <= newer.until_s:
        return _in_place_of(older, newer, older.at_s if older.ended else older.cleared_s)
    cleared_s = max(older.cleared_s, newer.cleared_s)
    return replace(older, at_s=newer.at_s, level=max(older.level, newer.level), cleared_s=cleared_s)


def _in_place_of(before: CooldownRow, row: CooldownRow, cleared_s: float) -> CooldownRow:
    """The row, remembering what it stands in place of: who still believes that is to learn that it is over."""
    guard_s = max(row.guard_s, before.told_until_s)
    guard_s = guard_s if guard_s > row.until_s else 0.0
    cleared_s = max(row.cleared_s, cleared_s)
    if (row.guard_s, row.cleared_s) == (guard_s, cleared_s):
        return row
    return replace(row, guard_s=guard_s, cleared_s=cleared_s)


class Accepts(Protocol):
    """Whether a node lets a credential rest: it has it, and cooling is on for it or the block is `forced`."""

    def __call__(self, credential_id: str, *, forced: bool) -> bool: ...


class SharedCooldowns:
    """One per process. `start` connects the book; from then on its changes are told, and those of others entered."""

    def __init__(
        self,
        book: CooldownBook,
        shared: SharedState,
        tasks: TaskGroup,
        *,
        accepts: Accepts,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._book: Final = book
        self._shared: Final = shared
        self._tasks: Final = tasks
        self._accepts: Final = accepts
        self._wall: Final = wall_clock
        self._name: Final = secrets.token_hex(4)
        self._numbers: Final = count()
        self._rows: dict[Key, CooldownRow] = {}
        """The newest picture of everything that anybody told and that has not ended by itself."""
        self._entered: dict[str, dict[str, tuple[float, float, int]]] = {}
        """What the book said of a credential when it and the rows were of one opinion, by model."""
        self._offset_s = wall_clock() - book.clock()
        """From the clock of the book to the wall clock, as the rows have it."""
        self._dirty: set[str] = set()
        self._outbox: list[CooldownRow] = []
        self._untold: set[Key] = set()
        """What the others were not told, whether the server has it or not."""
        self._purge_above = _PURGE_ABOVE
        self._entering = False
        self._telling = False
        self._reading = False
        self._read_again = False
        self._asking = False
        """What the others know is being read: what is told now might replace what is not known yet."""

    def start(self) -> None:
        """Before the shared state is started."""
        self._book.listeners.append(self._changed)
        self._shared.subscribe(TOPIC, self._heard)
        self._shared.on_available(self._read_soon)

    def follow(self) -> None:
        """The credentials are others: enter what was heard of those that are new."""
        self._collect()  # also notices a clock that was set
        self._purge()
        if self._outbox:
            self._tell_soon()
        for row in tuple(self._rows.values()):
            self._enter(row)

    def _changed(self, credential_id: str) -> None:
        if self._entering:
            return
        self._dirty.add(credential_id)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            # All changes of one moment go in one message.
            self._tasks.start(self._tell(), name="tell-cooldowns")

    async def _tell(self) -> None:
        try:
            while True:
                self._collect()
                if self._asking:
                    return  # told after it
                rows, self._outbox = self._outbox, []
                if not rows:
                    return
                await self._send(rows)
        finally:
            self._telling = False

    def _heard(self, message: bytes) -> None:
        try:
            rows = _ROWS.decode(message)
        except UNREADABLE as error:
            log.warning("cooldowns.unreadable", reason=str(error))
            return
        self._take_over(rows)

    def _take_over(self, rows: Iterable[CooldownRow]) -> None:
        self._collect()
        now_s = self._wall()
        for told in rows:
            if not isfinite(told.at_s + told.until_s + told.rest_s + told.cleared_s + told.guard_s):
                continue
            known, row = self._rows.get(told.key), _bounded(told, now_s)
            if known is not None and row.origin and row.origin == known.origin and (known.ended or not row.ended):
                continue  # known already, even when a clock was set since it was told
            found = row if known is None else merged(known, row)
            if found == known or found.told_until_s <= now_s:
                continue
            self._note(found)
            self._enter(found)

    def _enter(self, row: CooldownRow) -> None:
        """Make the book agree with a row, unless it does already."""
        book, now_s = self._book, self._wall()
        if row.told_until_s <= now_s or not self._accepts(row.credential, forced=row.forced):
            return
        state = book.states(row.credential).get(row.model)
        self._entering = True
        try:
            if row.ended or row.until_s <= now_s:
                if state is not None and not state.blocked:
                    return  # its level is remembered
                self._entered.get(row.credential, {}).pop(row.model, None)
                book.forget(row.credential, row.model)
                return
            shift_s = book.clock() - now_s
            if state is None or abs(state.until_s - row.until_s - shift_s) > _SAME_S or state.reason != row.reason:
                book.adopt(
                    row.credential,
                    row.model,
                    _verdict_of(row),
                    since_s=row.at_s + shift_s,
                    until_s=row.until_s + shift_s,
                    level=row.level,
                    cause=Cause(row.status, row.code, row.message),
                )
            entered = self._entered.setdefault(row.credential, {})
            entered[row.model] = _mark(book.states(row.credential)[row.model])
        finally:
            self._entering = False

    def _collect(self) -> None:
        """Put what changed in the book, and did not come from others, among the rows and in the outbox."""
        self._notice_step()
        for credential_id in self._dirty:
            for row in self._news_of(credential_id):
                self._note(row)
                self._outbox.append(row)
        self._dirty.clear()

    def _notice_step(self) -> None:
        """When the wall clock was set, the rows get the times that their moments have now, and are told so: else a
        block would last longer by as much as the clock was set back."""
        offset_s = self._wall() - self._book.clock()
        step_s = offset_s - self._offset_s
        if abs(step_s) <= STEP_S:
            return
        self._offset_s = offset_s
        for key, row in self._rows.items():
            self._rows[key] = replace(
                row,
                at_s=row.at_s + step_s,
                until_s=row.until_s + step_s,
                cleared_s=row.cleared_s and row.cleared_s + step_s,
                guard_s=row.guard_s and row.guard_s + step_s,
            )
        self._purge()
        self._outbox.extend(self._rows.values())
        if self._outbox:
            self._tell_soon()

    def _news_of(self, credential_id: str) -> list[CooldownRow]:
        """What the book says now and did not say before."""
        now_s, book = self._wall(), self._book
        states, entered = book.states(credential_id), self._entered.setdefault(credential_id, {})
        shift_s = now_s - book.clock()
        found = []
        for model, state in tuple(states.items()):
            if entered.get(model) == _mark(state):
                continue
            entered[model] = _mark(state)
            if not state.blocked:
                continue
            news = _row_of(state, shift_s, f"{self._name}:{next(self._numbers)}")
            known = self._rows.get(news.key)
            if not state.restored or known is None:
                found.append(self._later(news))
            elif merged(known, news) == known:
                # What an earlier process left is older than what the others know.
                self._enter(known)
            else:
                found.append(merged(known, news))
        for model in [model for model in entered if model not in states]:
            del entered[model]
            row = self._rows.get((credential_id, model))
            if row is None or row.ended or row.until_s <= now_s:
                continue  # ended by itself, for everybody
            if self._accepts(credential_id, forced=row.forced):
                found.append(self._later(replace(row, at_s=now_s, ended=True)))
            else:
                # Gone or switched off here: that says nothing about how it does elsewhere.
                del self._rows[row.key]
        if not entered:
            del self._entered[credential_id]
        return found

    def _later(self, row: CooldownRow) -> CooldownRow:
        """The row, later than what it was found in spite of: the clock of whoever told that may be ahead."""
        known = self._rows.get(row.key)
        if known is None:
            return row
        is_over = known.ended or known.until_s <= self._wall()
        row = replace(row, at_s=max(row.at_s, known.at_s + 0.001))
        return _in_place_of(known, row, known.at_s if is_over else known.cleared_s)

    def _note(self, row: CooldownRow) -> None:
        self._rows[row.key] = row
        if len(self._rows) > self._purge_above:
            self._purge()
            self._purge_above = max(_PURGE_ABOVE, 2 * len(self._rows))

    async def _send(self, rows: Sequence[CooldownRow]) -> None:
        """Store and publish; nothing while the server is away: what it misses is told when it is back.

        Stored first: whoever subscribes and then reads has missed neither.
        """
        for start in range(0, len(rows), MAX_MESSAGE_ROWS):
            some = rows[start : start + MAX_MESSAGE_ROWS]
            if self._shared.available:
                await asyncio.gather(*(self._keep(row) for row in some))
            if not (self._shared.available and await self._shared.publish(TOPIC, msgspec.msgpack.encode(some))):
                self._untold.update(row.key for row in some)

    async def _keep(self, row: CooldownRow) -> None:
        ttl_s = row.told_until_s - self._wall()
        if ttl_s <= 0:
            return
        try:
            await self._shared.store.set(NAMESPACE, _name(row), msgspec.msgpack.encode(row), ttl_s=ttl_s)
        except StateUnavailable:
            return
        except StateError as error:
            log.warning("cooldowns.not_kept", reason=str(error))

    def _read_soon(self) -> None:
        if self._reading:
            self._read_again = True
            return
        self._reading = self._asking = True
        self._tasks.start(self._read(), name="read-cooldowns")

    async def _read(self) -> None:
        """Take over what is stored, then tell what nobody else knows."""
        try:
            while True:
                self._read_again = False
                self._asking = True
                try:
                    stored = _decoded(await self._shared.store.items(NAMESPACE))
                    self._take_over(stored.values())
                    self._purge()
                    self._asking = False
                    self._outbox.clear()  # it is among the rows
                    untold, self._untold = self._untold, set()
                    await self._send(
                        [row for key, row in self._rows.items() if key in untold or stored.get(key) != row]
                    )
                except StateError as error:
                    log.warning("cooldowns.not_read", reason=str(error))
                if not self._read_again:
                    break
            self._asking = False
            if self._outbox:
                self._tell_soon()
        finally:
            self._reading = self._asking = False

    def _purge(self) -> None:
        now_s = self._wall()
        for key in [key for key, row in self._rows.items() if row.told_until_s <= now_s]:
            del self._rows[key]
        self._untold &= self._rows.keys()


def _bounded(row: CooldownRow, now_s: float) -> CooldownRow:
    """The row, lasting no longer than when it was told: whoever told it may have another idea of the time."""
    if not row.rest_s or row.until_s <= now_s + row.rest_s:
        return row
    return replace(row, until_s=now_s + row.rest_s)


def _row_of(state: CoolState, shift_s: float, origin: str) -> CooldownRow:
    return CooldownRow(
        credential=state.credential_id,
        model=state.model,
        at_s=state.since_s + shift_s,
        until_s=state.until_s + shift_s,
        reason=state.reason,
        quota=state.quota,
        exact=state.exact,
        forced=state.forced,
        level=state.level,
        status=state.cause.status,
        code=state.cause.code,
        message=state.cause.message,
        rest_s=state.until_s - state.since_s,
        origin=origin,
    )


def _verdict_of(row: CooldownRow) -> Verdict:
    return Verdict(
        rotate=True,
        reason=row.reason,
        status=row.status,
        quota=row.quota,
        exact=row.exact,
        forced=row.forced,
        whole_credential=row.model == ALL_MODELS,
    )


def _mark(state: CoolState) -> tuple[float, float, int]:
    return state.since_s, state.until_s, state.level


def _name(row: CooldownRow) -> str:
    return f"{row.credential}\0{row.model}"


def _decoded(items: Mapping[str, bytes]) -> dict[Key, CooldownRow]:
    found = {}
    for data in items.values():
        try:
            row = _ROW.decode(data)
        except UNREADABLE as error:
            log.warning("cooldowns.unreadable", reason=str(error))
            continue
        found[row.key] = row
    return found
