"""Credential files without any secret: visible with the reason, and never picked."""

from pathlib import Path
from typing import Any

import pytest

from host.config.model import CompatProvider, Config, ModelEntry
from host.credentials.listing import listing
from host.errors import RequestError
from host.pipeline.state import build_state
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.auth_plugins import ScriptedAuth
from tests.support.auth_site import Site
from tests.support.pipeline import client_request, executor, snapshot, world

MISSING = "the file has neither an `api_key` nor an `access_token` nor a `refresh_token`"


async def entry_of(site: Site, name: str) -> dict[str, Any]:
    [entry] = [it for it in await listing(site.manager, site.directory) if it["name"] == name]
    return entry


async def test_a_file_without_a_secret_is_listed_as_an_error_that_says_what_is_missing_until_it_has_one(tmp_path: Path):
    site = Site(tmp_path)
    path = site.put("a.json", email="x")
    await site.opened()
    entry = await entry_of(site, "a.json")
    assert (entry["status"], entry["status_message"], entry["unavailable"]) == ("error", MISSING, True)
    site.put("a.json", email="x", api_key="k")
    await site.directory.refresh([path])
    entry = await entry_of(site, "a.json")
    assert (entry["status"], entry["status_message"], entry["unavailable"]) == ("active", "", False)
    site.put("a.json", email="x")
    await site.directory.refresh([path])
    assert (await entry_of(site, "a.json"))["status"] == "error"


@pytest.mark.parametrize(
    "members",
    [
        {"api_key": "k"},
        {"access_token": "t"},
        {"token": {"access_token": "t"}},
        {"refresh_token": "r"},
        {"headers": {"X-Api-Key": "k"}},
        {"headers": {"Authorization": "Bearer k"}},
        {"base_url": "https://claude.internal.test"},
        {"type": "openai-compatible-acme"},
        {"type": "of-a-plugin", "cookie": "c"},
    ],
    ids=lambda members: ",".join(members),
)
async def test_nothing_is_missing_where_there_is_a_secret_or_none_is_needed(tmp_path: Path, members: dict[str, Any]):
    acme = CompatProvider(name="acme", base_url="https://acme.test/v1", models=[ModelEntry(name="m")])
    site = Site(tmp_path, openai_compatibility=[acme])
    site.put("a.json", **members)
    await site.opened()
    entry = await entry_of(site, "a.json")
    assert (entry["status"], entry["status_message"]) == ("active", "")


async def test_a_disabled_file_without_a_secret_is_disabled(tmp_path: Path):
    site = Site(tmp_path)
    site.put("a.json", disabled=True)
    await site.opened()
    assert (await entry_of(site, "a.json"))["status"] == "disabled"


async def test_what_is_in_a_file_that_a_plugin_parses_says_the_plugin(tmp_path: Path):
    said = CredentialRecord(provider="claude", metadata={"type": "claude", "email": "x"})
    plugins = ScriptedAuth({"claude": lambda request: [said]})
    site = Site(tmp_path, plugins)
    site.put("a.json", email="x")
    await site.opened()
    assert (await entry_of(site, "a.json"))["status"] == "active"


async def test_it_is_never_picked_and_works_as_soon_as_the_file_has_its_secret(tmp_path: Path):
    site = Site(tmp_path)
    path = site.put("a.json", models=["m"])
    await site.opened()
    upstream = executor(lambda _: ExecutorResponse(), providers=["claude"])
    w = world(upstream)

    def reload() -> None:
        w.gateway.state = build_state(
            Config(), snapshot(upstream), previous=w.gateway.state, manager=site.manager, clock=w.clock
        )

    reload()
    with pytest.raises(RequestError):
        await w.gateway.execute(client_request())
    assert upstream.seen("executor.execute") == []
    site.put("a.json", models=["m"], api_key="k")
    await site.directory.refresh([path])
    reload()
    await w.gateway.execute(client_request())
    assert len(upstream.seen("executor.execute")) == 1
