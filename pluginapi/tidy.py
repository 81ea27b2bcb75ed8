"""Checks what an author put into an answer, so that a mistake is the same named error in every carrier.

Structs are not validated when they are made. In a process a wrong value fails while it is encoded or decoded; inside
the host it would travel on as it is and break something far away. The short spellings that streams take are taken here
too: a body may be a mapping, text or bytes, a patch a mapping, a header's value a string.
"""

import functools
import itertools
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Raw, Struct, UnsetType
from msgspec.structs import replace

from pluginabi.body import Body, is_json
from pluginabi.immutable import FrozenDict
from pluginapi.answers import to_body, to_headers

S = TypeVar("S", bound=Struct)
Fix: TypeAlias = Callable[[Any], Any]
"""The value itself when nothing is to be done, else what was meant. Raises TypeError that says what was expected."""

Rule: TypeAlias = tuple[str, frozenset[type[Any]], Fix]
"""Field, types of values that need no look, and the fix for all others."""

MAX_SHOWN_CHARS: Final = 80
_EMPTY: Final = frozenset({dict, tuple, list, FrozenDict})
_LEAVES: Final = frozenset({Body, Raw, str, int, bool, float})


def tidy(value: S) -> S:
    """`value` with its short spellings written out. Raises TypeError that names the field that is wrong."""
    values_of, rules, right_shapes = _plan(type(value))
    values = values_of(value)
    shape = tuple(map(type, values))
    if shape in right_shapes:
        return value
    changes: dict[str, Any] | None = None
    plain = True
    for given, (name, right, fix) in zip(values, rules, strict=True):
        if type(given) in right:
            continue
        plain = False
        if not given and type(given) in _EMPTY:
            continue
        try:
            meant = fix(given)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        if meant is not given:
            changes = changes or {}
            changes[name] = meant
    if plain:
        right_shapes.add(shape)
    return value if changes is None else replace(value, **changes)


class _Plan(NamedTuple):
    """How answers of one type are checked."""

    values_of: Callable[[Any], tuple[Any, ...]]
    rules: tuple[Rule, ...]
    right_shapes: set[tuple[type[Any], ...]]
    """Types of the fields of answers that needed no closer look: there are few, and they come again and again."""


@functools.lru_cache(maxsize=256)
def _plan(kind: type[Struct]) -> _Plan:
    hints = typing.get_type_hints(kind)
    names = kind.__struct_fields__
    values_of = operator.attrgetter(*names) if len(names) > 1 else lambda value: tuple(getattr(value, n) for n in names)
    return _Plan(values_of, tuple(_rule(name, hints[name]) for name in names), set())


def _rule(name: str, hint: Any) -> Rule:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    optional = tuple(part for part in parts if part in (UnsetType, types.NoneType))
    (main,) = (part for part in parts if part not in optional)
    right = frozenset({*optional, *((main,) if main in _LEAVES else ())})
    return name, right, _fix_of_type(name, main)


def _fix_of_type(name: str, hint: Any) -> Fix:
    if hint is Body:
        return to_body
    if hint is Raw:
        return _raw
    if isinstance(hint, type) and issubclass(hint, Struct):
        return functools.partial(_struct, hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return functools.partial(_one_of, typing.get_args(hint))
    if name == "headers" and origin is Mapping:
        return _headers
    if origin is Mapping:
        return functools.partial(_instance, Mapping)
    if origin is Sequence:
        return functools.partial(_list, typing.get_args(hint)[0])
    return functools.partial(_instance, hint) if isinstance(hint, type) else lambda value: value


def _raw(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        text = value.encode() if isinstance(value, str) else value
        if not is_json(text):
            raise _expected("JSON", value)
        return Raw(text)
    return Raw(msgspec.json.encode(value))


def _struct(kind: type[Struct], value: Any) -> Any:
    if not isinstance(value, kind):
        raise _expected(kind.__name__, value)
    return tidy(value)


_LISTS: Final = frozenset({tuple, list})
_TEXT: Final = frozenset({str})


def _headers(value: Any) -> Any:
    if not isinstance(value, (dict, Mapping)):
        raise _expected("a mapping of names to lists of strings", value)
    found = value.values()
    if _LISTS.issuperset(map(type, found)) and _TEXT.issuperset(map(type, itertools.chain.from_iterable(found))):
        return value
    for values in value.values():
        if isinstance(values, str):
            return _headers(to_headers(value))
        if not isinstance(values, Sequence) or any(type(each) is not str for each in values):
            raise _expected("lists of strings as values", values)
    return value


def _list(item: Any, value: Any) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _expected("a list", value)
    if (item_of := _without_null(item)) is not item:
        present = [each for each in value if each is not None]
        meant = _list(item_of, present)
        if meant is present:
            return value
        fixed = iter(meant)
        return tuple(None if each is None else next(fixed) for each in value)
    if not value or not isinstance(item, type):
        return value
    if not issubclass(item, Struct):
        for each in value:
            _instance(item, each)
        return value
    meant = [_struct(item, each) for each in value]
    return value if all(map(operator.is_, meant, value)) else tuple(meant)


def _without_null(hint: Any) -> Any:
    """What a list's items are where they may be null; `hint` itself where they may not."""
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return parts[0] if isinstance(hint, types.UnionType) and len(parts) == 1 else hint


def _one_of(words: tuple[Any, ...], value: Any) -> Any:
    if value not in words:
        raise _expected(" or ".join(map(repr, words)), value)
    return value


def _instance(kind: type[Any], value: Any) -> Any:
    if kind is float and type(value) is int:
        return value
    # True is an int to Python, and no number to anybody who reads JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _expected(kind.__name__, value)
    return value


def _expected(what: str, value: Any) -> TypeError:
    shown = repr(value)
    if len(shown) > MAX_SHOWN_CHARS:
        shown = shown[:MAX_SHOWN_CHARS] + "…"
    return TypeError(f"expected {what}, got {shown}")
