"""A plugin that is down since the start keeps the hooks it declared the last time it ran."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

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


async def test_two_workers_that_start_the_same_plugin_do_not_take_the_file_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, pid, others = Path.write_bytes, os.getpid(), []

    def write_as_the_other_does_too(path: Path, data: bytes) -> int:
        written = write(path, data)
        others.append(path.with_name(path.name.replace(str(pid), str(pid + 1))))
        write(others[-1], data)
        others[-1].replace(path.with_name("door.json"))
        return written

    monkeypatch.setattr(Path, "write_bytes", write_as_the_other_does_too)
    async with bench(tmp_path) as stage:
        stage.process_plugin("door", Script(capabilities=(AUTH,), registration=EXCLUSIVE))
        with capture_logs() as lines:
            await stage.registry.apply(stage.config(door={}))
    folder = tmp_path / "plugin-data" / ".declared"
    assert len(others) == 1
    assert [line for line in lines if line["event"] == "plugin.not_remembered"] == []
    assert [it.name for it in folder.iterdir()] == ["door.json"]
