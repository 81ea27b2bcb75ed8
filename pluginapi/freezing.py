"""Makes decoded structs as immutable as those a plugin gets inside the host: it sees the same types in both."""

from functools import cache
from types import UnionType
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct, UnsetType
from msgspec.structs import force_setattr

from pluginabi.body import Body, StreamItem
from pluginabi.frames import Usage
from pluginabi.immutable import EMPTY_METADATA, FrozenDict, Headers

S = TypeVar("S", bound=Struct)

_LEAVES: Final = frozenset({str, int, float, bool, type(None), bytes, Raw, Body, StreamItem, Usage, UnsetType})
"""Types that hold nothing that could be changed."""


def frozen(payload: S) -> S:
    """The same object, its lists made tuples and its dicts `FrozenDict`s, all the way down.

    Only for a struct that was just decoded and that nobody else holds: it is changed in place.
    """
    for name, is_headers in _container_fields(type(payload)):
        value = getattr(payload, name)
        if type(value) is dict and is_headers:
            # Most of what there is to freeze, and of a known shape.
            force_setattr(payload, name, FrozenDict({key: tuple(values) for key, values in value.items()}))
        elif type(value) not in _LEAVES:
            force_setattr(payload, name, _frozen_value(value))
    return payload


@cache
def _container_fields(struct_type: type[Struct]) -> tuple[tuple[str, bool], ...]:
    """The fields that can hold something changeable, and whether they are headers."""
    fields = msgspec.structs.fields(struct_type)
    return tuple((field.name, field.type == Headers) for field in fields if not _is_leaf(field.type))


def _is_leaf(field_type: Any) -> bool:
    if isinstance(field_type, UnionType):
        return all(_is_leaf(member) for member in field_type.__args__)
    return field_type in _LEAVES


def _frozen_value(value: Any) -> Any:
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is list:
        return tuple([_frozen_value(element) for element in value])
    if kind is dict:
        return FrozenDict({key: _frozen_value(member) for key, member in value.items()}) if value else EMPTY_METADATA
    return frozen(value) if isinstance(value, Struct) else value
