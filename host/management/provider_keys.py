"""Endpoints for providers' keys: lists of the configuration, shown without their secrets (spec credentials 8.2, 8.4).

An item is named by its place (`index`), by its `auth-index`, by its key or the mask it is shown as, a compatible
provider by its name.
"""

import asyncio
import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from host.config.load import to_plain
from host.config.model import CompatKey, CompatProvider, Config, ProviderKey, Section
from host.config.sanitise import sanitise
from host.credentials.configured import PROVIDER_LISTS
from host.credentials.ids import COMPAT_FAMILY
from host.management.calls import INVALID, Call, ManagementError, only, reply
from host.management.config_file import ConfigFile, FileView
from host.management.key_index import KeyIndex, KeyIndexes
from host.management.masks import Masks
from host.management.table import Endpoint, Handler

SHOWN_ONLY: Final = frozenset({"auth-index", "index"})
"""Members of an answer that are no fields: a list that was read can be sent back."""
_NOT_WRITABLE: Final = frozenset({"cloak", "experimental-cch-signing", "rebuild-mid-system-message"})
_NEEDS_ADDRESS: Final = frozenset({"codex-api-key", COMPAT_FAMILY})
_NAMING: Final = ("name", "auth-index", "base-url")
_NOT_FOUND: Final = "item not found"


def _fields_of(kind: type[Section]) -> frozenset[str]:
    return frozenset(kind.__struct_encode_fields__) - _NOT_WRITABLE


_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(PROVIDER_LISTS, _fields_of(ProviderKey)),
    COMPAT_FAMILY: _fields_of(CompatProvider),
}
_ENTRY_FIELDS: Final = _fields_of(CompatKey)

Item = dict[str, Any]


class ProviderKeyEndpoints:
    """The rows of the five lists."""

    def __init__(self, file: ConfigFile, masks: Masks) -> None:
        self._file: Final = file
        self._masks: Final = masks
        self._indexes: Final = KeyIndex()

    def endpoints(self) -> Iterator[Endpoint]:
        """For the table."""
        for section in _FIELDS:
            yield Endpoint("GET", f"/{section}", self._lists(section))
            yield Endpoint("PUT", f"/{section}", self._replaces(section))
            yield Endpoint("PATCH", f"/{section}", self._patches(section))
            yield Endpoint("DELETE", f"/{section}", self._deletes(section))

    def _lists(self, section: str) -> Handler:
        async def handle(call: Call) -> web.Response:
            # Thousands of keys: nobody else waits meanwhile.
            return await asyncio.to_thread(self._listed, section, await self._file.view())

        return handle

    def _listed(self, section: str, view: FileView) -> web.Response:
        items: list[Item] = to_plain(view.tree.get(section)) or []
        indexes = self._indexes.of(section, items, view)
        shown = self._masks.masked({section: items})
        for item, found in zip(shown[section], indexes, strict=True):
            _show_indexes(item, found)
        return reply(shown)

    def _replaces(self, section: str) -> Handler:
        async def handle(call: Call) -> web.Response:
            sent = [_checked(section, item) for item in await items_in(call)]
            ignored: list[str] = []

            def edit(tree: dict[Any, Any]) -> None:
                items: list[Item] = copy.deepcopy(sent)
                self._masks.unmasked({section: items}, {section: to_plain(tree.get(section)) or []})
                items, ignored[:] = _useful(section, items)
                _set_list(tree, section, _nodes(items, _list_of(tree, section)))

            answer = await self._file.change(edit)
            return reply({**answer, "ignored": ignored} if ignored else answer)

        return handle

    def _patches(self, section: str) -> Handler:
        async def handle(call: Call) -> web.Response:
            fields = await call.json_object(INVALID)
            only(fields, ("index", "match", "name", "auth-index", "base-url", "value"))
            value = fields.get("value")
            if not isinstance(value, dict):
                raise ManagementError(400, INVALID)
            change = _checked(section, value)

            def edit(tree: dict[Any, Any], view: FileView) -> None:
                nodes = _list_of(tree, section)
                place = self._one(section, nodes, fields, view)
                # The masks of what the change does not name say where it went so far: a new address needs a new key.
                present = {section: [to_plain(nodes[place])]}
                item = self._masks.masked(copy.deepcopy(present))[section][0]
                item = {name: it for name, it in {**item, **change}.items() if it is not None}
                if section in _NEEDS_ADDRESS and not _text(item.get("base-url")):
                    del nodes[place]
                else:
                    self._masks.unmasked({section: [item]}, present)
                    _update(nodes[place], item)
                _set_list(tree, section, nodes)

            return reply(await self._file.change_knowing(edit))

        return handle

    def _deletes(self, section: str) -> Handler:
        async def handle(call: Call) -> web.Response:
            named: Item = {name: given for name in _NAMING if (given := call.argument(name))}
            if key := call.argument("api-key"):
                named["match"] = key
            if call.argument("index").strip():
                named["index"] = call.number("index", 0, lowest=-1, highest=1 << 31)
            if not named.keys() - {"base-url"}:
                raise ManagementError(400, f"missing {'name' if section == COMPAT_FAMILY else 'api-key'} or index")

            def edit(tree: dict[Any, Any], view: FileView) -> None:
                nodes = _list_of(tree, section)
                del nodes[self._one(section, nodes, named, view)]
                _set_list(tree, section, nodes)

            return reply(await self._file.change_knowing(edit))

        return handle

    def _one(self, section: str, items: Sequence[Item], named: Item, view: FileView) -> int:
        """The place of the item that `named` names. Raises ManagementError 400 or 404."""
        if (index := named.get("index")) is not None:
            if isinstance(index, bool) or not isinstance(index, int):
                raise ManagementError(400, INVALID)
            if not 0 <= index < len(items):
                raise ManagementError(404, _NOT_FOUND)
            return index
        if (auth_index := named.get("auth-index")) is not None:
            indexes = self._indexes.of(section, items, view)
            found = [place for place, it in enumerate(indexes) if auth_index in (it.own, *it.entries)]
        elif section == COMPAT_FAMILY:
            wanted = _text(named.get("name"))
            found = [place for place, it in enumerate(items) if wanted and _text(it.get("name")) == wanted][:1]
        else:
            found = self._by_key(items, named)
        if not found:
            raise ManagementError(404, _NOT_FOUND)
        if len(found) > 1:
            raise ManagementError(400, "multiple items match api-key; base-url is required")
        return found[0]

    def _by_key(self, items: Sequence[Item], named: Item) -> list[int]:
        wanted, address = _text(named.get("match")), named.get("base-url")
        keys = [_text(item.get("api-key")) for item in items]
        found = [place for place, key in enumerate(keys) if wanted and wanted in (key, self._masks.mask(key))]
        if address is not None:
            found = [it for it in found if _address(items[it].get("base-url")) == _address(address)][:1]
        return found


