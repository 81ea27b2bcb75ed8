"""Makes decoded structs as immutable as those a plugin gets inside the host: it sees the same types in both."""

from collections.abc import Callable, Sequence
from functools import cache
from types import UnionType
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Raw, Struct, UnsetType
from msgspec.structs import force_setattr

from pluginabi.body import Body, StreamItem
from pluginabi.frames import Usage
from pluginabi.immutable import EMPTY_METADATA, FrozenDict, Headers

S = TypeVar("S", bound=Struct)
_Freezer: TypeAlias = Callable[[Any], Any]

_LEAVES: Final = frozenset({str, int, float, bool, type(None), bytes, Raw, Body, StreamItem, Usage, UnsetType})
"""Types that hold nothing that could be changed."""


def frozen(payload: S) -> S:
    """The same object, its lists made tuples and its dicts `FrozenDict`s, all the way down.

    Only for a struct that was just decoded and that nobody else holds: it is changed in place.
    """
    for name, freezer in _container_fields(type(payload)):
        force_setattr(payload, name, freezer(getattr(payload, name)))
    return payload


@cache
def _container_fields(struct_type: type[Struct]) -> tuple[tuple[str, _Freezer], ...]:
    """The fields that can hold something changeable, and what freezes them."""
    fields = msgspec.structs.fields(struct_type)
    return tuple((field.name, _freezer(field.type)) for field in fields if not _is_leaf(field.type))


def _is_leaf(field_type: Any) -> bool:
    if isinstance(field_type, UnionType):
        return all(_is_leaf(member) for member in field_type.__args__)
    return field_type in _LEAVES


def _freezer(field_type: Any) -> _Freezer:
    """Most of what there is to freeze has a known shape, of which nothing needs to be asked for every value."""
    if field_type == Headers:
        return _frozen_headers
    if field_type == Sequence[str]:
        return tuple
    return _frozen_value


def _frozen_headers(value: dict[str, Any]) -> Headers:
    if not value:
        return EMPTY_METADATA
    for key, values in value.items():
        value[key] = tuple(values)
    return FrozenDict(value)


def _frozen_value(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        if not value:
            return EMPTY_METADATA
        # In place first: copying a finished dict costs a fraction of building a second one.
        for key, member in value.items():
            if type(member) not in _LEAVES:
                value[key] = _frozen_value(member)
        return FrozenDict(value)
    if kind is list:
        return tuple([_frozen_value(element) for element in value])
    if kind in _LEAVES:
        return value
    return frozen(value) if isinstance(value, Struct) else value
