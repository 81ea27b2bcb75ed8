"""Which `auth-index` the entries of a list of keys have: in the file there may be more of them than are used."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from host.config.model import Config, ProviderKey
from host.config.sanitise import Dropped, usable
from host.credentials.configured import ConfiguredKeys
from host.credentials.ids import COMPAT_FAMILY
from host.credentials.records import HandleMint
from host.management.config_file import FileView

_UNUSED: Final = -1
_IDENTIFYING: Final = ("api-key", "base-url", "proxy-url", "prefix", "headers")


@dataclass(frozen=True, slots=True)
class KeyIndexes:
    """Of one entry; empty where nothing is used of it. `entries`: of the keys of a compatible provider."""

    own: str = ""
    entries: tuple[str, ...] = ()


class KeyIndex:
    """Knows the indexes of the configuration that was asked for last, and for the next one only what differs. For any
    thread."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._keys: Final = ConfiguredKeys(HandleMint())
        self._latest: tuple[Config, dict[str, dict[int, list[str]]]] = Config(), {}

    def of(self, section: str, items: Sequence[Any], view: FileView) -> list[KeyIndexes]:
        """For every item of the list in the file, what the configuration made of it."""
        by_place = self._by_place(section, view.config)
        if view.dropped is not None:
            places = list(_places(section, len(items), view.dropped))
        elif section == COMPAT_FAMILY:
            places = list(_places_with_address(items))
        else:
            places = list(_places_of_same(section, items, view.config))
        found = (tuple(by_place.get(place, ())) for place in places)
        if section == COMPAT_FAMILY:
            return [
                KeyIndexes(entries=indexes) if _has_keys(item) else KeyIndexes(own=_first(indexes))
                for item, indexes in zip(items, found, strict=True)
            ]
        return [KeyIndexes(own=_first(indexes)) for indexes in found]

    def _by_place(self, section: str, config: Config) -> Mapping[int, Sequence[str]]:
        with self._lock:
            if self._latest[0] is not config:
                self._latest = config, {}
            found = self._latest[1]
            if section not in found:
                found[section] = self._keys.indexes(config, section)
            return found[section]


def _places(section: str, count: int, dropped: Sequence[Dropped]) -> Iterator[int]:
    """The place in the configuration of every item of the file that it was made of."""
    gone = {it.position: it.repeats for it in dropped if it.section == section}
    used = 0
    for number in range(count):
        if number in gone:
            yield gone[number]
        else:
            yield used
            used += 1


def _places_with_address(items: Sequence[Any]) -> Iterator[int]:
    """Of compatible providers, of a file that is not what the configuration was made of."""
    used = 0
    for item in items:
        if isinstance(item, Mapping) and str(item.get("base-url") or "").strip():
            yield used
            used += 1
        else:
            yield _UNUSED


def _places_of_same(section: str, items: Sequence[Any], config: Config) -> Iterator[int]:
    """The same of keys: those that the configuration has too."""
    used: Sequence[ProviderKey] = getattr(config, section.replace("-", "_"))
    known = {_identity(entry): place for place, entry in enumerate(used)}
    for item in items:
        entry = _used(section, item)
        yield known.get(_identity(entry), _UNUSED) if entry is not None else _UNUSED


def _has_keys(item: Any) -> bool:
    return isinstance(item, Mapping) and bool(item.get("api-key-entries"))


def _first(indexes: Sequence[str]) -> str:
    return indexes[0] if indexes else ""


def _used(section: str, item: Any) -> ProviderKey | None:
    """What tells an entry from others, as loading would take it; None when it would not."""
    if not isinstance(item, Mapping):
        return None
    named = {name: item[name] for name in _IDENTIFYING if item.get(name) is not None}
    try:
        return usable(msgspec.convert(named, ProviderKey), section)
    except msgspec.ValidationError:
        return None


def _identity(entry: ProviderKey) -> tuple[object, ...]:
    headers = tuple(sorted((name.lower(), value) for name, value in entry.headers.items()))
    return entry.api_key, entry.base_url, entry.proxy_url, entry.prefix, headers
