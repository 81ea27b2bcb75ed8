"""Makes plugin processes from plans."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from host.config.model import Config
from host.config.values import seconds
from host.runtime.callbacks import CallbackServer
from host.runtime.carriers import HandleChanged
from host.runtime.generation import ManagedHandle
from host.runtime.guardian import Guardian
from host.runtime.instances import InstanceSet
from host.runtime.launch import LaunchSpec, ProcessLimits
from host.runtime.plan import Plan
from host.runtime.process import PluginEvents, ProcessPlugin
from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from pluginabi.payloads.lifecycle import RegisterRequest

_MIB: Final = 1024 * 1024


class ProcessCarrier:
    """The `ProcessFactory`. `attach` maps ids to addresses of processes that somebody else runs."""

    def __init__(
        self,
        *,
        callbacks: CallbackServer,
        tasks: TaskGroup,
        guardian: Guardian | None = None,
        timings: ProcessTimings | None = None,
        attach: Mapping[str, str] | None = None,
        runtime_dir: Path | None = None,
    ) -> None:
        self._callbacks: Final = callbacks
        self._tasks: Final = tasks
        self._guardian: Final = guardian
        self._timings = timings if timings is not None else ProcessTimings()
        self._attach: Final = attach or {}
        self._runtime_dir: Final = runtime_dir

    def configure(self, config: Config) -> None:
        """Take over the durations of `plugins`; they hold for generations made from now on."""
        plugins = config.plugins
        self._timings = replace(
            self._timings,
            hello_s=seconds(plugins.hello_timeout),
            ping_interval_s=seconds(plugins.ping_interval),
            ping_unresponsive_s=seconds(plugins.ping_unresponsive),
            ping_kill_s=seconds(plugins.ping_kill),
        )

    def __call__(
        self, plan: Plan, *, generation: int, register: Callable[[], RegisterRequest], changed: HandleChanged
    ) -> ManagedHandle:
        spec = launch_spec(
            plan,
            generation=generation,
            register=register,
            attach=self._attach.get(plan.plugin_id, ""),
            runtime_dir=self._runtime_dir,
        )
        events = _Events(changed)
        count = 1 if spec.attach else plan.policy.instances
        members = [
            ProcessPlugin(
                spec,
                callbacks=self._callbacks,
                tasks=self._tasks,
                events=events,
                timings=self._timings,
                guardian=self._guardian,
            )
            for _ in range(count)
        ]
        events.handle = members[0] if count == 1 else InstanceSet(members)
        return events.handle


class _Events(PluginEvents):
    """Tells the registry that the handle, which may stand for several processes, registered anew."""

    def __init__(self, changed: HandleChanged) -> None:
        self.handle: ManagedHandle | None = None
        self._changed = changed

    def registered(self, plugin: ProcessPlugin) -> None:
        if self.handle is not None:
            self._changed(self.handle)


def launch_spec(
    plan: Plan,
    *,
    generation: int,
    register: Callable[[], RegisterRequest],
    attach: str = "",
    runtime_dir: Path | None = None,
) -> LaunchSpec:
    """What a process of `plan` is started with."""
    manifest, policy = plan.source.manifest, plan.policy
    return LaunchSpec(
        plugin_id=plan.plugin_id,
        version=manifest.version,
        directory=plan.source.directory,
        data_dir=plan.data_dir,
        register=register,
        generation=generation,
        command=tuple(manifest.command),
        entry=manifest.entry,
        protocol=manifest.protocol,
        transport="unix" if manifest.protocol == "grpc" else manifest.transport,
        environment=policy.environment,
        limits=ProcessLimits(
            memory_bytes=None if policy.memory_mb is None else policy.memory_mb * _MIB,
            open_files=policy.open_files,
            max_inflight=policy.max_inflight,
        ),
        permissions=policy.permissions,
        secrets=plan.config.secrets,
        attach=attach,
        runtime_dir=runtime_dir,
    )
