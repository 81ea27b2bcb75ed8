"""Endpoints for what the configuration says per provider about credential files: excluded models, aliases, meanings of
errors (spec credentials 8.2, 12.8)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from host.config.load import to_plain
from host.config.model import ErrorRuleEntry, ModelAliasEntry
from host.management.calls import INVALID, Call, ManagementError, only, reply
from host.management.config_file import ConfigFile
from host.management.table import Endpoint, Handler


@dataclass(frozen=True, slots=True)
class ProviderMap:
    """One map of provider to list. `called`: what its keys are called; `items`: what its lists are."""

    section: str
    called: str
    items: str
    fields: frozenset[str] = frozenset()
    """Of an item; none: items are texts."""
    stays_empty: bool = False
    """An emptied map stays as an explicit *none*."""


MAPS: Final = (
    ProviderMap("oauth-excluded-models", "provider", "models"),
    ProviderMap(
        "oauth-model-alias",
        "channel",
        "aliases",
        frozenset(ModelAliasEntry.__struct_encode_fields__),
        stays_empty=True,
    ),
    ProviderMap("oauth-request-scoped-errors", "provider", "rules", frozenset(ErrorRuleEntry.__struct_encode_fields__)),
)


class ProviderMapEndpoints:
    """The rows of the maps."""

    def __init__(self, file: ConfigFile) -> None:
        self._file: Final = file

    def endpoints(self) -> Iterator[Endpoint]:
        """For the table."""
        for each in MAPS:
            yield Endpoint("GET", f"/{each.section}", self._shows(each))
            yield Endpoint("PUT", f"/{each.section}", self._replaces(each))
            yield Endpoint("PATCH", f"/{each.section}", self._sets(each))
            yield Endpoint("DELETE", f"/{each.section}", self._removes(each))

    def _shows(self, each: ProviderMap) -> Handler:
        async def handle(call: Call) -> web.Response:
            return reply({each.section: to_plain((await self._file.tree()).get(each.section)) or {}})

        return handle

    def _replaces(self, each: ProviderMap) -> Handler:
        async def handle(call: Call) -> web.Response:
            sent = await call.json_object(INVALID)
            if sent.keys() == {"items"} and isinstance(sent["items"], dict):
                sent = sent["items"]
            wanted = {_name(name): _items(each, items) for name, items in sent.items()}
            if "" in wanted:
                raise ManagementError(400, f"invalid {each.called}")

            def edit(tree: dict[Any, Any]) -> None:
                present = _map(tree, each)
                for name in [name for name in present if name not in wanted]:
                    del present[name]
                for name, items in wanted.items():
                    if to_plain(present.get(name)) != items:
                        present[name] = items
                _put(tree, each, present)

            return reply(await self._file.change(edit))

        return handle

    def _sets(self, each: ProviderMap) -> Handler:
        async def handle(call: Call) -> web.Response:
            fields = await call.json_object(INVALID)
            name = _name(fields.get(each.called) or fields.get("provider") or "")
            if not name:
                raise ManagementError(400, f"invalid {each.called}")
            only(fields, (each.called, "provider", each.items))
            if each.items not in fields:
                raise ManagementError(400, INVALID, f"{each.items} is required")
            items = _items(each, fields[each.items])

            def edit(tree: dict[Any, Any]) -> None:
                present = _map(tree, each)
                found = _spelled(present, name)
                if items:
                    present[found or name] = items
                elif found is None:
                    raise ManagementError(404, f"{each.called} not found")
                else:
                    del present[found]
                _put(tree, each, present)

            return reply(await self._file.change(edit))

        return handle

    def _removes(self, each: ProviderMap) -> Handler:
        async def handle(call: Call) -> web.Response:
            name = _name(call.argument(each.called) or call.argument("provider"))
            if not name:
                raise ManagementError(400, f"missing {each.called}")

            def edit(tree: dict[Any, Any]) -> None:
                present = _map(tree, each)
                found = _spelled(present, name)
                if found is None:
                    raise ManagementError(404, f"{each.called} not found")
                del present[found]
                _put(tree, each, present)

            return reply(await self._file.change(edit))

        return handle


def _items(each: ProviderMap, value: Any) -> list[Any]:
    """A list as it is written. Raises ManagementError 400 for items that are none, or with members nobody may set."""
    if not isinstance(value, list):
        raise ManagementError(400, INVALID)
    if not each.fields:
        if not all(isinstance(item, str) for item in value):
            raise ManagementError(400, INVALID)
        return list(dict.fromkeys(item.strip().lower() for item in value if item.strip()))
    for item in value:
        if not isinstance(item, Mapping):
            raise ManagementError(400, INVALID)
        only(item, each.fields)
    return _useful_aliases(value) if each.section == "oauth-model-alias" else value


def _useful_aliases(items: list[Any]) -> list[Any]:
    """Those that loading would keep: two names that differ, and each alias once."""
    found: dict[str, Any] = {}
    for item in items:
        name, alias = item.get("name"), item.get("alias")
        if not isinstance(name, str) or not isinstance(alias, str):
            return items  # what is wrong, the configuration's own check says
        folded = alias.strip().lower()
        if name.strip() and folded and folded != name.strip().lower():
            found.setdefault(folded, item)
    return list(found.values())


def _name(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _map(tree: dict[Any, Any], each: ProviderMap) -> dict[Any, Any]:
    found = tree.get(each.section)
    return found if isinstance(found, dict) else {}


def _put(tree: dict[Any, Any], each: ProviderMap, found: dict[Any, Any]) -> None:
    if found or (each.stays_empty and each.section in tree):
        tree[each.section] = found
    else:
        tree.pop(each.section, None)


def _spelled(found: Mapping[str, Any], name: str) -> str | None:
    """The key of a map that means `name`, as the operator wrote it."""
    return next((key for key in found if _name(key) == name), None)
