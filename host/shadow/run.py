"""Which plugins have a shadow: follows the configuration, starts and stops the other versions, and copies calls."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from host.config.model import Config, PluginShadow, config_path
from host.config.values import seconds
from host.recording.redact import Redactor
from host.runtime.apply import PluginRegistry
from host.runtime.callbacks import HostCallbacks
from host.runtime.diagnostics import PluginStartError
from host.runtime.discover import PluginSource, folder_digest
from host.runtime.generation import ManagedHandle
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from host.runtime.manifest import ManifestError, load_manifest
from host.runtime.plan import Plan, make_plan
from host.runtime.policy import PolicyError
from host.runtime.processes import Processes, timings_of
from host.runtime.resolve import UnresolvedValue
from host.runtime.scope import RequestScope
from host.runtime.snapshot import RegistrationError, declare
from host.runtime.status import ShadowStatus
from host.shadow.callbacks import PERMISSIONS, ShadowCallbacks
from host.shadow.shadow import Copy, Shadow
from host.tasks import TaskGroup
from pluginabi.payloads.common import Payload

log = structlog.get_logger("host.shadow")

_FOLDER: Final = ".shadow"
"""Where shadows keep their data, beside the plugins'; no plugin id starts with a dot."""

Secrets = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the configuration wants of one shadow; another wish is another process."""

    directory: Path
    sample: float
    timeout_s: float | None
    digest: str
    """Of the files, so that a changed folder is loaded anew when configuration is applied or the plugin reloaded."""
    plan: Plan | None
    problem: str = ""

    def key(self) -> tuple[Any, ...]:
        plan = self.plan
        keys = (plan.launch_key(), plan.register_key()) if plan is not None else ()
        return (self.directory, self.sample, self.timeout_s, self.digest, self.problem, keys)


class Shadows:
    """All shadows of one gateway, and the `CallCopier` of its invoker while there is one.

    A registry tells it through `follow` that the plugins or the configuration changed. `secrets` are texts that no
    example may hold.
    """

    def __init__(
        self,
        registry: PluginRegistry,
        *,
        invoker: Invoker,
        callbacks: HostCallbacks,
        secrets: Secrets,
    ) -> None:
        self._registry: Final = registry
        self._invoker: Final = invoker
        self._callbacks: Final = ShadowCallbacks(callbacks)
        self._secrets: Final = secrets
        self._tasks: Final = TaskGroup("shadow")
        self._config = Config()
        self._shadows: dict[str, tuple[tuple[Any, ...], Shadow]] = {}
        self._processes: Processes | None = None
        self._following: asyncio.Task[None] | None = None
        self._changed = False
        registry.shadows = self

    # -- for the registry

    def follow(self, config: Config) -> None:
        """The plugins or the configuration changed: bring the shadows in line, in the background."""
        self._config = config
        if not self._shadows and not any(policy.shadow.dir for policy in config.plugins.policy.values()):
            return
        self._changed = True
        if self._following is None or self._following.done():
            self._following = self._tasks.start(self._follow(), name="shadow:follow")

    def status(self, plugin_id: str) -> ShadowStatus | None:
        """How a plugin's shadow fares."""
        found = self._shadows.get(plugin_id)
        return found[1].status() if found is not None else None

    async def stop(self) -> None:
        """End all of them."""
        self._invoker.copier = None
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await asyncio.gather(*(shadow.stop() for _, shadow in self._shadows.values()))
        self._shadows.clear()
        await self._tasks.stop()
        if self._processes is not None:
            await self._processes.stop()

    # -- for the invoker

    def take(self, binding: Binding, build: Callable[[Binding], Payload], request: RequestScope | None) -> Copy | None:
        """See `CallCopier.take`."""
        found = self._shadows.get(binding.plugin_id)
        return found[1].take(binding, build, request) if found is not None else None

    # -- which there are

    async def _follow(self) -> None:
        while self._changed:
            self._changed = False
            wishes = await self._wishes(self._config)
            for plugin_id in self._shadows.keys() - wishes.keys():
                await self._end(plugin_id)
            for plugin_id, wish in wishes.items():
                await self._bring(plugin_id, wish)
            self._invoker.copier = self if self._shadows else None

    async def _wishes(self, config: Config) -> Mapping[str, _Wish]:
        wanted = {plugin_id: policy.shadow for plugin_id, policy in config.plugins.policy.items() if policy.shadow.dir}
        running = {plugin_id for plugin_id in wanted if self._registry.runs(plugin_id)}
        return {
            plugin_id: await asyncio.to_thread(_wish, plugin_id, shadow, config)
            for plugin_id, shadow in wanted.items()
            if plugin_id in running
        }

    async def _bring(self, plugin_id: str, wish: _Wish) -> None:
        found = self._shadows.get(plugin_id)
        if found is not None and found[0] == wish.key():
            return
        handle = self._new_handle(plugin_id, wish.plan) if wish.plan is not None else None
        shadow = Shadow(
            wish.plan,
            handle,
            directory=str(wish.directory),
            sample=wish.sample,
            timeout_s=wish.timeout_s,
            redactor=Redactor(secrets=lambda: self._secrets(plugin_id), bodies=True),
            tasks=self._tasks,
            refused=lambda: self._callbacks.asked_in_vain(plugin_id),
            problem=wish.problem,
        )
        self._shadows[plugin_id] = (wish.key(), shadow)
        if handle is not None:
            # In a task of its own: a plugin that does not start must not keep others from starting.
            self._tasks.start(self._start(shadow, handle), name=f"shadow:{plugin_id}")
        else:
            log.warning("shadow.blocked", plugin_id=plugin_id, reason=wish.problem)
        if found is not None:
            await found[1].stop()

    def _new_handle(self, plugin_id: str, plan: Plan) -> ManagedHandle:
        if self._processes is None:
            self._processes = Processes(
                callbacks=self._callbacks,
                tasks=self._tasks,
                timings=lambda: timings_of(self._config.plugins),
                attachable=False,
            )
        return self._processes(plan, generation=0, register=plan.register_request, changed=self._registered)

    async def _start(self, shadow: Shadow, handle: ManagedHandle) -> None:
        try:
            await handle.start()
        except PluginStartError as error:
            log.warning("shadow.start_failed", plugin_id=handle.plugin_id, error=str(error))

    def _registered(self, handle: ManagedHandle) -> None:
        """A process said what it has, for the first time or after a restart."""
        found = self._shadows.get(handle.plugin_id)
        if found is None or found[1].handle is not handle or handle.hello is None:
            return
        shadow = found[1]
        assert shadow.plan is not None
        try:
            shadow.declaration = declare(
                shadow.plan,
                capabilities=tuple(handle.hello.capabilities),
                inputs=handle.hello.inputs,
                on_error={},
                registration=handle.registration,
            )
            shadow.problem = ""
        except RegistrationError as error:
            shadow.declaration, shadow.problem = None, str(error)

    async def _end(self, plugin_id: str) -> None:
        _, shadow = self._shadows.pop(plugin_id)
        await shadow.stop()


