"""Choosing a credential: the first tier with a free member, and in it the configured strategy (spec credentials 4)."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from host.credentials.classify import Verdict
from host.credentials.cooldown import ALL_MODELS, Cause, CooldownBook, Shelf
from host.credentials.manager import CredentialHealth
from host.credentials.policy import RoutingPolicy
from host.credentials.ready import Members, Ready
from host.credentials.records import Credential
from host.credentials.results import Tallies
from host.credentials.retry import Search
from host.credentials.select import (
    Accounts,
    Allowed,
    Balance,
    Cursors,
    Strategy,
    first_allowed,
    first_number,
    round_robin,
)
from host.observe.brake import LineBrake
from host.state.bindings import BindingStore, MemoryBindings
from pluginabi.immutable import Headers
from pluginapi.upstream import has_quota_left

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Nobody can be picked."""

    reason: Literal["not_found", "unavailable", "cooling"]
    """No candidate is left; all are blocked, not all by a limit; all are cooling down."""
    retry_after_s: float = 0.0
    """Until the first recovers; 0 when there is none to wait for."""


NOBODY: Final = Exhausted("not_found")


class Tier:
    """Candidates of one priority."""

    __slots__ = ("_balance", "priority", "ready")

    def __init__(self, priority: int, ready: Ready) -> None:
        self.priority: Final = priority
        self.ready: Final = ready
        self._balance: Balance | None = None

    def balance(self, accounts: Accounts, key: str) -> Balance:
        """Whose turn it is by weight. `key`: of the cursor, by which it is remembered."""
        if self._balance is None:
            self._balance = Balance(self.ready, accounts.of(key, self.ready.members))
        return self._balance


@dataclass(slots=True, kw_only=True)
class Health:
    """How the credentials do. One per process, it survives every reload."""

    book: CooldownBook = field(default_factory=CooldownBook)
    cursors: Cursors = field(default_factory=Cursors)
    accounts: Accounts = field(default_factory=Accounts)
    tallies: Tallies = field(default_factory=Tallies)
    sessions: BindingStore = field(default_factory=MemoryBindings)
    """Session to credential."""
    origins: BindingStore = field(default_factory=MemoryBindings)
    """What only one account can read to its credential."""
    wall_clock: Callable[[], float] = time.time
    sleep: Sleep = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform
    """Spreads what waits for the same moment."""
    pool_cursors: Cursors = field(default_factory=lambda: Cursors(limit=65_536))
    """Of alias pools, per credential."""
    ready: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """Credentials that `executor.prepare` got ready: by which plugin, as which record."""
    waiting: int = 0
    """Requests that wait for a credential right now."""
    lines: LineBrake = field(default_factory=LineBrake)
    """On log lines about credentials."""
    pool: "CredentialPool | None" = None
    """Of the configuration that is in force: a request may have begun under an older one."""

    def health_of(self, credential_id: str, models: Collection[str]) -> CredentialHealth:
        """What listings show of a credential that serves `models` (canonical names; empty: not known)."""
        book = self.book
        book.tick()
        succeeded, failed = self.tallies.of(credential_id)
        now_s, states = book.clock(), book.states(credential_id).values()
        blocks = {state.model: state for state in states if state.blocked}
        first = blocks.get(ALL_MODELS) or min(blocks.values(), key=lambda state: state.until_s, default=None)
        is_whole = ALL_MODELS in blocks or (bool(models) and all(model in blocks for model in models))
        return CredentialHealth(
            unavailable=is_whole,
            status_message=first.reason if first is not None else "",
            next_retry_at_s=self.wall_clock() + first.until_s - now_s if first is not None and is_whole else None,
            succeeded=succeeded,
            failed=failed,
            recent=self.tallies.recent(credential_id),
        )


