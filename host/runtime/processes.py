"""From a plan to a plugin process: the policy becomes launch arguments, events become changes for the registry."""

import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

from host.config.model import Plugins
from host.config.values import seconds
from host.runtime.callbacks import CallbackServer
from host.runtime.carriers import HandleChanged, attachments
from host.runtime.confinement import HeldFiles
from host.runtime.generation import ManagedHandle
from host.runtime.guardian import Guardian
from host.runtime.instances import InstanceSet
from host.runtime.launch import LaunchSpec, ProcessLimits
from host.runtime.plan import Plan
from host.runtime.process import PluginEvents, ProcessPlugin
from host.runtime.refusals import Refusals
from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from pluginabi.payloads.lifecycle import RegisterRequest


class ProcessCallbacks(CallbackServer, Protocol):
    """What serves the callbacks of processes, and counts what was refused them."""

    @property
    def refusals(self) -> Refusals: ...


class Processes:
    """Makes plugin processes that share one guardian. `attachable`: a debugger's process may stand for one."""

    def __init__(
        self,
        *,
        callbacks: ProcessCallbacks,
        tasks: TaskGroup,
        timings: Callable[[], ProcessTimings],
        attachable: bool = True,
    ) -> None:
        self._callbacks = callbacks
        self._tasks = tasks
        self._timings = timings
        self._guardian = Guardian()
        self._attachments = attachments(os.environ if attachable else {})
        self._held = HeldFiles.of_system()

    def __call__(
        self, plan: Plan, *, generation: int, register: Callable[[], RegisterRequest], changed: HandleChanged
    ) -> ManagedHandle:
        """A process that is not started yet, or as many as the operator's policy asks for."""
        attach = self._attachments.get(plan.plugin_id, "")
        spec = launch_spec(plan, generation=generation, register=register, attach=attach)
        events = _Changes(changed)
        count = 1 if attach else plan.policy.instances
        members = [
            ProcessPlugin(
                spec,
                callbacks=self._callbacks,
                tasks=self._tasks,
                events=events,
                timings=self._timings(),
                guardian=self._guardian,
                refusals=self._callbacks.refusals,
            )
            for _ in range(count)
        ]
        events.handle = members[0] if count == 1 else InstanceSet(members)
        return events.handle

    async def stop(self) -> None:
        """Let the guardian go; after all plugins have stopped."""
        await self._guardian.stop()
        self._held.close()


class _Changes(PluginEvents):
    """Tells the registry that a plugin registered anew by itself; `handle` may stand for several processes."""

    def __init__(self, changed: HandleChanged) -> None:
        self.handle: ManagedHandle | None = None
        self._changed = changed

    def registered(self, plugin: ProcessPlugin) -> None:
        if self.handle is not None:
            self._changed(self.handle)


def launch_spec(
    plan: Plan, *, generation: int, register: Callable[[], RegisterRequest], attach: str = ""
) -> LaunchSpec:
    """The launch arguments that manifest and policy add up to."""
    manifest, policy = plan.source.manifest, plan.policy
    memory_bytes = policy.memory_mb * 1024 * 1024 if policy.memory_mb is not None else None
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
        limits=ProcessLimits(memory_bytes=memory_bytes, open_files=policy.open_files, max_inflight=policy.max_inflight),
        permissions=policy.permissions,
        confinement=policy.confinement,
        read_paths=policy.read_paths,
        hidden_paths=plan.hidden_paths,
        secrets=plan.config.secrets,
        attach=attach,
        check=partial(plan.check, plan.source),
    )


def timings_of(plugins: Plugins) -> ProcessTimings:
    """What the operator's configuration says about waiting."""
    return ProcessTimings(
        hello_s=seconds(plugins.hello_timeout),
        ping_interval_s=seconds(plugins.ping_interval),
        ping_unresponsive_s=seconds(plugins.ping_unresponsive),
        ping_kill_s=seconds(plugins.ping_kill),
    )
