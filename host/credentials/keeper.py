"""Keeping cooldowns: from the book to the stores and back, from the monotonic clock to the wall clock and back.

Blocks live on the monotonic clock, which nobody can set; what is stored carries times of the wall clock, which mean the
same after a restart and on another machine. The stores are written in the background, one save at a time; what changes
meanwhile goes into the next one, and so does what could not be written. A block that has ended leaves them by itself.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from host.credentials.classify import MAX_RETRY_AFTER_S, Verdict
from host.credentials.cooldown import ALL_MODELS, Cause, CooldownBook, CoolState
from host.credentials.records import Credential
from host.credentials.values import time_like
from host.state.cooldowns import VERSION, CooldownRecord, CooldownSet, CooldownStore, ErrorRecord, QuotaRecord
from host.state.store import StateError
from host.tasks import TaskGroup

log = structlog.get_logger("host.credentials.keeper")

RETRY_S: Final = 5.0
"""After a store could not be written."""
PRUNE_S: Final = 5.0
"""Between two looks at what has ended: each costs a write."""
STEP_S: Final = 1.0
"""By how much the wall clock may be corrected before what is stored has to be told."""
_AT_ONCE: Final = 500
"""Credentials rendered before others get a turn."""

Usable = Callable[[str], Credential | None]
"""The credential with this id, when it is enabled and its failures set it aside."""


class CooldownKeeper:
    """Follows one book. Without stores it costs one function call per change."""

    def __init__(
        self,
        book: CooldownBook,
        *,
        usable: Usable,
        tasks: TaskGroup,
        canonical: Callable[[str], str],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`canonical`: the one name of a model; older stores may hold others."""
        self._book: Final = book
        self._usable: Final = usable
        self._tasks: Final = tasks
        self._canonical: Final = canonical
        self._wall_clock: Final = wall_clock
        self._stores: tuple[CooldownStore, ...] = ()
        self._every: dict[str, CooldownSet] = {}
        self._facts: dict[str, object] = {}
        """What was stored last of each credential, to tell whether it differs."""
        self._dirty: set[str] = set()
        self._saving: asyncio.Task[None] | None = None
        self._unsaved: set[str] = set()
        """Whose last save failed."""
        self._again: asyncio.TimerHandle | None = None
        self._ends: dict[str, float] = {}
        """When the first block of a credential ends, of those that are stored."""
        self._pruning: asyncio.TimerHandle | None = None
        self._offset_s = wall_clock() - book.clock()
        """From the clock of the book to the wall clock."""
        book.listeners.append(self._changed)

    async def open(self, stores: Sequence[CooldownStore]) -> None:
        """Use these stores from now on: take over what they keep, then write what is true. Stores that are used already
        are not read again; those that are not named any more are emptied."""
        new = [store for store in stores if store not in self._stores]
        old = [store for store in self._stores if store not in stores]
        await self.flush()
        # What changes from here on must not be written to a store that has just been emptied.
        self._stores = tuple(store for store in self._stores if store in stores)
        for store in old:
            await self._save_to(store, {}, set(self._every))
        for store in new:
            await self._load(store)
        self._stores = tuple(stores)
        if new:
            self._dirty.update(credential_id for credential_id, _ in self._book.all_states())
            self._dirty.update(self._every)  # nobody followed what ended while there was no store
            self._start_saving(always=True)
            await self.flush()

    async def flush(self) -> None:
        """Return once everything was written that is known now, or could not be."""
        while self._saving is not None:
            await asyncio.wait([self._saving])

    async def stop(self) -> None:
        """Write what is left, what could not be written so far once more."""
        if self._again is not None:
            self._again.cancel()
            self._try_again()
        if self._stores:
            self._look_at_clocks()
            if self._dirty:
                self._start_saving()
        await self.flush()
        for timer in (self._again, self._pruning):
            if timer is not None:
                timer.cancel()
        self._again = self._pruning = None

    async def _load(self, store: CooldownStore) -> None:
        try:
            found = await store.load()
        except (OSError, StateError) as error:
            log.error("cooldowns.not_loaded", reason=str(error))
            return
        for each in found:
            self._restore(each)

    def _restore(self, found: CooldownSet) -> None:
        """Records that are still true, whole-credential ones last. Several names of one model are one block."""
        if self._usable(found.auth_id) is None:
            return
        for record in sorted(found.records, key=lambda record: not record.model):
            left_s = self._left_s(record)
            if left_s <= 0:
                continue
            error = record.last_error
            self._book.restore(
                found.auth_id,
                self._canonical(record.model),
                Verdict(
                    rotate=True,
                    reason=record.reason,
                    cooldown_s=left_s,
                    exact=record.exact,
                    forced=record.forced,
                    quota=record.quota.exceeded,
                    whole_credential=not record.model,
                ),
                since_s=self._since_s(record),
                level=record.quota.backoff_level,
                cause=Cause(error.http_status, error.code, error.message) if error is not None else Cause(),
            )

    def _since_s(self, record: CooldownRecord) -> float:
        """When the evidence for a stored block came, on the clock of the book; at the latest when it was written."""
        since_s = time_like(record.since) or time_like(record.updated_at)
        return self._book.clock() - (self._wall_clock() - since_s if since_s is not None else 0.0)

    def _left_s(self, record: CooldownRecord) -> float:
        """How long a stored block still lasts. A clock that was set back makes none longer than it was when it was
        written, or than any can be."""
        until_s, written_s = time_like(record.next_retry_after), time_like(record.updated_at)
        if until_s is None:
            return 0.0
        longest_s = MAX_RETRY_AFTER_S if written_s is None else min(until_s - written_s, MAX_RETRY_AFTER_S)
        return min(until_s - self._wall_clock(), longest_s)

    def _changed(self, credential_id: str) -> None:
        if self._stores:
            self._dirty.add(credential_id)
            self._start_saving()

    def _start_saving(self, *, always: bool = False) -> None:
        if self._saving is None:
            try:
                self._saving = self._tasks.start(self._save(always), name="cooldowns")
            except RuntimeError:
                log.warning("cooldowns.too_late")

    async def _save(self, always: bool) -> None:
        """Write until nothing changes any more."""
        try:
            while self._dirty or always:
                self._look_at_clocks()
                changed = await self._rendered()
                if changed or always:
                    await self._save_everywhere(changed)
                always = False
        finally:
            self._saving = None
        self._prune_later()

    async def _save_everywhere(self, changed: set[str]) -> None:
        every = dict(self._every)
        saved = [await self._save_to(store, every, changed) for store in self._stores]
        if all(saved):
            return
        self._unsaved |= changed
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        unsaved, self._unsaved = self._unsaved, set()
        for credential_id in unsaved:
            self._facts.pop(credential_id, None)
        self._dirty |= unsaved
        # Even when nobody is left to write about: what an earlier save wrote may have to go.
        self._start_saving(always=True)

    def _prune_later(self) -> None:
        """Look again when the next block has ended."""
        if self._pruning is not None:
            self._pruning.cancel()
            self._pruning = None
        if self._ends and self._stores:
            wait_s = max(PRUNE_S, min(self._ends.values()) - self._book.clock())
            self._pruning = asyncio.get_running_loop().call_later(wait_s, self._prune)

    def _prune(self) -> None:
        self._pruning = None
        self._dirty |= self._ended()
        if self._dirty:
            self._start_saving()
        else:
            self._prune_later()

    def _ended(self) -> set[str]:
        now_s = self._book.clock()
        return {credential_id for credential_id, end_s in self._ends.items() if end_s <= now_s}

    def _look_at_clocks(self) -> None:
        """Write anew what has ended, and everything when the wall clock was set: its times mean another moment now."""
        self._dirty |= self._ended()
        offset_s = self._wall_clock() - self._book.clock()
        if abs(offset_s - self._offset_s) > STEP_S:
            self._offset_s = offset_s
            self._dirty |= self._every.keys()
            self._facts.clear()

    async def _save_to(self, store: CooldownStore, every: dict[str, CooldownSet], changed: Collection[str]) -> bool:
        try:
            await store.save(every, changed)
        except (OSError, StateError) as error:
            log.error("cooldowns.not_saved", reason=str(error))
            return False
        return True

    async def _rendered(self) -> set[str]:
        """Bring the sets up to date; who of the dirty ones really differs."""
        dirty, self._dirty = self._dirty, set()
        changed: set[str] = set()
        for number, credential_id in enumerate(dirty):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            states = self._open_states(credential_id)
            now = self._set_of(credential_id, states)
            facts = now and [(it.model, it.until_s, it.reason, it.level) for it in states]
            if facts == self._facts.get(credential_id) and (now is None) is (credential_id not in self._every):
                continue
            changed.add(credential_id)
            if now is None:
                self._every.pop(credential_id, None)
                self._facts.pop(credential_id, None)
                self._ends.pop(credential_id, None)
            else:
                self._every[credential_id] = now
                self._facts[credential_id] = facts
                self._ends[credential_id] = min(it.until_s for it in states)
        return changed

    def _open_states(self, credential_id: str) -> list[CoolState]:
        now_s = self._book.clock()
        return [state for state in self._book.states(credential_id).values() if state.until_s > now_s]

    def _set_of(self, credential_id: str, states: Sequence[CoolState]) -> CooldownSet | None:
        credential = self._usable(credential_id)
        if credential is None or not states:
            return None
        at = _text_of(self._wall_clock())
        return CooldownSet(
            version=VERSION,
            auth_id=credential_id,
            provider=credential.provider,
            updated_at=at,
            path=credential.path if credential.source_kind == "file" else "",
            records=[self._record(credential, state, at) for state in sorted(states, key=lambda it: it.model)],
        )

    def _record(self, credential: Credential, state: CoolState, at: str) -> CooldownRecord:
        shift_s = self._wall_clock() - self._book.clock()
        until = _text_of(state.until_s + shift_s)
        cause = state.cause
        return CooldownRecord(
            auth_id=credential.id,
            status="cooling",
            next_retry_after=until,
            provider=credential.provider,
            model="" if state.model == ALL_MODELS else state.model,
            reason=state.reason,
            exact=state.exact,
            forced=state.forced,
            quota=QuotaRecord(
                exceeded=state.quota,
                reason=state.reason if state.quota else "",
                next_recover_at=until if state.quota else None,
                backoff_level=state.level,
            ),
            last_error=ErrorRecord(message=cause.message, code=cause.code, http_status=cause.status)
            if cause != Cause()
            else None,
            since=_text_of(state.since_s + shift_s),
            updated_at=at,
        )


def _text_of(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
