"""Picking a credential: health, priority tiers, round robin and fill first (spec credentials 4.1 to 4.4, 4.8)."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

from host.credentials.classify import Verdict
from host.credentials.cooldown import Block, CooldownBook
from host.credentials.records import Credential

Strategy: TypeAlias = Literal["round-robin", "fill-first"]
MAX_CURSORS: Final = 4096


class Choice(Protocol):
    """What can be picked: a credential, and the names its health is kept under."""

    @property
    def credential(self) -> Credential: ...

    @property
    def state_models(self) -> tuple[str, ...]:
        """Several for an alias pool: usable while one of them is free."""


C = TypeVar("C", bound=Choice)


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Nobody can be picked."""

    reason: Literal["not_found", "unavailable", "cooling"]
    """No candidate is left; all are blocked, not all by a limit; all are cooling down."""
    retry_after_s: float = 0.0
    """Until the first recovers; 0 when there is none to wait for."""


@dataclass(slots=True)
class Cursors:
    """Round-robin positions; survive reloads."""

    positions: dict[str, int] = field(default_factory=dict)

    def next(self, key: str) -> int:
        if len(self.positions) >= MAX_CURSORS and key not in self.positions:
            self.positions.clear()
        position = self.positions.get(key, 0)
        self.positions[key] = position + 1
        return position


class CredentialPool:
    """The credentials of one configuration over the health and cursors of the process."""

    def __init__(
        self,
        credentials: Sequence[Credential],
        *,
        book: CooldownBook | None = None,
        cursors: Cursors | None = None,
        cooling_disabled: bool = False,
    ) -> None:
        self.credentials = tuple(credentials)
        self.by_id = {credential.id: credential for credential in self.credentials}
        self.by_handle = {credential.handle: credential for credential in self.credentials if credential.handle}
        self.book = book or CooldownBook()
        self.cursors = cursors or Cursors()
        self._cooling_disabled = cooling_disabled
        self._providers = tuple(sorted({it.provider for it in self.credentials if not it.disabled}))

    @property
    def clock(self) -> Callable[[], float]:
        return self.book.clock

    def providers(self) -> tuple[str, ...]:
        """Sorted provider keys with a credential that is not disabled; cooldowns do not matter."""
        return self._providers

    def free(self, choices: Sequence[C], tried: Collection[str]) -> Sequence[C] | Exhausted:
        """The usable choices of the best priority that has one. `choices` are sorted by priority, best first."""
        if not tried and self.book.empty and choices:
            # Nothing is blocked and nothing was tried: the best tier is the leading run of equal priority.
            best = choices[0].credential.priority
            if choices[-1].credential.priority == best:
                return choices
            return [choice for choice in choices if choice.credential.priority == best]
        return self._free_and_untried(choices, tried)

    def _free_and_untried(self, choices: Sequence[C], tried: Collection[str]) -> Sequence[C] | Exhausted:
        now_s = self.book.clock()
        found: list[C] = []
        blocks: list[Block] = []
        for choice in choices:
            credential = choice.credential
            if credential.id in tried:
                continue
            if found and credential.priority != found[0].credential.priority:
                break
            block = self.block_of(choice, now_s)
            if block is None:
                found.append(choice)
            else:
                blocks.append(block)
        if found:
            return found
        if not blocks:
            return Exhausted("not_found")
        wait_s = max(0.0, min(block.until_s for block in blocks) - now_s)
        return Exhausted("cooling" if all(block.quota for block in blocks) else "unavailable", wait_s)

    def block_of(self, choice: Choice, now_s: float) -> Block | None:
        """The block of a choice: of an alias pool only when all its models are blocked, then the earliest to end."""
        earliest: Block | None = None
        for model in choice.state_models:
            block = self.book.block(choice.credential.id, model, now_s)
            if block is None:
                return None
            if earliest is None or block.until_s < earliest.until_s:
                earliest = block
        return earliest

    def pick(self, free: Sequence[C], *, strategy: Strategy, cursor: str) -> C:
        """One of the usable choices of a tier (not empty), which are in order: provider as resolved, then id."""
        if strategy == "fill-first" or len(free) == 1:
            return free[0]
        return free[self.cursors.next(cursor) % len(free)]

    def succeeded(self, credential: Credential, model: str) -> None:
        """The credential served the model."""
        if not self.book.empty:
            self.book.succeeded(credential.id, model)

    def failed(self, credential: Credential, model: str, verdict: Verdict) -> float:
        """Mark a failure; returns how many seconds the credential rests."""
        if self._cooling_disabled or credential.disable_cooling:
            return 0.0
        return self.book.failed(credential.id, model, verdict)


def ceil_seconds(seconds: float) -> int:
    """Whole seconds, rounded up, at least 1 when there is anything to wait for."""
    return max(0, math.ceil(seconds))