async def items_in(call: Call) -> list[Any]:
    """A list, or `{"items": […]}` with at least one. Raises ManagementError 400."""
    value = await call.json_value(INVALID)
    if isinstance(value, dict):
        only(value, ("items",))
        value = value.get("items") or None
    if not isinstance(value, list):
        raise ManagementError(400, INVALID)
    return value


def _checked(section: str, item: Any) -> Item:
    """An item without what is only shown. Raises ManagementError 400 for members that nobody may set."""
    if not isinstance(item, dict):
        raise ManagementError(400, INVALID)
    found = {name: value for name, value in item.items() if name not in SHOWN_ONLY}
    only(found, _FIELDS[section])
    entries = found.get("api-key-entries")
    if isinstance(entries, list):
        found["api-key-entries"] = [_checked_entry(entry) for entry in entries]
    return found


def _useful(section: str, items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items that loading would keep, and why not the others."""
    try:
        config = msgspec.convert({section: items}, Config)
    except msgspec.ValidationError:
        return items, []  # what is wrong, the configuration's own check says
    why = {it.position: it.why for it in sanitise(config)[1]}
    return [item for place, item in enumerate(items) if place not in why], list(why.values())


def _checked_entry(entry: Any) -> Item:
    if not isinstance(entry, dict):
        raise ManagementError(400, INVALID)
    found = {name: value for name, value in entry.items() if name not in SHOWN_ONLY}
    only(found, _ENTRY_FIELDS)
    return found


def _show_indexes(item: Item, found: KeyIndexes) -> None:
    if found.own:
        item["auth-index"] = found.own
    if found.entries:
        for entry, index in zip(item["api-key-entries"], found.entries, strict=False):
            entry["auth-index"] = index


def _list_of(tree: dict[Any, Any], section: str) -> list[Any]:
    nodes = tree.get(section)
    return nodes if isinstance(nodes, list) else []


def _set_list(tree: dict[Any, Any], section: str, nodes: list[Any]) -> None:
    """Put a list in its place; an empty one goes."""
    if nodes:
        tree[section] = nodes
    else:
        tree.pop(section, None)


def _nodes(items: Sequence[Item], present: Sequence[Any]) -> list[Any]:
    """Nodes for items: those with the key and address of a present one keep its comments."""
    free: dict[tuple[str, ...], deque[Item]] = {}
    for node in present:
        if isinstance(node, dict):
            free.setdefault(_identity(node), deque()).append(node)
    found = []
    for item in items:
        waiting = free.get(_identity(item))
        node = waiting.popleft() if waiting else {}
        _update(node, item)
        found.append(node)
    return found


def _update(node: dict[str, Any], item: Item) -> None:
    for name in [name for name in node if name not in item]:
        del node[name]
    for name, value in item.items():
        if name not in node or to_plain(node[name]) != value:
            node[name] = value


def _identity(item: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_text(item.get(name)) for name in ("name", "api-key", "base-url"))


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _address(value: Any) -> str:
    return _text(value).rstrip("/")
