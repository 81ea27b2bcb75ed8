"""Keeping tokens alive: when a credential is refreshed, one refresh of it at a time, and what a failure means (spec 6).

A refresh runs in a task of its own and is never cancelled by whoever waits for it: a provider that hands out a new
refresh token has taken back the old one.
"""

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from host.credentials.manager import CredentialManager
from host.credentials.records import Credential, CredentialChange, RefreshError
from host.credentials.refresh_turns import NoTurns, Turns
from host.credentials.renew import Renewer
from host.credentials.unwritten import token_of
from host.credentials.values import int_like, refresh_token_of
from host.tasks import TaskGroup
from pluginabi.errors import PluginError, PluginTransportError

log = structlog.get_logger("host.credentials.refresh")

CHECK_S: Final = 15 * 60.0
"""How often a plugin is asked that decides by itself whether there is anything to refresh."""
FAILURE_S: Final = 5 * 60.0
INEFFECTIVE_S: Final = 30.0
"""After a refresh that was due again at once."""
DEFAULT_LEAD_S: Final = 5 * 60.0
"""How long before its expiry a token is refreshed when nobody says otherwise."""
ON_DEMAND_PAUSE_S: Final = 30.0
"""After a failure, or a refresh that did not help, requests do not ask for another one for so long."""
ON_DEMAND_WAIT_S: Final = 30.0
"""How long a request waits for a refresh: behind hundreds of others it had better try another credential."""
FINISH_S: Final = 10.0
"""How long the end of the process waits for plugins that are at work on a refresh."""
CLOCK_STEP_S: Final = 60.0
"""A wall clock that was set back by more makes everybody's next refresh be worked out anew."""
WORKERS: Final = 16
UNAUTHORIZED_CODES: Final = frozenset({"unauthorized", "invalid_grant"})
LEAD_ATTRIBUTE: Final = "refresh_lead_seconds"
ASKED_ATTRIBUTE: Final = "refresh"
"""`plugin`: the plugin decides; it is asked every `CHECK_S`."""


def lead_of(record: Credential) -> float | None:
    """How long before its expiry a record is refreshed: as it says, else five minutes if it can be and the expiry is
    known."""
    said = int_like(record.attributes.get(LEAD_ATTRIBUTE, record.metadata.reveal().get(LEAD_ATTRIBUTE)))
    if said is not None and said > 0:
        return float(said)
    return DEFAULT_LEAD_S if record.expires_at_s is not None and can_refresh(record) else None


def can_refresh(record: Credential) -> bool:
    """Whether there is anything to refresh it with, as far as the host can see."""
    return bool(refresh_token_of(record.metadata.reveal())) or record.attributes.get(ASKED_ATTRIBUTE) == "plugin"


