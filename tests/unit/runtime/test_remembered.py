"""A plugin that is down since the start keeps the hooks it declared the last time it ran."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pluginabi.payloads.lifecycle import FrontendAuthRegistration, RegisterResponse
from tests.support.runtime import Script, bench

AUTH = "frontend_auth.authenticate"
EXCLUSIVE = RegisterResponse(frontend_auth=FrontendAuthRegistration(id="door", exclusive=True))


@pytest.fixture
async def remembered(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder in which the plugin `door` ran once; its manifest names no capability."""
    async with bench(tmp_path) as stage:
        stage.process_plugin("door", Script(capabilities=(AUTH,), registration=EXCLUSIVE))
        snapshot = await stage.registry.apply(stage.config(door={}))
        assert snapshot.implementers(AUTH)
    yield tmp_path


async def test_a_plugin_that_does_not_start_after_a_restart_keeps_its_hooks(remembered: Path):
    async with bench(remembered) as stage:
        stage.process_plugin("door", Script(start_error="it is broken now"))
        snapshot = await stage.registry.apply(stage.config(door={}))
        assert [binding.plugin_id for binding in snapshot.implementers(AUTH)] == ["door"]
        assert snapshot.plugins["door"].frontend_auth == FrontendAuthRegistration(id="door", exclusive=True)


async def test_a_plugin_whose_configuration_cannot_be_used_keeps_its_hooks(remembered: Path):
    async with bench(remembered) as stage:
        stage.process_plugin("door")
        snapshot = await stage.registry.apply(stage.config(door={"key": {"env": "NOT_THERE"}}))
        assert [binding.plugin_id for binding in snapshot.implementers(AUTH)] == ["door"]


async def test_a_plugin_that_never_ran_has_the_hooks_of_its_manifest(tmp_path: Path):
    async with bench(tmp_path) as stage:
        stage.process_plugin("door", Script(start_error="it was never up"))
        snapshot = await stage.registry.apply(stage.config(door={}))
        assert not snapshot.implementers(AUTH)


async def test_an_unreadable_memory_counts_as_none(remembered: Path):
    (remembered / "plugin-data" / ".declared" / "door.json").write_text("{")
    async with bench(remembered) as stage:
        stage.process_plugin("door", Script(start_error="it is broken now"))
        snapshot = await stage.registry.apply(stage.config(door={}))
        assert not snapshot.implementers(AUTH)


async def test_what_it_says_now_replaces_what_it_said_then(remembered: Path):
    async with bench(remembered) as stage:
        stage.process_plugin("door", Script(capabilities=("model.route",)))
        await stage.registry.apply(stage.config(door={}))
    async with bench(remembered) as stage:
        stage.process_plugin("door", Script(start_error="it is broken now"))
        snapshot = await stage.registry.apply(stage.config(door={}))
        assert not snapshot.implementers(AUTH)
        assert snapshot.implementers("model.route")
