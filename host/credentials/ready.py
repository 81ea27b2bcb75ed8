"""Who of many credentials is free, without looking at all of them.

A `Ready` remembers only who is blocked, as sorted positions, and is brought up to date from the logs of the shelves it
watches. The k-th free credential of ten thousand is found by bisection.
"""

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

from host.credentials.cooldown import CooldownBook, CoolState, Shelf
from host.credentials.records import Credential
from pluginabi.payloads.routing import Candidate

_FEW: Final = 32
"""Changes that are cheaper to follow one by one than to start from the picture of whole credentials."""

_POSITION: Final = "i"
"""Thousands of positions are copied for a pick: bytes, of which no single number has to be touched."""


class Members:
    """Credentials in the order in which they are picked. Immutable; shared by all plans over the same ones."""

    def __init__(self, credentials: Sequence[Credential], groups: Sequence[int] = ()) -> None:
        """`groups`: which of several kinds of lane each belongs to; empty when there is one kind."""
        self.credentials: Final = tuple(credentials)
        self.groups: Final = tuple(groups)
        self.shown: Final[dict[int, Candidate]] = {}
        """What scheduler plugins see of those they were ever shown, by position."""

        self._whole: _Whole | None = None

    def __len__(self) -> int:
        return len(self.credentials)

    def whole(self, shelf: Shelf) -> "_Whole":
        """Who of them is on the shelf of whole credentials."""
        if self._whole is None or not self._whole.is_of(shelf):
            self._whole = _Whole(self, shelf)
        return self._whole

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids, in order."""
        return tuple(credential.id for credential in self.credentials)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where each id stands."""
        return {credential_id: position for position, credential_id in enumerate(self.ids)}

    @cached_property
    def retries(self) -> frozenset[int | None]:
        """The limits of retry rounds that occur."""
        return frozenset(credential.request_retry for credential in self.credentials)

    @cached_property
    def all_weighted(self) -> bool:
        """Whether nobody is left out while the strategy goes by weight."""
        return all(credential.weight > 0 for credential in self.credentials)

    @cached_property
    def weights(self) -> int:
        """Differs when somebody comes, goes or has another weight."""
        return hash(tuple((credential.id, credential.weight) for credential in self.credentials))

    @cached_property
    def by_id(self) -> Sequence[int] | None:
        """The positions in the order of the ids; None when that is the order they stand in."""
        order = sorted(range(len(self.credentials)), key=self.ids.__getitem__)
        return None if all(position == number for number, position in enumerate(order)) else order

    @cached_property
    def by_weight(self) -> "tuple[tuple[int, tuple[int, ...], Members], ...]":
        """Weights above 0, the largest first; the positions of those who have one, and these as members alone."""
        found: dict[int, list[int]] = {}
        for position, credential in enumerate(self.credentials):
            if credential.weight > 0:
                found.setdefault(credential.weight, []).append(position)
        if len(found) == 1:
            weight, positions = next(iter(found.items()))
            if len(positions) == len(self.credentials):
                return ((weight, tuple(positions), self),)
        return tuple(
            (weight, tuple(found[weight]), self._only(found[weight])) for weight in sorted(found, reverse=True)
        )

    def only(self, wanted: Callable[[Credential, int], bool]) -> "Members":
        """Those whom `wanted` picks, by credential and group."""
        groups = self.groups or (0,) * len(self.credentials)
        pairs = zip(self.credentials, groups, strict=True)
        return self._only([position for position, pair in enumerate(pairs) if wanted(*pair)])

    def _only(self, positions: Sequence[int]) -> "Members":
        groups = [self.groups[position] for position in positions] if self.groups else ()
        return Members([self.credentials[position] for position in positions], groups)


class _Whole:
    """Who of some members is blocked whatever the model: one picture for all models, brought up to date once."""

    __slots__ = ("_blocked", "_members", "_seen", "_shelf")

    def __init__(self, members: Members, shelf: Shelf) -> None:
        self._members: Final = members
        self._shelf: Final = shelf
        self._seen = -1
        self._blocked = array(_POSITION)

    def is_of(self, shelf: Shelf) -> bool:
        """Whether it is a picture of this shelf."""
        return self._shelf is shelf

    def blocked(self) -> "array[int]":
        """Their positions, sorted; to be copied."""
        shelf, blocked = self._shelf, self._blocked
        if shelf.version == self._seen:
            return blocked
        later = shelf.since(self._seen) if self._seen >= 0 else None
        self._seen = shelf.version
        if later is None:
            positions = self._members.positions if shelf.blocks else {}
            self._blocked = array(_POSITION, sorted(positions[it] for it in shelf.blocks if it in positions))
            return self._blocked
        positions = self._members.positions
        for credential_id in dict.fromkeys(later):
            position = positions.get(credential_id)
            if position is None:
                continue
            index = bisect_left(blocked, position)
            was_blocked = index < len(blocked) and blocked[index] == position
            is_blocked = credential_id in shelf.blocks
            if is_blocked and not was_blocked:
                blocked.insert(index, position)
            elif was_blocked and not is_blocked:
                del blocked[index]
        return blocked