def due_at(record: Credential, *, now_s: float, lead_s: float | None) -> float | None:
    """When a record is refreshed next (Unix seconds); None: never."""
    if record.auth_kind == "apikey" or record.source_kind not in ("file", "virtual"):
        return None
    if record.refresh_error is not None and record.refresh_error.http_status == 401:
        return None
    if record.next_refresh_at_s is not None and record.next_refresh_at_s > now_s:
        return record.next_refresh_at_s
    if record.attributes.get(ASKED_ATTRIBUTE) == "plugin":
        return now_s + CHECK_S
    expires_s, last_s = record.expires_at_s, record.last_refreshed_at_s
    # A refresh in the future was before the wall clock was set back.
    last_s = min(last_s, now_s) if last_s is not None else None
    if (interval_s := record.refresh_interval_s) is not None:
        if last_s is None:
            return now_s
        times = [last_s + interval_s] + ([expires_s - interval_s] if expires_s is not None else [])
        return max(now_s, min(times))
    if lead_s is None:
        return None
    if expires_s is not None:
        return max(now_s, expires_s - lead_s)
    return max(now_s, last_s + lead_s) if last_s is not None else now_s


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the last refresh went, on the monotonic clock."""

    at_s: float
    succeeded: bool


class Refresher:
    """Refreshes credentials when they are due, and on demand. `stop` of its tasks ends it."""

    def __init__(
        self,
        manager: CredentialManager,
        renewer: Renewer,
        tasks: TaskGroup,
        *,
        workers: int = WORKERS,
        refresh_disabled: bool = True,
        on_demand_wait_s: float = ON_DEMAND_WAIT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refresh_disabled = refresh_disabled
        """Whether disabled credentials are kept alive too."""
        self.turns: Turns = NoTurns()
        self._manager: Final = manager
        self._renewer: Final = renewer
        self._tasks: Final = tasks
        self._on_demand_wait_s: Final = on_demand_wait_s
        self._places: Final = asyncio.Semaphore(workers)
        self._monotonic: Final = monotonic
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._flights: dict[str, asyncio.Task[bool]] = {}
        self._outcomes: dict[str, _Outcome] = {}
        self._renewing: set[str] = set()
        """Whose plugin has been asked and has not answered, or whose answer is being kept."""
        self._is_finished = False
        self._woken = asyncio.Event()

    def due(self, credential_id: str) -> float | None:
        """When a credential is refreshed next (Unix seconds); None: it is not scheduled."""
        return self._due.get(credential_id)

    def schedule_all(self) -> None:
        """Work out anew when everybody is due: at the start, or when the plugins changed."""
        self._due.clear()
        self._heap.clear()
        for record in self._manager.credentials:
            self._plan(record.id)
        self._woken.set()

    def changed(self, change: CredentialChange) -> None:
        """Follow a change of the records."""
        for credential_id in change.removed:
            self._due.pop(credential_id, None)
            self._outcomes.pop(credential_id, None)
        self._plan_each(change.ids - change.removed)

    async def run(self) -> None:
        """Refresh whatever is due, until cancelled."""
        ahead_s = self._manager.clock() - self._monotonic()
        while True:
            self._woken.clear()
            was_s, ahead_s = ahead_s, self._manager.clock() - self._monotonic()
            if ahead_s < was_s - CLOCK_STEP_S:
                # What was due so many seconds later is due at a time that is far away now.
                log.warning("credential.clock_set_back", seconds=round(was_s - ahead_s))
                self.schedule_all()
                self._woken.clear()
            self.start_due()
            wait_s = self._until_next_s()
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def start_due(self) -> list[asyncio.Task[bool]]:
        """Begin the refresh of everybody who is due now."""
        now_s, started = self._manager.clock(), []
        while self._heap and self._heap[0][0] <= now_s:
            at_s, credential_id = heapq.heappop(self._heap)
            if self._due.get(credential_id) == at_s:
                del self._due[credential_id]
                started.append(self._fly(credential_id))
        return started

    async def refresh_now(self, credential_id: str, *, started_s: float | None = None) -> bool:
        """Refresh once, because an upstream answered 401; whether it is worth another try with the same credential.

        `started_s`: when the attempt that failed began (monotonic): a token that was renewed since then is not renewed
        again. Callers at the same time share one refresh. Cancelling the caller does not cancel the refresh, and one
        that takes longer than the caller waits goes on: it lifts the block of the credential when it succeeds.
        """
        record = self._manager.by_id.get(credential_id)
        if record is None or not self.refreshable(record):
            return False
        flight = self._flights.get(credential_id)
        if flight is None:
            last = self._outcomes.get(credential_id)
            if last is not None and last.succeeded and started_s is not None and last.at_s >= started_s:
                return True
            if last is not None and not last.succeeded and self._monotonic() - last.at_s < ON_DEMAND_PAUSE_S:
                return False
            flight = self._fly(credential_id)
        await asyncio.wait({flight}, timeout=self._on_demand_wait_s)
        if not flight.done() or flight.cancelled() or flight.exception() is not None:
            return False
        return flight.result()

    def refreshed_in_vain(self, credential_id: str, *, started_s: float) -> None:
        """The upstream refused what the refresh brought, in an attempt that began then (monotonic). Where cooling is
        off the credential is picked again at once, and every request would ask its provider for one more token."""
        last = self._outcomes.get(credential_id)
        if last is not None and last.at_s <= started_s:
            self._outcomes[credential_id] = _Outcome(self._monotonic(), False)

    async def finish(self, limit_s: float = FINISH_S) -> None:
        """Begin no refresh any more, and wait for those that a plugin is at work on: what the provider gives out for a
        refresh token comes once."""
        self._is_finished = True
        flights = [self._flights[credential_id] for credential_id in self._renewing]
        _, late = await asyncio.wait(flights, timeout=limit_s) if flights else ((), ())
        if late:
            log.warning("credential.refresh_cut_off", credentials=sorted(self._renewing))

    def refreshable(self, record: Credential) -> bool:
        """Whether a refresh could help."""
        refused = record.refresh_error is not None and record.refresh_error.http_status == 401
        return not refused and can_refresh(record) and self._renewer.serves(record)

    def _fly(self, credential_id: str) -> asyncio.Task[bool]:
        flight = self._flights.get(credential_id)
        if flight is None:
            flight = self._tasks.start(self._refresh(credential_id), name=f"refresh:{credential_id}")
            self._flights[credential_id] = flight
            flight.add_done_callback(lambda done: self._landed(credential_id, done))
        return flight

    def _landed(self, credential_id: str, flight: asyncio.Task[bool]) -> None:
        self._flights.pop(credential_id, None)
        if not flight.cancelled() and flight.exception() is not None:
            # Its owner has logged what it was; the credential must not be forgotten for it.
            self._outcomes[credential_id] = _Outcome(self._monotonic(), False)
            self._plan(credential_id, at_least_s=self._manager.clock() + FAILURE_S)

    async def _refresh(self, credential_id: str) -> bool:
        """One refresh; whether it succeeded. Its failure is written down, never raised."""
        async with self._manager.exclusive(credential_id), self._places:
            record = self._manager.by_id.get(credential_id)
            if record is None or not self._renewer.serves(record):
                return False
            try:
                async with self.turns.taken(record) as mine:
                    if self._is_finished:
                        return False
                    if mine is not None:
                        record = mine
                        await self._renew(mine)
            except (PluginError, PluginTransportError) as error:
                return self._failed(record, error)
        self._outcomes[credential_id] = _Outcome(self._monotonic(), True)
        if mine is not None:
            log.info("credential.refreshed", credential=credential_id, provider=record.provider)
        self._plan(credential_id, at_least_s=self._manager.clock() + INEFFECTIVE_S)
        return True

    async def _renew(self, record: Credential) -> None:
        self._renewing.add(record.id)
        try:
            await self._renewer.renew(record)
        finally:
            self._renewing.discard(record.id)

    def _failed(self, record: Credential, error: PluginError | PluginTransportError) -> bool:
        """Write down why, and whether the credential has another token by now: then nothing is wrong with that one."""
        known = self._manager.by_id.get(record.id)
        if known is not None and token_of(known) != token_of(record):
            log.info("credential.refresh_superseded", credential=record.id, provider=record.provider)
            self._plan(record.id, at_least_s=self._manager.clock() + INEFFECTIVE_S)
            return True
        self._outcomes[record.id] = _Outcome(self._monotonic(), False)
        body = error.body if isinstance(error, PluginError) else error.to_error_body()
        refused = body.http_status == 401 or body.code in UNAUTHORIZED_CODES
        log.warning(
            "credential.refresh_failed",
            credential=record.id,
            provider=record.provider,
            code=body.code,
            status=body.http_status,
            reason=body.message,
            again=not refused,
        )
        now_s = self._manager.clock()
        reason = RefreshError(
            message="unauthorized" if refused else body.message,
            code=body.code,
            http_status=401 if refused else body.http_status,
            at_s=now_s,
        )
        if known is not None:
            self._manager.update(replace(known, refresh_error=reason))
            self._plan(record.id, at_least_s=now_s + FAILURE_S)
        return False

    def _plan_each(self, credential_ids: Iterable[str]) -> None:
        for credential_id in credential_ids:
            self._plan(credential_id)
        self._woken.set()

    def _plan(self, credential_id: str, *, at_least_s: float = 0.0) -> None:
        self._due.pop(credential_id, None)
        record = self._manager.by_id.get(credential_id)
        if record is None or (credential_id in self._flights and not at_least_s):
            return  # the end of the refresh in progress plans the next
        if (record.disabled and not self.refresh_disabled) or not self._renewer.serves(record):
            return
        now_s = self._manager.clock()
        at_s = due_at(record, now_s=now_s, lead_s=lead_of(record))
        if at_s is None:
            return
        if record.refresh_error is not None:
            at_least_s = max(at_least_s, min(record.refresh_error.at_s, now_s) + FAILURE_S)
        if record.last_refreshed_at_s is not None:
            # Also by another process: with a short-lived token the two would not let each other rest.
            at_least_s = max(at_least_s, min(record.last_refreshed_at_s, now_s) + INEFFECTIVE_S)
        self._due[credential_id] = at_s = max(at_s, at_least_s)
        heapq.heappush(self._heap, (at_s, credential_id))
        self._woken.set()

    def _until_next_s(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        # A wall clock may be set; nobody waits longer than a check for it to be noticed.
        return min(CHECK_S, max(0.0, self._heap[0][0] - self._manager.clock())) or math.ulp(1.0)