def shadow_problems(config: Config) -> list[str]:
    """Which shadows could not be tried, and why; starts nothing."""
    wanted = {plugin_id: policy.shadow for plugin_id, policy in config.plugins.policy.items() if policy.shadow.dir}
    wishes = {plugin_id: _wish(plugin_id, shadow, config) for plugin_id, shadow in wanted.items()}
    return [f"shadow of {plugin_id}: {wish.problem}" for plugin_id, wish in wishes.items() if wish.problem]


def _wish(plugin_id: str, shadow: PluginShadow, config: Config) -> _Wish:
    """What is wanted, or why it cannot be had. Reads files."""
    directory = Path(config_path(config, shadow.dir))
    plan, digest, problem, timeout_s = None, "", "", None
    try:
        timeout_s = seconds(shadow.timeout) or None
        digest = folder_digest(directory)
        plan = _plan(plugin_id, directory, config)
    except (ManifestError, OSError, PolicyError, UnresolvedValue, ValueError) as error:
        problem = str(error)
    sample = min(1.0, max(0.0, shadow.sample))
    return _Wish(directory, sample, timeout_s, digest, plan, problem)


def _plan(plugin_id: str, directory: Path, config: Config) -> Plan:
    """The other version as the plugin's own configuration and policy want it: always a process, and without effects."""
    manifest = load_manifest(directory)
    if manifest.id != plugin_id:
        raise PolicyError(f"plugins.policy.{plugin_id}.shadow.dir: {directory} holds the plugin {manifest.id}")
    plan = make_plan(PluginSource(manifest=manifest, directory=directory, origin="directory"), config)
    policy = replace(plan.policy, carrier="process", permissions=plan.policy.permissions & PERMISSIONS, instances=1)
    return replace(plan, policy=policy, data_dir=plan.data_dir.parent / _FOLDER / plugin_id)
