"""Endpoints for the clients' keys, `api-keys` of the configuration, shown masked (spec credentials 8.2)."""

import asyncio
import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from host.config.load import to_plain
from host.management.calls import INVALID, Call, ManagementError, only, reply
from host.management.config_file import ConfigFile
from host.management.masks import Masks
from host.management.provider_keys import items_in
from host.management.table import Endpoint

SECTION: Final = "api-keys"


class ClientKeyEndpoints:
    """The rows of `/api-keys`."""

    def __init__(self, file: ConfigFile, masks: Masks) -> None:
        self._file: Final = file
        self._masks: Final = masks

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        path = f"/{SECTION}"
        return (
            Endpoint("GET", path, self._list),
            Endpoint("PUT", path, self._replace),
            Endpoint("PATCH", path, self._patch),
            Endpoint("DELETE", path, self._delete),
        )

    async def _list(self, call: Call) -> web.Response:
        # Thousands of keys: nobody else waits meanwhile.
        return await asyncio.to_thread(self._listed, await self._file.tree())

    def _listed(self, tree: Mapping[str, Any]) -> web.Response:
        return reply(self._masks.masked({SECTION: to_plain(tree.get(SECTION)) or []}))

    async def _replace(self, call: Call) -> web.Response:
        sent = [_checked(item) for item in await items_in(call)]

        def edit(tree: dict[Any, Any]) -> None:
            keys = copy.deepcopy(sent)
            self._masks.unmasked({SECTION: keys}, {SECTION: to_plain(tree.get(SECTION)) or []})
            _set(tree, keys)

        return reply(await self._file.change(edit))

    async def _patch(self, call: Call) -> web.Response:
        fields = await call.json_object(INVALID)
        only(fields, ("old", "new", "index", "value"))
        if fields.keys() == {"old", "new"} and isinstance(fields["old"], str):
            old, value = fields["old"].strip(), _checked(fields["new"])
        elif fields.keys() == {"index", "value"} and type(fields["index"]) is int:
            old, value = None, _checked(fields["value"])
        else:
            raise ManagementError(400, "missing fields")

        def edit(tree: dict[Any, Any]) -> None:
            keys = _keys(tree)
            place: int | None = self._place(keys, old) if old is not None else int(fields["index"])
            if old is None and place is not None and not 0 <= place < len(keys):
                raise ManagementError(404, "item not found")
            new = {SECTION: [copy.deepcopy(value)]}
            self._masks.unmasked(new, {SECTION: to_plain(keys)})
            if place is None:
                keys.append(new[SECTION][0])
            else:
                keys[place] = new[SECTION][0]
            _set(tree, keys)

        return reply(await self._file.change(edit))

    async def _delete(self, call: Call) -> web.Response:
        value, has_index = call.argument("value").strip(), bool(call.argument("index").strip())
        if not value and not has_index:
            raise ManagementError(400, "missing index or value")
        index = call.number("index", -1, lowest=-1, highest=1 << 31)

        def edit(tree: dict[Any, Any]) -> None:
            keys = _keys(tree)
            place = index if has_index else self._place(keys, value)
            if place is None or not 0 <= place < len(keys):
                raise ManagementError(404, "item not found")
            del keys[place]
            _set(tree, keys)

        return reply(await self._file.change(edit))

    def _place(self, keys: Sequence[Any], wanted: str) -> int | None:
        """Where a key stands, given as it is or as it is shown."""
        for place, item in enumerate(keys):
            key = str(item.get("key") if isinstance(item, dict) else item)
            if wanted in (key, self._masks.mask(key)):
                return place
        return None


def _checked(item: Any) -> Any:
    """A key: a text, or `{key, name}`. Raises ManagementError 400."""
    key = item.get("key") if isinstance(item, dict) else item
    if not isinstance(key, str) or not key.strip():
        raise ManagementError(400, INVALID)
    if isinstance(item, dict):
        only(item, ("key", "name"))
        if not isinstance(item.get("name", ""), str):
            raise ManagementError(400, INVALID)
    return item


def _keys(tree: dict[Any, Any]) -> list[Any]:
    keys = tree.get(SECTION)
    return keys if isinstance(keys, list) else []


def _set(tree: dict[Any, Any], keys: list[Any]) -> None:
    if keys:
        tree[SECTION] = keys
    else:
        tree.pop(SECTION, None)
