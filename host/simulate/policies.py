"""Who decides in a simulation: a built-in strategy, or a plugin that is started as the gateway starts it."""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from host.config.model import Config, PluginPolicy, Plugins, PluginSection
from host.credentials.select import STRATEGIES, Strategy
from host.runtime.apply import PluginRegistry
from host.runtime.callback_http import HttpCallbacks
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers
from host.runtime.handle import EMPTY_SNAPSHOT, PluginSnapshot
from host.runtime.invoke import Invoker
from host.runtime.manifest import ManifestError, load_manifest
from host.runtime.processes import Processes
from host.runtime.timings import ProcessTimings
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from host.upstream import UpstreamClient

BUILT_IN: Final[tuple[Strategy, ...]] = ("round-robin", "weighted-round-robin", "fill-first")
CLASS_ID: Final = "policy"
"""The id of a plugin that is a class in a file."""
WRAPPER: Final = "jackfield_policy"


class PolicyError(Exception):
    """The policy cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Either a strategy, or a plugin: a folder with plugin.toml, or a class in a file beside the scenario."""

    name: str
    strategy: Strategy | None = None
    """None: the scenario's, for what the plugin leaves to it."""
    folder: Path | None = None
    file: Path | None = None
    class_name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def built_in(text: str) -> Policy:
    """The policy of a strategy's name. Raises PolicyError."""
    strategy = STRATEGIES.get(text.strip().lower())
    if strategy is None or not text.strip():
        raise PolicyError(f"{text!r} is no strategy; known are {', '.join(BUILT_IN)}")
    return Policy(name=strategy, strategy=strategy)


def plugin(text: str, config: Mapping[str, Any] | None = None) -> Policy:
    """The policy of `FOLDER` or `FILE.py:Class`. Raises PolicyError."""
    path, _, class_name = text.rpartition(":")
    if path.endswith(".py") and class_name.isidentifier():
        file = Path(path).absolute()
        if not file.is_file():
            raise PolicyError(f"{path}: no such file")
        return Policy(name=class_name, file=file, class_name=class_name, config=config or {})
    folder = Path(text).absolute()
    try:
        manifest = load_manifest(folder)
    except (ManifestError, OSError) as error:
        raise PolicyError(str(error)) from None
    return Policy(name=manifest.id, folder=folder, config=config or {})


@asynccontextmanager
async def plugins_of(policy: Policy, invoker: Invoker) -> AsyncIterator[PluginSnapshot]:
    """The running plugins of a policy: none for a strategy. Raises PolicyError when the plugin does not start."""
    if policy.folder is None and policy.file is None:
        yield EMPTY_SNAPSHOT
        return
    with tempfile.TemporaryDirectory(prefix="jackfield-simulate-") as made:
        plugin_id = _lay_out(policy, Path(made) / "plugins")
        tasks, client = TaskGroup("simulate"), UpstreamClient()
        callbacks = HostCallbacks(http=HttpCallbacks(client), kv=KvCallbacks(MemoryStore()), tasks=tasks)
        processes = Processes(callbacks=callbacks, tasks=tasks, timings=ProcessTimings)
        registry = PluginRegistry(
            carriers=Carriers(callbacks=callbacks, tasks=tasks, process=processes),
            callbacks=callbacks,
            invoker=invoker,
            tasks=tasks,
            entry_points=tuple,
            needed=lambda config: frozenset(),
        )
        try:
            snapshot = await registry.apply(_config(made, plugin_id, policy.config))
            status = registry.status(plugin_id)
            if status is None or status.state != "ready":
                why = status.reason if status is not None else ""
                raise PolicyError(f"{policy.name}: {why or 'the plugin did not start'}")
            if "scheduler.pick" not in snapshot.bindings:
                raise PolicyError(f"{policy.name}: it has no scheduler.pick")
            yield snapshot
        finally:
            await registry.stop()
            await processes.stop()
            await client.close()
            await tasks.stop()


def _lay_out(policy: Policy, plugins: Path) -> str:
    """The plugin where the host looks for it; returns its id."""
    plugins.mkdir()
    if policy.folder is not None:
        (plugins / policy.name).symlink_to(policy.folder, target_is_directory=True)
        return policy.name
    assert policy.file is not None
    folder = plugins / CLASS_ID
    folder.mkdir()
    (folder / policy.file.name).symlink_to(policy.file)
    # Whatever the class calls itself: its own plugin.toml, where there is one, is not what is tried here.
    (folder / f"{WRAPPER}.py").write_text(
        f"from {policy.file.stem} import {policy.class_name}\n\n\n"
        f"class Policy({policy.class_name}):\n    id, version = {CLASS_ID!r}, '0'\n",
        encoding="utf-8",
    )
    entry = f"{WRAPPER}:Policy"
    lines = (f'id = "{CLASS_ID}"', 'version = "0"', 'runtime = "inprocess"', f'entry = "{entry}"')
    (folder / "plugin.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLASS_ID


def _config(directory: str, plugin_id: str, values: Mapping[str, Any]) -> Config:
    """The plugin enabled, with the permissions it asks for that concern scheduling only: none."""
    section = PluginSection(enabled=True, config=values, config_yaml=msgspec.json.encode(values).decode())
    # In-process is trusted code that the operator names on the command line.
    manifest = load_manifest(Path(directory) / "plugins" / plugin_id)
    policy = PluginPolicy(runtime="inprocess") if manifest.runtime == "inprocess" else PluginPolicy()
    plugins = Plugins(enabled=True, configs={plugin_id: section}, policy={plugin_id: policy})
    return Config(directory=directory, plugins=plugins)
