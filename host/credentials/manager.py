"""All credentials of the process: configured keys and records of files, in one order, through every reload.

The manager owns the records and says what changed; how well a credential does is kept elsewhere, by id. It lives on the
event loop: no method blocks, nothing here is for other threads.
"""

import asyncio
import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from host.config.model import Config
from host.credentials.configured import ConfiguredKeys
from host.credentials.records import Credential, CredentialChange, HandleMint

ChangeListener = Callable[[CredentialChange], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialHealth:
    """How a credential does, for listings. Times are Unix seconds."""

    unavailable: bool = False
    status_message: str = ""
    next_retry_at_s: float | None = None
    succeeded: int = 0
    failed: int = 0
    recent: Sequence[Mapping[str, object]] = ()
    """20 buckets of ten minutes, oldest first: `{"time": "HH:MM-HH:MM", "success": n, "failed": n}`."""


class HealthSource(Protocol):
    """Whoever keeps the results of requests."""

    def health_of(self, credential_id: str) -> CredentialHealth: ...

    def credentials_changed(self, change: CredentialChange) -> None:
        """Told of every change, before anybody else: health that does not belong to the new records is dropped."""


class OnDemand(Protocol):
    """Whoever refreshes tokens."""

    async def refresh_now(self, credential_id: str, *, started_s: float | None = None) -> bool: ...

    def refreshed_in_vain(self, credential_id: str, *, started_s: float) -> None: ...


class CredentialManager:
    """Owned by the process. `on_change` is told of every change except those of `apply_config`, whose caller gets it as
    its result and builds the next state anyway."""

    def __init__(
        self,
        *,
        mint: HandleMint | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mint: Final = mint if mint is not None else HandleMint()
        self.clock: Final = clock
        self.monotonic = monotonic
        self.generation = 0
        """Rises with every change."""
        self.on_change: ChangeListener | None = None
        self.health: HealthSource | None = None
        self.refresher: OnDemand | None = None
        self._configured: Final = ConfiguredKeys(self.mint)
        self._config_part: dict[str, Credential] = {}
        self._file_part: dict[str, tuple[Credential, ...]] = {}
        """By what they come from: the path of a file."""
        self._by_id: dict[str, Credential] = {}
        self._by_handle: dict[str, str] = {}
        self._ordered: tuple[Credential, ...] | None = None
        self._renewed_s: dict[str, float] = {}
        """When a record last got another secret (monotonic)."""
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @property
    def credentials(self) -> tuple[Credential, ...]:
        """Every record: configured keys in the order of the configuration, then those of files by file name."""
        if self._ordered is None:
            files = sorted(self._file_part.items(), key=lambda item: (item[0].lower(), item[0]))
            self._ordered = (*self._config_part.values(), *(record for _, records in files for record in records))
        return self._ordered

    @property
    def by_id(self) -> Mapping[str, Credential]:
        return self._by_id

    def by_index(self, auth_index: str) -> Credential | None:
        """The first record with this index: two configured entries with the same key share one."""
        return next((record for record in self.credentials if record.auth_index == auth_index), None)

    def current(self, handle: str) -> Credential | None:
        """The record behind a handle as it is now, with the newest token; None when it is gone."""
        credential_id = self._by_handle.get(handle)
        return self._by_id.get(credential_id) if credential_id is not None else None

    async def refresh_now(self, credential_id: str, *, started_s: float | None = None) -> bool:
        """An upstream answered 401: refresh the token once; whether the same credential is worth another try.

        `started_s`: when the failed attempt began (monotonic); a token that came since then, from whomever, counts as
        refreshed. Cancelling it does not cancel the refresh.
        """
        if started_s is not None and self.renewed_since(credential_id, started_s):
            return True
        if self.refresher is None:
            return False
        return await self.refresher.refresh_now(credential_id, started_s=started_s)

    def refreshed_in_vain(self, credential_id: str, *, started_s: float) -> None:
        """The upstream refused the renewed token too, in an attempt that began at `started_s` (monotonic): requests ask
        for no other for a while."""
        if self.refresher is not None and not self.renewed_since(credential_id, started_s):
            self.refresher.refreshed_in_vain(credential_id, started_s=started_s)

    def renewed_since(self, credential_id: str, started_s: float) -> bool:
        """Whether the credential got another secret since then (monotonic): a refusal was of the one before."""
        return self._renewed_s.get(credential_id, -math.inf) >= started_s

    def exclusive(self, credential_id: str) -> asyncio.Lock:
        """What serialises refresh and preparation of one credential: `async with manager.exclusive(id)`."""
        lock = self._locks.get(credential_id)
        if lock is None:
            lock = self._locks[credential_id] = asyncio.Lock()
        return lock

    def apply_config(self, config: Config) -> CredentialChange:
        """Take over the keys of a configuration; records of entries that did not change stay the same objects."""
        before = self._config_part
        found = self._configured.read(config, now_s=self.clock())
        known = self._by_id
        self._config_part = {
            credential_id: record if known.get(credential_id) is record else self._settled(record)
            for credential_id, record in found.items()
        }
        change = self._replace(before.values(), self._config_part.values())
        if not change and tuple(before) != tuple(self._config_part):
            self._ordered = None  # only their order changed
        return change

    def records_of(self, source: str) -> tuple[Credential, ...]:
        """The records that come from one file."""
        return self._file_part.get(source, ())

    def set_source(self, source: str, records: Sequence[Credential]) -> CredentialChange:
        """As `set_sources`, for one file."""
        return self.set_sources({source: records})

    def set_sources(
        self, sources: Mapping[str, Sequence[Credential]], *, refreshed: frozenset[str] = frozenset()
    ) -> CredentialChange:
        """Replace the records that come from some files; no records remove a file's. Tells `on_change` once.

        `refreshed`: ids whose token was renewed. Raises ValueError when an id is another source's already, before
        anything has changed.
        """
        settled = {source: tuple(self._settled(record) for record in records) for source, records in sources.items()}
        before = [record for source in settled for record in self._file_part.get(source, ())]
        after = [record for records in settled.values() for record in records]
        free = {record.id for record in before}
        for record in after:
            if record.id in self._by_id and record.id not in free:
                raise ValueError(f"the id {record.id!r} belongs to another credential")
        for source, records in settled.items():
            if records:
                self._file_part[source] = records
            else:
                self._file_part.pop(source, None)
        change = self._replace(before, after, refreshed)
        self._tell(change)
        return change

    def update(self, record: Credential, *, refreshed: bool = False) -> CredentialChange:
        """Replace one record of a file by its next version. Nothing happens when it is gone. Tells `on_change`."""
        known = self._by_id.get(record.id)
        if known is None or known.path != record.path:
            return CredentialChange()
        records = tuple(record if it.id == record.id else it for it in self._file_part.get(record.path, ()))
        return self.set_sources({record.path: records}, refreshed=frozenset({record.id} if refreshed else ()))

    def _settled(self, record: Credential) -> Credential:
        """The record as it is known already, when nothing but its times of change differ."""
        known = self._by_id.get(record.id)
        return known if known is not None and (known is record or known.same_as(record)) else record

    def _replace(
        self, before: Iterable[Credential], after: Iterable[Credential], refreshed: frozenset[str] = frozenset()
    ) -> CredentialChange:
        old = {record.id: record for record in before}
        new = {record.id: record for record in after}
        added, changed, touched, reset = set[str](), set[str](), set[str](), set[str]()
        renewed = set(refreshed)
        for credential_id, record in new.items():
            known = old.get(credential_id)
            if known is record:
                continue
            self._by_id[credential_id] = record
            self._by_handle[record.handle] = credential_id
            if known is None:
                added.add(credential_id)
                reset.add(credential_id)
                # An attempt may have begun with another one of that name.
                self._renewed_s[credential_id] = self.monotonic()
                continue
            (touched if known.routes_like(record) else changed).add(credential_id)
            if known.disabled != record.disabled:
                reset.add(credential_id)
            if known.secret != record.secret:
                # Also when somebody put another token into the file: the refusal was of the old one.
                renewed.add(credential_id)
                if known.auth_kind == record.auth_kind == "apikey":
                    reset.add(credential_id)  # another key is another account, or one of it with limits of its own
                self._renewed_s[credential_id] = self.monotonic()
        removed = old.keys() - new.keys()
        for credential_id in removed:
            gone = self._by_id.pop(credential_id)
            self._by_handle.pop(gone.handle, None)
            self._renewed_s.pop(credential_id, None)
        change = CredentialChange(
            added=frozenset(added),
            removed=frozenset(removed),
            changed=frozenset(changed),
            touched=frozenset(touched),
            reset=frozenset(reset | removed),
            refreshed=frozenset(renewed & new.keys()),
        )
        if change:
            self.generation += 1
            self._ordered = None
            if self.health is not None:
                self.health.credentials_changed(change)
        return change

    def _tell(self, change: CredentialChange) -> None:
        if change and self.on_change is not None:
            self.on_change(change)
