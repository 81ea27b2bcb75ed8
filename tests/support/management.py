"""A running proxy with a management key, and a client of its API."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from ruamel.yaml import YAML

from host.management.secret import hash_key
from tests.support.proxy import RunningProxy, running_proxy
from tests.support.runtime import plugin_folder

KEY = "the-management-key"
STORED = hash_key(KEY)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    json: Any = None

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.json["error"]


@dataclass(slots=True)
class Api:
    """Calls with the key unless told otherwise."""

    base: str
    session: aiohttp.ClientSession
    headers: Mapping[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})

    async def call(self, method: str, path: str, *, below: str = "/v0/management", **fields: Any) -> Answer:
        headers = fields.pop("headers", self.headers)
        async with self.session.request(
            method, f"{self.base}{below}{path}", headers=headers, allow_redirects=False, **fields
        ) as response:
            body = await response.read()
            is_json = response.content_type == "application/json"
            return Answer(response.status, body, response.headers, await response.json() if is_json and body else None)

    async def get(self, path: str, **fields: Any) -> Answer:
        return await self.call("GET", path, **fields)

    async def row(self, plugin_id: str) -> dict[str, Any]:
        """The plugin in the list."""
        listed = (await self.get("/plugins")).json["plugins"]
        found: dict[str, Any] = next(row for row in listed if row["id"] == plugin_id)
        return found


@dataclass(slots=True)
class Managed:
    """A running proxy in the test's event loop, its API, and the folder an operator sees."""

    running: RunningProxy
    api: Api
    directory: Path
    log: list[Any] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.directory / "config.yaml"

    def endpoints(self) -> list[tuple[str, str]]:
        """Method and path of every endpoint that the host itself serves."""
        rows = self.running.proxy.management.app._table._rows.values()
        return sorted((method, endpoint.path) for row in rows for method, endpoint in row.items())

    async def settled(self) -> None:
        """Everything that was saved is applied, and the pages of the plugins are known."""
        proxy = self.running.proxy
        await proxy.applier.settled()
        await proxy.management.pages.synced()


@asynccontextmanager
async def managed_proxy(
    directory: Path, plugins: Mapping[str, str | tuple[str, str]] | None = None, **keys: Any
) -> AsyncIterator[Managed]:
    """A proxy whose `plugins` (id -> code of class `P`, or code and manifest lines) run inside it, enabled.

    `keys` are keys of the configuration; `remote` those of `remote-management`.
    """
    plugins = plugins or {}
    for plugin_id, code in plugins.items():
        text, manifest = code if isinstance(code, tuple) else (code, "")
        plugin_folder(directory / "plugins", plugin_id, text, manifest=manifest)
    configs = {plugin_id: {"enabled": True} for plugin_id in plugins}
    for plugin_id, section in keys.pop("sections", {}).items():
        configs.setdefault(plugin_id, {}).update(section)
    policy = {plugin_id: {"runtime": "inprocess"} for plugin_id in plugins}
    for plugin_id, section in keys.pop("policy", {}).items():
        policy.setdefault(plugin_id, {}).update(section)
    config = {
        "port": 0,
        "remote-management": {"secret-key": STORED, **keys.pop("remote", {})},
        "plugins": {"enabled": True, "configs": configs, "policy": policy},
        **{name.replace("_", "-"): value for name, value in keys.items()},
    }
    file = directory / "config.yaml"
    with file.open("w", encoding="utf-8") as out:
        YAML().dump(config, out)
    async with running_proxy(file.read_text(), directory=directory) as running:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            managed = Managed(running, Api(running.proxy.management_url or running.url, session), directory)
            await managed.settled()
            yield managed
