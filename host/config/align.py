"""Which items of a changed list are which items of the list before."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from host.config.tree import plain_value

_IDENTITY: Final = ("api-key", "key", "name", "id", "alias")
"""What makes an entry of a configuration the one it was."""


def same(one: Any, other: Any) -> bool:
    """As `host.config.tree.alike`, in a small part of the time where nothing differs."""
    is_mapping = isinstance(one, dict)
    if is_mapping or isinstance(one, list):
        if one is other or _is_written_alike(one, other):
            return True
        if not isinstance(other, dict if is_mapping else list) or len(one) != len(other):
            return False
        if is_mapping:
            return all(key in other and same(value, other[key]) for key, value in one.items())
        return all(map(same, one, other))
    if type(one) is not type(other):
        one, other = plain_value(one), plain_value(other)
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def _is_written_alike(one: Any, other: Any) -> bool:
    try:
        return msgspec.json.encode(one) == msgspec.json.encode(other)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False  # keys and numbers that JSON has not


def aligned(old: Sequence[Any], new: Sequence[Any]) -> list[int | None]:
    """For each new item the place of the one in `old` that it is, or continues; no place twice.

    An item that came out of the old list says so by its `source`; others are found by what they say, and by what
    makes an entry the one it was.
    """
    found: list[int | None] = [None] * len(new)
    places = {id(node): place for place, node in enumerate(old)}
    for number, item in enumerate(new):
        if (source := getattr(item, "source", None)) is not None:
            found[number] = places.pop(id(source), None)
    free_new = [number for number, place in enumerate(found) if place is None]
    if free_new:
        used = {*found}
        free_old = [place for place in range(len(old)) if place not in used]
        _pair_equal(old, new, found, free_old, free_new)
        _pair_alike(old, new, found)
        _pair_in_gaps(old, new, found)
    return found


def _pair_equal(
    old: Sequence[Any], new: Sequence[Any], found: list[int | None], free_old: list[int], free_new: list[int]
) -> None:
    while free_old and free_new and same(new[free_new[-1]], old[free_old[-1]]):
        found[free_new.pop()] = free_old.pop()
    begin = 0
    while begin < min(len(free_old), len(free_new)) and same(new[free_new[begin]], old[free_old[begin]]):
        found[free_new[begin]] = free_old[begin]
        begin += 1
    _pair(found, [(_token(old[place]), place) for place in free_old[begin:]], new, free_new[begin:], _token)


def _pair_alike(old: Sequence[Any], new: Sequence[Any], found: list[int | None]) -> None:
    left = [(token, place) for place in _unused(old, found) if (token := _identity(old[place]))]
    _pair(found, left, new, [number for number, place in enumerate(found) if place is None], _identity)


def _pair(
    found: list[int | None], old: Sequence[tuple[Any, int]], new: Sequence[Any], numbers: Sequence[int], token_of: Any
) -> None:
    if not old or not numbers:
        return
    places: dict[Any, deque[int]] = {}
    for token, place in old:
        places.setdefault(token, deque()).append(place)
    for number in numbers:
        token = token_of(new[number])
        if token and (waiting := places.get(token)):
            found[number] = waiting.popleft()


def _pair_in_gaps(old: Sequence[Any], new: Sequence[Any], found: list[int | None]) -> None:
    """Items that were changed beyond recognition, as many as there were at that place."""
    left = {*_unused(old, found)}
    for begin, end in _gaps(found):
        before = found[begin - 1] if begin else -1
        after = found[end] if end < len(found) else len(old)
        if before is None or after is None or after - before - 1 != end - begin:
            continue
        places = range(before + 1, after)
        if left.issuperset(places) and all(map(_is_of_one_kind, (old[it] for it in places), new[begin:end])):
            found[begin:end] = places


def _gaps(found: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    begin = None
    for number, place in enumerate((*found, 0)):
        if place is not None and begin is not None:
            yield begin, number
            begin = None
        elif place is None and begin is None:
            begin = number


def _unused(old: Sequence[Any], found: Sequence[int | None]) -> list[int]:
    used = {*found}
    return [place for place in range(len(old)) if place not in used]


def _is_of_one_kind(one: Any, other: Any) -> bool:
    return isinstance(one, dict) == isinstance(other, dict) and isinstance(one, list) == isinstance(other, list)


def _token(value: Any) -> Any:
    """Equal for values that are `same`, and never empty."""
    if isinstance(value, dict):
        return frozenset((key, _token(member)) for key, member in value.items()), None
    if isinstance(value, list):
        return tuple(map(_token, value)), False
    value = plain_value(value)
    return (type(value), value if value == value else "nan")


def _identity(item: Any) -> Any:
    """Empty for what has none."""
    if not isinstance(item, dict):
        return ()
    return tuple((name, str(item[name])) for name in _IDENTITY if isinstance(item.get(name), (str, int)))
