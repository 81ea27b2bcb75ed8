"""Which `auth-index` the entries of a list of keys have: in the file there may be more of them than are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from host.config.model import Config, ProviderKey
from host.config.sanitise import sanitise
from host.credentials.configured import ConfiguredKeys
from host.credentials.ids import COMPAT_FAMILY
from host.credentials.records import HandleMint


@dataclass(frozen=True, slots=True)
class KeyIndexes:
    """Of one entry; empty where nothing is used of it. `entries`: of the keys of a compatible provider."""

    own: str = ""
    entries: tuple[str, ...] = ()


def key_indexes(section: str, items: Sequence[Mapping[str, Any]], config: Config) -> list[KeyIndexes]:
    """For every item of the list in the file, what the configuration made of it."""
    keys = ConfiguredKeys(HandleMint())
    records = keys.read(config)
    by_place: dict[int, list[str]] = {}
    for credential_id, at in keys.places.items():
        if at.section == section:
            by_place.setdefault(at.position, []).append(records[credential_id].auth_index)
    if section == COMPAT_FAMILY:
        return _of_compat(items, by_place)
    used: Sequence[ProviderKey] = getattr(config, section.replace("-", "_"))
    known = {_identity(entry): place for place, entry in enumerate(used)}
    found: list[KeyIndexes] = []
    for item in items:
        entry = _used(section, item)
        place = known.get(_identity(entry), -1) if entry is not None else -1
        found.append(KeyIndexes(own=_first(by_place.get(place, []))))
    return found


def _of_compat(items: Sequence[Mapping[str, Any]], by_place: Mapping[int, Sequence[str]]) -> list[KeyIndexes]:
    found, place = [], 0
    for item in items:
        if not str(item.get("base-url") or "").strip():
            found.append(KeyIndexes())
            continue
        indexes = tuple(by_place.get(place, ()))
        has_keys = bool(item.get("api-key-entries"))
        found.append(KeyIndexes(entries=indexes) if has_keys else KeyIndexes(own=_first(indexes)))
        place += 1
    return found


def _first(indexes: Sequence[str]) -> str:
    return indexes[0] if indexes else ""


def _used(section: str, item: Mapping[str, Any]) -> ProviderKey | None:
    """The entry as loading would take it; None when it would not."""
    try:
        config = msgspec.convert({section: [item]}, Config)
    except msgspec.ValidationError:
        return None
    kept: Sequence[ProviderKey] = getattr(sanitise(config)[0], section.replace("-", "_"))
    return kept[0] if kept else None


def _identity(entry: ProviderKey) -> tuple[object, ...]:
    headers = tuple(sorted((name.lower(), value) for name, value in entry.headers.items()))
    return entry.api_key, entry.base_url, entry.proxy_url, entry.prefix, headers
