"""The built-in strategies over free credentials: round robin, weighted round robin, fill first (spec credentials 4.3).

What they remember survives reloads and is bounded. A pick costs the same with ten credentials and with ten thousand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from host.credentials.ready import Members, Ready

Strategy: TypeAlias = Literal["round-robin", "weighted-round-robin", "fill-first"]
STRATEGIES: Final[Mapping[str, Strategy]] = {
    **dict.fromkeys(("", "round-robin", "roundrobin", "rr"), "round-robin"),
    **dict.fromkeys(("weighted-round-robin", "weightedroundrobin", "wrr"), "weighted-round-robin"),
    **dict.fromkeys(("fill-first", "fillfirst", "ff"), "fill-first"),
}
"""As they may be written in the configuration."""
MAX_CURSORS: Final = 4096

Allowed: TypeAlias = Callable[[int], bool]
"""Whether the member at a position may be picked now, although it is free."""


@dataclass(slots=True)
class Cursors:
    """Where the next turn begins, per provider and model."""

    positions: dict[str, int] = field(default_factory=dict)
    limit: int = MAX_CURSORS

    def move(self, key: str, position: int) -> None:
        """The next turn begins at `position`."""
        if key not in self.positions and len(self.positions) >= self.limit:
            self.positions.clear()
        self.positions[key] = position

    def next(self, key: str) -> int:
        """A number that is one more each time."""
        number = self.positions.get(key, 0)
        self.move(key, number + 1)
        return number


def round_robin(ready: Ready, cursors: Cursors, key: str) -> int:
    """The position of the free member (there is one) whose turn it is: the next one after whoever had it last."""
    start = cursors.positions.get(key)
    if start is None:
        position = ready.at(0)
        cursors.move(key, position + 1)
        return position
    number = ready.rank(start)
    position = ready.at(number if number < ready.count else 0)
    cursors.positions[key] = position + 1
    return position


def first_number(ready: Ready, cursors: Cursors, key: str) -> int:
    """The number among the free members of the one whose turn it is."""
    start = cursors.positions.get(key, 0)
    number = ready.rank(start) if start else 0
    return number if number < ready.count else 0


def first_allowed(ready: Ready, start: int, allowed: Allowed) -> int | None:
    """The next free member from the one with number `start` on that may be picked; None when there is none."""
    count = ready.count
    for number in range(count):
        position = ready.at((start + number) % count)
        if allowed(position):
            return position
    return None


@dataclass(slots=True, eq=False)
class _Turns:
    """How often the members of one weight had their turn."""

    taken: int = 0
    next: int = 0
    """Where among them the next turn begins."""
    carry: float = 0.0
    """Credit from before the set of free members changed, in rounds."""


@dataclass(slots=True, eq=False)
class _Account:
    """What a `Balance` remembers."""

    turns: list[_Turns]
    counts: list[int]
    """Of free members, per weight."""
    picks: int = 0
    total: int = 0


class Accounts:
    """What is remembered of turns by weight, per provider, model and members: it survives reloads, and is bounded."""

    def __init__(self, *, limit: int = MAX_CURSORS) -> None:
        self._limit: Final = limit
        self._known: Final[dict[tuple[str, int], _Account]] = {}

    def of(self, key: str, members: Members) -> _Account:
        """That of some members; a new one when somebody came, went, or has another weight."""
        known, whole = self._known, (key, members.weights)
        found = known.get(whole)
        if found is None:
            if len(known) >= self._limit:
                known.clear()
            number = len(members.by_weight)
            found = known[whole] = _Account([_Turns() for _ in range(number)], [0] * number)
        return found


class _Class:
    """The members of one weight."""

    __slots__ = ("origin", "ready", "turns", "weight")

    def __init__(self, weight: int, origin: tuple[int, ...], ready: Ready, turns: _Turns) -> None:
        self.weight: Final = weight
        self.origin: Final = origin
        """Where each of them stands in the tier."""
        self.ready: Final = ready
        self.turns: Final = turns


class Balance:
    """Smooth weighted round robin over the members of one tier.

    The textbook adds each weight to each member's credit and takes the total from the one that is picked. Members of
    one weight differ in their turns only, so their credits follow from two counts per weight: what a pick costs depends
    on how many weights there are, not on how many members. Members without a weight are never picked.
    """

    __slots__ = ("_account", "_classes")

    def __init__(self, ready: Ready, account: _Account) -> None:
        self._account: Final = account
        self._classes: Final = tuple(
            _Class(weight, origin, ready.part(members), turns)
            for (weight, origin, members), turns in zip(ready.members.by_weight, account.turns, strict=True)
        )

    def take(self, allowed: Allowed | None = None) -> int | None:
        """The member whose turn it is; None when no free one has a weight and may be picked.

        With `allowed` it is a choice out of turn, which nobody's credit pays for.
        """
        self._sync()
        account = self._account
        picks, total, found = account.picks + 1, account.total, -1
        best_credit, best = 0.0, None
        for each, count in zip(self._classes, account.counts, strict=True):
            if not count:
                continue
            turns = each.turns
            credit = picks * each.weight - turns.taken // count * total + turns.carry * total
            if best is not None and credit < best_credit:
                continue
            own = _turn_of(each, count, allowed)
            if own is not None and (best is None or credit > best_credit or each.origin[own] < best.origin[found]):
                best, best_credit, found = each, credit, own
        if best is None:
            return None
        if allowed is None:
            account.picks = picks
            best.turns.taken += 1
            best.turns.next = found + 1
        return best.origin[found]

    def _sync(self) -> None:
        """Where the set of free members changed: count anew, and carry over what each weight was owed."""
        counts = []
        for each in self._classes:
            each.ready.sync()
            counts.append(each.ready.count)
        account = self._account
        if counts == account.counts:
            return
        for each, before in zip(self._classes, account.counts, strict=True):
            turns = each.turns
            if before:
                owed = turns.carry + account.picks * each.weight / account.total - turns.taken // before
                turns.carry = max(-1.0, min(1.0, owed))
            turns.taken = 0
        account.picks = 0
        account.counts = counts
        account.total = sum(each.weight * count for each, count in zip(self._classes, counts, strict=True))


def _turn_of(each: _Class, count: int, allowed: Allowed | None) -> int | None:
    """The position among the members of one weight of the one whose turn it is."""
    ready, origin = each.ready, each.origin
    first = ready.rank(each.turns.next)
    if allowed is None:
        return ready.at(first if first < count else 0)
    return first_allowed(ready, first, lambda position: allowed(origin[position]))