class _Ends:
    """When blocked members are back: one change costs the logarithm of how many there are.

    Told of ends that come earlier. One that has moved to later is noticed when its time would have come first.
    """

    __slots__ = ("_heap", "_known", "_look", "_others")

    def __init__(self, blocked: Iterable[int], look: Callable[[int], CoolState | None]) -> None:
        found = ((position, look(position)) for position in blocked)
        self._look: Final = look
        self._known = {position: (state.until_s, state.quota) for position, state in found if state is not None}
        self._heap = [(until_s, position) for position, (until_s, _) in self._known.items()]
        heapq.heapify(self._heap)
        self._others = sum(not quota for _, quota in self._known.values())
        """How many are blocked for another reason than a limit."""

    def set(self, position: int, *, blocked: bool) -> None:
        """Look at one member again."""
        before = self._known.pop(position, None)
        if before is not None and not before[1]:
            self._others -= 1
        state = self._look(position) if blocked else None
        if state is None:
            return
        self._known[position] = state.until_s, state.quota
        if not state.quota:
            self._others += 1
        if before is None or before[0] != state.until_s:
            heapq.heappush(self._heap, (state.until_s, position))
        if len(self._heap) > 64 + 4 * len(self._known):
            # A block that is set again and again leaves an entry each time.
            self._heap[:] = [(until_s, position) for position, (until_s, _) in self._known.items()]
            heapq.heapify(self._heap)

    def first(self, *, without: Collection[int]) -> tuple[float, bool] | None:
        """When the first is back, some left aside, and whether all of them are blocked by a limit."""
        heap, known, aside, found = self._heap, self._known, [], None
        while heap:
            until_s, position = heap[0]
            if position not in known or known[position][0] != until_s:
                heapq.heappop(heap)
            elif position in without:
                aside.append(heapq.heappop(heap))
            elif (state := self._look(position)) is not None and state.until_s != until_s:
                self.set(position, blocked=True)
            else:
                found = until_s
                break
        for entry in aside:
            heapq.heappush(heap, entry)
        if found is None:
            return None
        return found, self._others == sum(position in known and not known[position][1] for position in without)


