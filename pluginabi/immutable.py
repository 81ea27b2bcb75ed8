"""Deeply immutable JSON-like values, so that one object can be shown to every in-process plugin without copies."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeAlias

Headers: TypeAlias = Mapping[str, Sequence[str]]
"""Lower-cased name -> values."""
Metadata: TypeAlias = Mapping[str, Any]


class FrozenDict(dict[str, Any]):
    """A dict that refuses every change. A dict subclass, so that msgspec encodes it like any other object."""

    __slots__ = ()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("plugin inputs are immutable; answer a delta instead")

    __setitem__ = __delitem__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none
        return id(self)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        copied: dict[str, Any] = thaw(self)
        return copied


EMPTY_HEADERS: Final[Headers] = FrozenDict()
EMPTY_METADATA: Final[Metadata] = FrozenDict()


def freeze_headers(items: Iterable[tuple[str, str]]) -> Headers:
    """Headers (or query) from name/value pairs; names are lower-cased, repeated names keep all values in order."""
    out: dict[str, tuple[str, ...]] = {}
    for name, value in items:
        key = name.lower()
        out[key] = (*out[key], value) if key in out else (value,)
    return FrozenDict(out)


def freeze(value: Any) -> Any:
    """A deeply immutable copy of a JSON-like value, without what JSON cannot carry.

    Scalars stay, maps and lists are followed (a cycle is cut), anything else is dropped: an element from its list, a
    member from its map (spec plugin-abi 2.1, vectors 38 and 39). A map that ends up empty is kept as an empty map.
    """
    frozen = _freeze(value, frozenset())
    return None if frozen is _DROPPED else frozen


class _Dropped:
    """Marks a value that JSON cannot carry."""


_DROPPED: Final = _Dropped()


def _freeze(value: Any, parents: frozenset[int]) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if id(value) in parents:
        return _DROPPED
    inside = parents | {id(value)}
    if isinstance(value, Mapping):
        members = ((str(key), _freeze(member, inside)) for key, member in value.items())
        return FrozenDict({key: member for key, member in members if member is not _DROPPED})
    if isinstance(value, (list, tuple)):
        return tuple(item for item in (_freeze(item, inside) for item in value) if item is not _DROPPED)
    return _DROPPED


def thaw(value: Any) -> Any:
    """A mutable deep copy (dicts and lists) of a JSON-like value."""
    if isinstance(value, Mapping):
        return {key: thaw(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value
