"""An installed plugin whose files were changed does not start, in either carrier; those put there by hand do."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from host.config.model import PluginPolicy
from host.install.lock import Seals
from host.runtime.handle import PluginState
from host.runtime.process import ProcessPlugin
from host.tasks import TaskGroup
from pluginabi.errors import PluginTransportError
from tests.support.locked import lock_folder
from tests.support.plugin_folders import write_greeter
from tests.support.processes import FAST, HostDouble, Watcher, fault_spec, route
from tests.support.runtime import Bench, process_bench

CODE = """
class P(Plugin):
    async def model_route(self, request):
        return None
"""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Bench]:
    """A registry with real processes that looks at the lock in `tmp_path`."""
    async with process_bench(tmp_path, FAST, check=Seals(tmp_path)) as made:
        yield made


@pytest.mark.parametrize("carrier", ["inprocess", "process"])
async def test_a_changed_plugin_is_listed_with_its_file_and_what_to_do_and_runs_again_when_put_right(
    stage: Bench, tmp_path: Path, within: Any, carrier: Any
) -> None:
    if carrier == "process":
        folder, file = write_greeter(tmp_path / "plugins", "p"), "main.py"
    else:
        folder, file = stage.inprocess_plugin("p", CODE), "plugin.py"
    by_hand = stage.inprocess_plugin("other", CODE)
    lock_folder(tmp_path, "p", folder)
    good = (folder / file).read_bytes()
    for path in (folder / file, by_hand / "plugin.py"):
        path.write_bytes(path.read_bytes() + b"\n# changed\n")

    policies = {"p": PluginPolicy(runtime=carrier), "other": PluginPolicy(runtime="inprocess")}
    await within(stage.registry.apply(stage.config(p={}, other={}, policies=policies)))
    status = stage.status("p")
    assert status.state == str(PluginState.FAILED)
    assert f"changed: {file}" in status.reason
    assert "jackfield plugins verify p" in status.reason
    assert stage.status("other").state == str(PluginState.READY)

    (folder / file).write_bytes(good)
    await within(stage.registry.reload("p"))
    assert (stage.status("p").state, stage.status("p").restarts) == (str(PluginState.READY), 0)


async def test_a_running_plugin_goes_on_when_a_reload_finds_changed_files(
    stage: Bench, tmp_path: Path, within: Any
) -> None:
    folder = stage.inprocess_plugin("p", CODE)
    lock_folder(tmp_path, "p", folder)
    await within(stage.registry.apply(stage.config(p={}, inprocess=["p"])))
    (folder / "plugin.py").write_text("raise SystemExit")
    outcome = await within(stage.registry.reload("p"))
    assert "goes on as it was" in outcome and "changed: plugin.py" in outcome
    assert stage.status("p").state == str(PluginState.READY)


async def test_a_process_that_died_is_not_started_again_from_files_that_were_changed_meanwhile(
    tmp_path: Path, within: Any
) -> None:
    answers = iter([None, "its files are not those that were installed"])
    watcher, tasks = Watcher(), TaskGroup("test")
    plugin = ProcessPlugin(
        fault_spec(tmp_path, check=lambda: next(answers)),
        callbacks=HostDouble(),
        tasks=tasks,
        events=watcher,
        timings=replace(FAST, stable_s=0.0),
    )
    try:
        await within(plugin.start())
        with pytest.raises(PluginTransportError):
            await within(route(plugin, "exit 3"))
        await within(watcher.reached(PluginState.FAILED))
        assert plugin.last_error == "its files are not those that were installed"
        assert watcher.reports[-1].permanent
    finally:
        await within(plugin.stop())
        await tasks.stop()