class CredentialPool:
    """The credentials of one configuration, over the health of the process."""

    def __init__(
        self, credentials: Iterable[Credential], *, policy: RoutingPolicy | None = None, health: Health | None = None
    ) -> None:
        self.credentials: Final = tuple(credentials)
        self.by_id: Final = {credential.id: credential for credential in self.credentials}
        self.by_handle: Final = {credential.handle: credential for credential in self.credentials if credential.handle}
        self.policy: Final = policy or RoutingPolicy()
        self.health: Final = health or Health()
        self.book: Final = self.health.book
        self._providers = tuple(sorted({it.provider for it in self.credentials if not (it.is_off or it.is_unusable)}))
        self._ready: dict[tuple[int, tuple[tuple[str, ...], ...]], Tier] = {}

    @property
    def clock(self) -> Callable[[], float]:
        """Of cooldowns; monotonic seconds."""
        return self.book.clock

    def providers(self) -> tuple[str, ...]:
        """Sorted provider keys with a credential that is not switched off; cooldowns do not matter."""
        return self._providers

    def tier(self, members: Members, models: Sequence[tuple[str, ...]]) -> Tier:
        """The tier over `members`, whose health is kept under `models` (per kind of lane). Shared by all who ask."""
        key = (id(members), tuple(models))
        tier = self._ready.get(key)
        if tier is None:
            shelves: list[tuple[Shelf, ...]] = [tuple(self.book.shelf(name) for name in names) for names in models]
            priority = members.credentials[0].priority if members.credentials else 0
            tier = self._ready[key] = Tier(priority, Ready(members, shelves, self.book))
        return tier

    def settle(self) -> None:
        """This pool is in force from now on. Drop from the health of the process what no longer matters: of credentials
        that are gone or off, and blocks that the configuration does not want any more."""
        self.health.pool = self
        for credential_id, _ in self.book.all_states():
            credential = self.by_id.get(credential_id)
            if credential is None or credential.is_off:
                self.book.reset(credential_id)
            elif not self.policy.cools(credential):
                self.book.lift_unless_forced(credential_id)
        self.health.tallies.keep_only(self.by_id)

    def forget_tiers(self) -> None:
        """Drop what `tier` shares."""
        self._ready.clear()

    def choose(
        self, tiers: Sequence[Tier], search: Search, *, strategy: Strategy, cursor: str
    ) -> tuple[Tier, int] | Exhausted:
        """The position of the credential whose turn it is, in the best tier that has one. Never a blocked one."""
        self.book.tick()
        if not search.is_open or (self.policy.by_weight and strategy != self.policy.strategy):
            return self._choose_allowed(tiers, search, strategy, cursor)
        version = self.book.version
        for number, tier in enumerate(tiers):
            ready = tier.ready
            if ready.version != version:
                ready.sync()
            if not ready.count:
                continue
            if strategy == "round-robin":
                return tier, round_robin(ready, self.health.cursors, f"{cursor}#{number}" if number else cursor)
            if strategy == "fill-first":
                return tier, ready.at(0)
            balance = tier.balance(self.health.accounts, f"{cursor}#{number}")
            if (position := balance.take()) is not None:
                return tier, position
        return self.exhausted(tiers, search)

    def _choose_allowed(
        self, tiers: Sequence[Tier], search: Search, strategy: Strategy, cursor: str
    ) -> tuple[Tier, int] | Exhausted:
        if search.only:
            place = self.position_of(tiers, search.only)
            return self.exhausted(tiers, search) if place is None or self.why_not(*place, search) else place
        for number, tier in enumerate(tiers):
            ready = tier.ready
            ready.sync()
            if not ready.count:
                continue
            credentials = ready.members.credentials

            def allowed(position: int, credentials: tuple[Credential, ...] = credentials) -> bool:
                return search.allows(credentials[position])

            if strategy == "weighted-round-robin":
                # As below: only the first try of a round is a turn.
                is_turn = not search.tried and search.admits_all_weighted(ready.members)
                balance = tier.balance(self.health.accounts, f"{cursor}#{number}")
                position = balance.take(None if is_turn else allowed)
            elif strategy == "fill-first":
                position = first_allowed(ready, 0, allowed)
            else:
                position = self._next_allowed(ready, search, f"{cursor}#{number}" if number else cursor, allowed)
            if position is not None:
                return tier, position
        return self.exhausted(tiers, search)

    def _next_allowed(self, ready: Ready, search: Search, cursor: str, allowed: Allowed) -> int | None:
        cursors = self.health.cursors
        position = first_allowed(ready, first_number(ready, cursors, cursor), allowed)
        if position is not None and not search.tried:
            # Only the first try of a round is a turn: a retry takes none away from the next request.
            cursors.move(cursor, position + 1)
        return position

    def best(self, tiers: Sequence[Tier], search: Search) -> tuple[Tier, int] | Exhausted:
        """The best tier in which somebody can be picked, and how many can."""
        self.book.tick()
        for tier in tiers:
            ready = tier.ready
            ready.sync()
            if ready.count and (count := self._count(ready, search)):
                return tier, count
        return self.exhausted(tiers, search)

    def _count(self, ready: Ready, search: Search) -> int:
        credentials, positions = ready.members.credentials, ready.members.positions
        if search.admits_all(ready.members):
            tried = (positions.get(it) for it in search.tried)
            return ready.count - sum(it is not None and ready.is_free(it) for it in tried)
        if search.only:
            position = positions.get(search.only)
            return int(position is not None and ready.is_free(position) and search.allows(credentials[position]))
        return sum(search.allows(credentials[position]) for position in ready.free())

    def exhausted(self, tiers: Sequence[Tier], search: Search) -> Exhausted:
        """Why nobody can be picked, and when the first of those who could have been recovers."""
        until_s, all_quota, found = math.inf, True, False
        for tier in tiers:
            recovery = self._recovery(tier.ready, search)
            if recovery is not None:
                found = True
                until_s, all_quota = min(until_s, recovery[0]), all_quota and recovery[1]
        if not found:
            return NOBODY
        return Exhausted("cooling" if all_quota else "unavailable", max(0.0, until_s - self.clock()))

    def _recovery(self, ready: Ready, search: Search) -> tuple[float, bool] | None:
        if search.admits_all(ready.members):
            return ready.recovery(without=search.tried)
        if not search.only:
            return ready.recovery_of(search.allows)
        position = ready.members.positions.get(search.only)
        state = ready.block_at(position) if position is not None else None
        if position is None or state is None or not search.allows(ready.members.credentials[position]):
            return None
        return state.until_s, state.quota

    def free_in_s(self, tiers: Sequence[Tier], search: Search) -> float | None:
        """When somebody whom `search` admits is free: 0 for now, None for never."""
        self.book.tick()
        waits = []
        for tier in tiers:
            if not self._may_admit(tier, search):
                continue
            tier.ready.sync()
            members = tier.ready.members
            if search.admits_all(members):
                if tier.ready.count:
                    return 0.0
                found = tier.ready.recovery()
            else:
                if any(search.admits(members.credentials[position]) for position in tier.ready.free()):
                    return 0.0
                found = tier.ready.recovery_of(search.admits)
            if found is not None:
                waits.append(found[0])
        return max(0.0, min(waits) - self.clock()) if waits else None

    def _may_admit(self, tier: Tier, search: Search) -> bool:
        """Whether the round's number alone leaves anybody: without configured rounds nothing else is looked at."""
        limits = tier.ready.members.retries
        return any((self.policy.rounds if it is None or it < 0 else it) >= search.round for it in limits)

    def lift(self, tiers: Sequence[Tier], provider: str, reasons: Collection[str]) -> None:
        """End the blocks of a provider's credentials that stand for `reasons`."""
        for tier in tiers:
            tier.ready.sync()
            for state in tier.ready.blocks():
                credential = self.by_id.get(state.credential_id)
                if state.reason in reasons and credential is not None and credential.provider == provider:
                    self.book.lift(state.credential_id, reasons, models=(state.model,))

    def position_of(self, tiers: Sequence[Tier], credential_id: str) -> tuple[Tier, int] | None:
        """Where a credential stands; None when it is no candidate."""
        for tier in tiers:
            position = tier.ready.members.positions.get(credential_id)
            if position is not None:
                return tier, position
        return None

    def why_not(self, tier: Tier, position: int, search: Search) -> str:
        """Why a candidate cannot be picked; empty when it can."""
        self.book.tick()
        tier.ready.sync()
        credential = tier.ready.members.credentials[position]
        if not tier.ready.is_free(position):
            return "resting"
        if credential.weight <= 0 and self.policy.by_weight:
            return "without weight"
        if credential.id in search.tried:
            return "tried"
        if search.admits(credential):
            return ""
        return self.withdrawn(credential) or "not for this request"

    def disprove(self, credential_id: str, model: str, *, age_s: float, seen_ago_s: float, headers: Headers) -> None:
        """A success ends what it disproves. `age_s`: how long ago the attempt began, `seen_ago_s`: was accepted."""
        now_s = self.book.clock()
        self.book.succeeded(
            credential_id,
            model,
            began_s=now_s - age_s,
            seen_s=now_s - seen_ago_s,
            quota_left=has_quota_left(headers),
        )

    def in_force(self, credential: Credential) -> Credential | None:
        """What a request's credential is by now; None when it is none any more: removed, switched off, or another one
        that came in its place. Results of earlier requests say nothing about that."""
        known = (self.health.pool or self).by_id.get(credential.id)
        if known is credential:
            return known
        if known is None or known.is_off or known.created_at_s != credential.created_at_s:
            return None
        return known

    def withdrawn(self, credential: Credential) -> str:
        """Why nothing new may be begun with a credential of this pool: an operator took it away since the request
        began. Empty when it may; always for one that stands for a plugin, or that a plugin handed out."""
        now = self.health.pool
        if now is self or now is None or credential.source_kind == "plugin" or credential.id not in self.by_id:
            return ""
        known = now.by_id.get(credential.id)
        if known is credential:
            return ""
        if known is None:
            return "removed"
        if known.is_off:
            return "disabled"
        if known.is_unusable:
            return "without a secret"
        # What was there at the address that the request knows is no secret of the present record.
        is_same = known.created_at_s == credential.created_at_s and known.base_url == credential.base_url
        return "" if is_same else "replaced"

    def succeeded(self, credential: Credential) -> bool:
        """Count a success; whether it is still one of ours."""
        if self.in_force(credential) is None:
            return False
        self.health.tallies.succeeded(credential.id)
        return True

    def count_failure(self, credential: Credential) -> Credential | None:
        """Count a failure, and nothing else; returns what the credential is by now, None when it is none any more."""
        known = self.in_force(credential)
        if known is not None:
            self.health.tallies.failed(credential.id)
        return known

    def failed(
        self, credential: Credential, model: str, verdict: Verdict, *, cause: Cause, also: Iterable[str] = ()
    ) -> float:
        """Count a failure and set the credential aside; returns for how many seconds. `also`: further models that it
        cannot serve for the same reason.

        What is in force now decides, not what was when the request began: a credential that was removed or switched off
        meanwhile leaves nothing behind.
        """
        known = self.count_failure(credential)
        if known is None:
            return 0.0
        if not (verdict.forced or (self.health.pool or self).policy.cools(known)):
            return 0.0
        for each in also:
            self.book.failed(credential.id, each, verdict, cause=cause)
        return self.book.failed(credential.id, model, verdict, cause=cause)


def ceil_seconds(seconds: float) -> int:
    """Whole seconds, rounded up, at least 1 when there is anything to wait for."""
    return max(0, math.ceil(seconds))