class Ready:
    """Which members are free for their models.

    `shelves`: per kind of lane the shelves of its upstream models. A member is blocked when it is on the shelf of whole
    credentials, or on every one of its own.
    """

    __slots__ = ("_blocked", "_book", "_ends", "_seen", "_shelves", "_watched", "count", "members", "version")

    def __init__(self, members: Members, shelves: Sequence[tuple[Shelf, ...]], book: CooldownBook) -> None:
        self.members: Final = members
        self.version = -1
        """The version of the book this picture is of."""
        self.count = len(members.credentials)
        """How many are free."""
        self._book: Final = book
        self._shelves: Final = tuple(shelves)
        self._watched: Final = tuple(dict.fromkeys((book.everywhere, *(it for kind in shelves for it in kind))))
        self._seen: list[int] = []
        self._blocked = array(_POSITION)
        self._ends: _Ends | None = None
        """When each of the blocked is back; made when somebody asks."""
        self.sync()

    def part(self, members: Members) -> "Ready":
        """The same over some of the members."""
        return self if members is self.members else Ready(members, self._shelves, self._book)

    def sync(self) -> None:
        """Bring the picture up to date."""
        if self.version == self._book.version:
            return
        self.version = self._book.version
        changed: list[str] = []
        own = 0
        for index, shelf in enumerate(self._watched):
            own += len(shelf.blocks) if index else 0
            seen = self._seen[index] if self._seen else -1
            if shelf.version == seen:
                continue
            later = shelf.since(seen) if seen >= 0 else None
            if later is None:
                self._look_at_all()
                return
            changed += later
            self._seen[index] = shelf.version
        if len(changed) > max(_FEW, own // 2):
            self._look_at_all()
        elif changed:
            positions = self.members.positions
            for credential_id in changed:
                position = positions.get(credential_id)
                if position is not None:
                    self._look_at(position, credential_id)
            self.count = len(self.members.credentials) - len(self._blocked)

    def at(self, number: int) -> int:
        """The position of the free member with this number, from 0."""
        blocked = self._blocked
        if not blocked:
            return number
        # In front of the i-th blocked position there are `blocked[i] - i` free ones.
        low, high = 0, len(blocked)
        while low < high:
            middle = (low + high) // 2
            if blocked[middle] - middle <= number:
                low = middle + 1
            else:
                high = middle
        return number + low

    def rank(self, position: int) -> int:
        """How many free members stand in front of a position."""
        return position - bisect_left(self._blocked, position) if self._blocked else position

    def is_free(self, position: int) -> bool:
        """Whether the member at a position is free."""
        index = bisect_left(self._blocked, position)
        return index == len(self._blocked) or self._blocked[index] != position

    def first_ids(self, count: int) -> Sequence[str]:
        """The ids of the first free members, for the trace."""
        ids = self.members.ids
        if not self._blocked or self._blocked[0] >= count:
            return ids[:count]
        found: list[str] = []
        start = 0
        for position in self._blocked:
            if position > start:
                found += ids[start:position]
                if len(found) >= count:
                    return found[:count]
            start = position + 1
        return (found + list(ids[start : start + count]))[:count]

    def free(self, start: int = 0) -> Iterator[int]:
        """The positions of all who are free, in order, from a position on."""
        blocked = self._blocked
        for index in range(bisect_left(blocked, start), len(blocked)):
            yield from range(start, blocked[index])
            start = blocked[index] + 1
        yield from range(start, len(self.members.credentials))

    def recovery(self, *, without: Collection[str] = ()) -> tuple[float, bool] | None:
        """When the first blocked member is back, and whether all are blocked by a limit; None when none is blocked.

        `without`: a few ids that do not count.
        """
        if self._ends is None:
            self._ends = _Ends(self._blocked, self.block_at)
        positions = self.members.positions if without else {}
        return self._ends.first(without={positions[it] for it in without if it in positions})

    def recovery_of(self, allowed: Callable[[Credential], bool]) -> tuple[float, bool] | None:
        """The same of those whom `allowed` admits; looks at each of the blocked."""
        credentials = self.members.credentials
        states = [
            state
            for position in self._blocked
            if allowed(credentials[position]) and (state := self.block_at(position)) is not None
        ]
        if not states:
            return None
        return min(state.until_s for state in states), all(state.quota for state in states)

    def blocks(self) -> list[CoolState]:
        """Everything that keeps members away."""
        ids = self.members.ids
        found: dict[int, CoolState] = {}
        for position in self._blocked:
            for shelf in (self._book.everywhere, *self._shelves_of(position)):
                if (state := shelf.blocks.get(ids[position])) is not None:
                    found[id(state)] = state
        return list(found.values())

    def block_at(self, position: int) -> CoolState | None:
        """What keeps the member at a position away longest: its own block, or of several models the first to end."""
        credential_id = self.members.ids[position]
        whole = self._book.everywhere.blocks.get(credential_id)
        own: CoolState | None = None
        for shelf in self._shelves_of(position):
            state = shelf.blocks.get(credential_id)
            if state is None:
                return whole
            if own is None or state.until_s < own.until_s:
                own = state
        if whole is None or (own is not None and own.until_s > whole.until_s):
            return own
        return whole

    def _shelves_of(self, position: int) -> tuple[Shelf, ...]:
        groups = self.members.groups
        return self._shelves[groups[position] if groups else 0]

    def _look_at(self, position: int, credential_id: str) -> None:
        blocked = self._blocked
        index = bisect_left(blocked, position)
        was_blocked = index < len(blocked) and blocked[index] == position
        is_blocked = self._is_blocked(position, credential_id)
        if is_blocked and not was_blocked:
            blocked.insert(index, position)
        elif was_blocked and not is_blocked:
            del blocked[index]
        if self._ends is not None:
            self._ends.set(position, blocked=is_blocked)

    def _is_blocked(self, position: int, credential_id: str) -> bool:
        if credential_id in self._book.everywhere.blocks:
            return True
        return all(credential_id in shelf.blocks for shelf in self._shelves_of(position))

    def _look_at_all(self) -> None:
        """From the shelves anew: as much work as there are blocks for these models, not as there are credentials."""
        self._ends = None
        self._seen = [shelf.version for shelf in self._watched]
        everywhere, *own = self._watched
        blocked = self.members.whole(everywhere).blocked()[:]
        maybe = {it for shelf in own for it in shelf.blocks if it not in everywhere.blocks}
        if maybe:
            positions = self.members.positions
            found = ((positions[credential_id], credential_id) for credential_id in maybe if credential_id in positions)
            more = [position for position, it in found if self._is_blocked(position, it)]
            blocked = array(_POSITION, sorted((*blocked, *more)))
        self._blocked = blocked
        self.count = len(self.members.credentials) - len(blocked)
