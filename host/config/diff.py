"""What changed between two configurations, for the log: paths and values, secrets never."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from host.config.model import Config

MAX_CHANGES: Final = 50
_SECRET: Final = frozenset(
    {"api-keys", "api-key", "secret-key", "key", "headers", "proxy-url", "password", "url", "config"}
)
"""Keys whose values are never shown; `config` is a plugin's own section, and only the plugin knows what it holds."""
_LEFT_OUT: Final = frozenset({"directory", "config-yaml"})


def changes(before: Config, after: Config) -> list[str]:
    """One text per changed key, like `port: 1 -> 2` or `claude-api-key: 2 -> 3 entries`; the first ones of many."""
    found: list[str] = []
    for change in _struct(before, after, ""):
        if len(found) == MAX_CHANGES:
            return [*found, "…"]
        found.append(change)
    return found


def _struct(before: Struct, after: Struct, path: str) -> Iterator[str]:
    for attribute, name in zip(before.__struct_fields__, before.__struct_encode_fields__, strict=True):
        old, new = getattr(before, attribute), getattr(after, attribute)
        if old != new and name not in _LEFT_OUT:
            yield from _value(old, new, f"{path}.{name}" if path else name, name)


def _value(old: Any, new: Any, path: str, name: str) -> Iterator[str]:
    if isinstance(old, Struct) and type(old) is type(new):
        yield from _struct(old, new, path)
    elif name in _SECRET:
        yield f"{path}: changed"
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _mapping(old, new, path)
    elif isinstance(old, Sequence) and isinstance(new, Sequence) and not isinstance(old, str):
        yield from _sequence(old, new, path)
    else:
        yield f"{path}: {_shown(old)} -> {_shown(new)}"


def _mapping(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        here = f"{path}.{key}"
        if key not in old:
            yield f"{here}: added"
        elif key not in new:
            yield f"{here}: removed"
        elif old[key] != new[key]:
            yield from _value(old[key], new[key], here, key)


def _sequence(old: Sequence[Any], new: Sequence[Any], path: str) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{path}: {len(old)} -> {len(new)} entries"
        return
    for index, (was, now) in enumerate(zip(old, new, strict=True)):
        if was != now:
            yield from _value(was, now, f"{path}[{index}]", "")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
