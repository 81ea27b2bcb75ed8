"""Makes the running plugins match the configuration, one application at a time, and publishes the snapshot."""

import asyncio
import importlib.metadata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

import structlog

from host.config.model import Config, config_path
from host.config.values import seconds
from host.runtime.bundled import bundled_needed
from host.runtime.callback_http import http_settings
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers
from host.runtime.diagnostics import PluginStartError
from host.runtime.discover import Discovery, PluginSource, discover, installed_entry_points
from host.runtime.generation import (
    Generation,
    ManagedHandle,
    Slot,
    UnavailableHandle,
    blocked_generation,
    generation_of,
    kept_plan,
)
from host.runtime.handle import EMPTY_SNAPSHOT, PluginSnapshot, PluginState
from host.runtime.inprocess import InProcessStartError
from host.runtime.invoke import Invoker
from host.runtime.model_lists import list_models
from host.runtime.plan import Plan, SourceCheck, is_wanted, make_plan, unchecked
from host.runtime.policy import PolicyError
from host.runtime.resolve import UnresolvedValue
from host.runtime.retirement import Retirement
from host.runtime.snapshot import RegistrationError, SnapshotLeases, build_snapshot
from host.runtime.status import PluginStatus, ShadowStatus, status_of_slot, status_of_source, statuses_of_unusable
from host.tasks import TaskGroup
from pluginabi.errors import AbiError
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.lifecycle import RegisterRequest

log = structlog.get_logger("host.runtime.apply")

STOP_DRAIN_S: Final = 10.0
"""How long calls may finish at shutdown, or when a plugin was disabled."""
_NOT_SERVING: Final = frozenset({PluginState.FAILED, PluginState.BACKOFF, PluginState.STOPPED})

SnapshotListener = Callable[[PluginSnapshot], None]


class ShadowKeeper(Protocol):
    """Runs other versions of plugins beside them; see `host.shadow`."""

    def follow(self, config: Config) -> None:
        """Plugins or configuration may have changed."""

    def status(self, plugin_id: str) -> ShadowStatus | None: ...

    async def stop(self) -> None: ...


class PluginRegistry:
    """All plugins of the gateway.

    `on_change` is told of every new snapshot that does not come from `apply`, whose caller gets it as its result.
    A generation is stopped only when no snapshot that names it is held by anybody: whoever uses plugins keeps the
    snapshot for as long.
    """

    def __init__(
        self,
        *,
        carriers: Carriers,
        callbacks: HostCallbacks,
        invoker: Invoker,
        tasks: TaskGroup,
        bundled_dir: Path | None = None,
        bundled_package: str = "",
        entry_points: Callable[[], Iterable[importlib.metadata.EntryPoint]] = installed_entry_points,
        needed: Callable[[Config], frozenset[str]] = bundled_needed,
        on_change: SnapshotListener | None = None,
        check: SourceCheck = unchecked,
    ) -> None:
        self.snapshot: PluginSnapshot = EMPTY_SNAPSHOT
        self.on_change = on_change
        self.shadows: ShadowKeeper | None = None
        self._carriers: Final = carriers
        self._callbacks: Final = callbacks
        self._invoker: Final = invoker
        self._tasks: Final = tasks
        self._bundled_dir: Final = bundled_dir
        self._bundled_package: Final = bundled_package
        self._entry_points: Final = entry_points
        self._needed: Final = needed
        self._check: Final = check
        self._config = Config()
        self._discovery = Discovery()
        self._slots: dict[str, Slot] = {}
        # A plugin that comes back while its former self still ends must not be given that one's number again.
        self._left_with: Final[dict[str, int]] = {}
        self._lock = asyncio.Lock()
        self._leases: Final = SnapshotLeases()
        self._retirement: Final = Retirement(leases=self._leases, tasks=tasks, on_room=self._room_made)

    async def apply(self, config: Config, *, reload_files: bool = False) -> PluginSnapshot:
        """Start, change and stop plugins until they match `config`; returns the snapshot to use from now on.

        Plugins that already match are left alone and get nothing. Files of running plugins count only with
        `reload_files`. A plugin that fails stays visible with its reason, and a failed change keeps what ran before;
        nothing of that raises. Applications queue up behind each other.
        """
        async with self._lock:
            self._config = config
            self._callbacks.http.settings = http_settings(config)
            self._discovery = self._discover(config)
            sources = self._wanted_sources(config, reload_files=reload_files)
            self._remove(self._slots.keys() - {source.plugin_id for source in sources})
            await asyncio.gather(*(self._bring(source, force=False) for source in sources))
            return self._publish()

    async def reload(self, plugin_id: str) -> str:
        """Load a plugin's files anew, beside the old ones; a sentence says what happened.

        One that is enabled and whose files were not there before is started. Raises KeyError for any other that does
        not run.
        """
        async with self._lock:
            slot = self._slots.get(plugin_id)
            self._discovery = self._discover(self._config)
            source = self._discovery.source(plugin_id)
            if slot is None:
                return await self._load_first(plugin_id, source)
            if source is None:
                broken = next((broken for broken in self._discovery.broken if broken.plugin_id == plugin_id), None)
                slot.problem = broken.reason if broken is not None else "its folder is gone"
                return f"{plugin_id} goes on as it was: {slot.problem}"
            if slot.current.plan.policy.carrier == "inprocess" and source.package + source.entry_point:
                return f"{plugin_id} is part of an installed package: restart the proxy to load it anew"
            before = slot.current
            await self._bring(source, force=True)
            self._changed()
        if slot.current is before:
            return f"{plugin_id} goes on as it was: {slot.reason}"
        if slot.problem:
            return f"{plugin_id} was loaded anew and did not start: {slot.problem}"
        return f"{plugin_id} {source.manifest.version} is loaded; calls in progress finish in the old one"

    async def _load_first(self, plugin_id: str, source: PluginSource | None) -> str:
        if source is None or not is_wanted(source, self._config, self._needed):
            raise KeyError(plugin_id)
        await self._bring(source, force=True)
        self._changed()
        if problem := self._slots[plugin_id].problem:
            return f"{plugin_id} did not start: {problem}"
        return f"{plugin_id} {source.manifest.version} is loaded"

    async def look(self) -> None:
        """Find out anew which plugins there are; starts and stops nothing."""
        async with self._lock:
            self._discovery = self._discover(self._config)

    async def gone(self, plugin_id: str) -> bool:
        """Wait until nothing of a plugin runs any more; False at once while the configuration wants it."""
        if plugin_id not in self._slots:
            await self._retirement.left(plugin_id)
        return plugin_id not in self._slots

    async def reset(self, plugin_id: str) -> bool:
        """Start a failed plugin again, with what was tried last; whether it is ready now. Raises KeyError."""
        async with self._lock:
            slot = self._slots[plugin_id]
            if slot.current.handle.state not in _NOT_SERVING:
                return slot.current.handle.state is PluginState.READY
            await self._bring(slot.current.plan.source, force=True)
            self._changed()
            return slot.current.handle.state is PluginState.READY

    async def stop(self) -> None:
        """Stop all plugins, running calls first. Idempotent."""
        async with self._lock:
            generations = [slot.current for slot in self._slots.values()]
            self._slots.clear()
            self.snapshot = EMPTY_SNAPSHOT
            if self.shadows is not None:
                await self.shadows.stop()
            await self._retirement.stop_all(generations, drain_s=STOP_DRAIN_S)
            self._carriers.stop()

    def statuses(self) -> list[PluginStatus]:
        """Every plugin that was found or runs, by id; broken and shadowed ones last."""
        refused, shadows = self._callbacks.refusals, self.shadows
        rows = [
            status_of_slot(slot, refused.of(plugin_id), shadows.status(plugin_id) if shadows is not None else None)
            for plugin_id, slot in self._slots.items()
        ]
        needed = self._needed(self._config)
        rows += [
            status_of_source(source, self._config, source.plugin_id in needed)
            for source in self._discovery.found
            if source.plugin_id not in self._slots
        ]
        return [*sorted(rows, key=lambda row: row.id), *statuses_of_unusable(self._discovery)]

    def status(self, plugin_id: str) -> PluginStatus | None:
        """The row of one plugin that can be used."""
        unusable = ("broken", "shadowed")
        return next((row for row in self.statuses() if row.id == plugin_id and row.state not in unusable), None)

    def runs(self, plugin_id: str) -> bool:
        """Whether the configuration wants a plugin, ready or not."""
        return plugin_id in self._slots

    def source(self, plugin_id: str) -> PluginSource | None:
        """Where a plugin that runs or was found comes from, with its manifest."""
        slot = self._slots.get(plugin_id)
        return slot.current.plan.source if slot is not None else self._discovery.source(plugin_id)

    def stderr_tail(self, plugin_id: str) -> tuple[str, ...]:
        """The last lines a running plugin's process wrote; none when it does not run."""
        slot = self._slots.get(plugin_id)
        return tuple(slot.current.handle.stderr_tail()) if slot is not None else ()

    def secrets(self, plugin_id: str) -> tuple[str, ...]:
        """Secret texts in a running plugin's configuration."""
        slot = self._slots.get(plugin_id)
        return slot.current.plan.config.secrets if slot is not None else ()

    def unready_guards(self) -> list[str]:
        """Plugins that are not ready although one of their hooks must not be skipped: the gateway is not ready then."""
        return sorted(
            {
                binding.plugin_id
                for bindings in self.snapshot.bindings.values()
                for binding in bindings
                if binding.on_error == "fail"
                and PLUGIN_METHODS[binding.method].on_error == "skip"
                and binding.handle.state is not PluginState.READY
            }
        )

    def _discover(self, config: Config) -> Discovery:
        found = discover(
            self._bundled_dir,
            Path(config_path(config, config.plugins.dir.strip() or "plugins")),
            self._entry_points(),
            bundled_package=self._bundled_package,
        )
        for broken in found.broken:
            log.warning("plugin.unusable", plugin_id=broken.plugin_id, path=broken.path, reason=broken.reason)
        for shadowed in found.shadowed:
            log.warning("plugin.shadowed", plugin_id=shadowed.plugin_id, path=shadowed.path, by=shadowed.by)
        return found

    def _wanted_sources(self, config: Config, *, reload_files: bool) -> list[PluginSource]:
        """What should run; a running plugin keeps the manifest it was started with unless files count."""
        sources: dict[str, PluginSource] = {}
        for source in self._discovery.found:
            slot = self._slots.get(source.plugin_id)
            if slot is not None and not reload_files:
                source = slot.current.plan.source
            if is_wanted(source, config, self._needed):
                sources[source.plugin_id] = source
        unusable = {broken.plugin_id for broken in self._discovery.broken}
        for plugin_id, slot in self._slots.items():
            source = slot.current.plan.source
            keeps = not reload_files or plugin_id in unusable
            if keeps and plugin_id not in sources and is_wanted(source, config, self._needed):
                sources[plugin_id] = source
        return list(sources.values())

    def _remove(self, plugin_ids: Iterable[str]) -> None:
        for plugin_id in list(plugin_ids):
            slot = self._slots.pop(plugin_id)
            self._left_with[plugin_id] = slot.last_number
            self._retirement.after_publish(None, slot.current, drain_s=STOP_DRAIN_S)

    async def _bring(self, source: PluginSource, *, force: bool) -> None:
        """Make one plugin match the configuration."""
        slot = self._slots.get(source.plugin_id)
        if slot is not None and slot.waiting is not None:
            source, force = source if force else slot.waiting, True
        try:
            plan = make_plan(source, self._config, check=self._check)
        except (PolicyError, UnresolvedValue) as error:
            self._block(slot, source, str(error))
            return
        if slot is None or slot.attempted is None:
            await self._start_first(slot, plan)
        elif force or plan.launch_key() != slot.attempted.launch_key():
            await self._upgrade(slot, plan)
        elif plan.register_key() != slot.attempted.register_key():
            await self._reconfigure(slot, plan)
        elif slot.problem:
            slot.current.plan = kept_plan(slot.current.plan, plan)
        else:
            slot.current.plan = plan
            slot.current.redeclare()

    def _block(self, slot: Slot | None, source: PluginSource, problem: str) -> None:
        log.warning("plugin.blocked", plugin_id=source.plugin_id, reason=problem)
        if slot is None:
            generation = blocked_generation(source, self._config, problem)
            number = self._left_with.get(source.plugin_id, 0)
            self._slots[source.plugin_id] = Slot(generation, attempted=None, problem=problem, last_number=number)
        else:
            slot.problem, slot.waiting = problem, None

    async def _start_first(self, slot: Slot | None, plan: Plan) -> None:
        number = 1 + (slot.last_number if slot is not None else self._left_with.get(plan.plugin_id, 0))
        generation = self._new_generation(plan, number)
        slot = Slot(generation, attempted=plan, last_number=number)
        self._slots[plan.plugin_id] = slot
        slot.problem = await self._start(generation) or ""
        slot.recovers = bool(slot.problem)
        if slot.problem:
            await self._silence(slot)

    async def _upgrade(self, slot: Slot, plan: Plan) -> None:
        """Start a new generation beside the current one, which keeps serving until the new one is ready."""
        if not await self._retirement.has_room(slot):
            slot.waiting = plan.source
            slot.current.plan = kept_plan(slot.current.plan, plan)
            return
        slot.attempted = plan
        slot.last_number += 1
        old, new = slot.current, self._new_generation(plan, slot.last_number)
        problem = await self._start(new)
        slot.waiting = None
        if problem is None:
            slot.problem, slot.recovers = "", False
        elif old.handle.state in _NOT_SERVING:
            # There is nothing to keep: the new generation tries on with the new configuration.
            slot.problem, slot.recovers = problem, True
        else:
            slot.problem = problem
            old.plan = kept_plan(old.plan, plan)
            await new.handle.stop()
            return
        slot.current = new
        if problem is None:
            version, generation = plan.source.manifest.version, new.handle.generation
            log.info("plugin.upgraded", plugin_id=plan.plugin_id, version=version, generation=generation)
        self._retirement.after_publish(slot, old, drain_s=seconds(self._config.plugins.upgrade_drain))
        if problem is not None:
            await self._silence(slot)

    async def _reconfigure(self, slot: Slot, plan: Plan) -> None:
        generation = slot.current
        if generation.handle.state is not PluginState.READY:
            await self._upgrade(slot, plan)
            return
        slot.attempted = plan
        try:
            if not await generation.handle.reconfigure(plan.register_request()):
                await self._upgrade(slot, plan)
                return
            previous, generation.plan = generation.plan, plan
            try:
                generation.redeclare()
            except RegistrationError:
                generation.plan = previous
                raise
        except (AbiError, RegistrationError) as error:
            slot.problem = f"the new configuration was refused: {error}"
            log.warning("plugin.reconfigure_failed", plugin_id=plan.plugin_id, error=str(error))
            generation.plan = kept_plan(generation.plan, plan)
            return
        slot.problem = ""
        await self._list_models(generation)

    def _new_generation(self, plan: Plan, number: int) -> Generation:
        generation: Generation

        def register_request() -> RegisterRequest:
            return generation.plan.register_request()

        handle = self._carriers.make(plan, generation=number, register=register_request, changed=self._handle_changed)
        generation = generation_of(plan, handle)
        return generation

    async def _start(self, generation: Generation) -> str | None:
        """Start a generation; the problem when it did not become ready."""
        try:
            await generation.handle.start()
            generation.redeclare()
        except (InProcessStartError, PluginStartError, RegistrationError) as error:
            log.warning("plugin.start_failed", plugin_id=generation.plan.plugin_id, error=str(error))
            return str(error)
        await self._list_models(generation)
        return None

    async def _silence(self, slot: Slot) -> None:
        """A plugin that runs although its registration was refused must not be called."""
        generation = slot.current
        if generation.handle.state is not PluginState.READY:
            return
        await generation.handle.stop()
        generation.handle = UnavailableHandle(slot.plugin_id, slot.problem)

    async def _list_models(self, generation: Generation) -> None:
        found = await list_models(
            self._invoker, generation.plan, generation.declaration, generation.handle, self._config
        )
        if found is not None:
            generation.models_provider, generation.models = found

    async def refresh_models(self) -> None:
        """Ask every plugin that runs for its models again; what fails keeps the ones it had. Publishes what changed.

        Plugins are asked beside everything else: one that is slow holds up no reload.
        """
        running = [it.current for it in self._slots.values() if it.current.handle.state is PluginState.READY]
        before = [(it, it.plan, it.models) for it in running]
        answers = await asyncio.gather(
            *(list_models(self._invoker, it.plan, it.declaration, it.handle, self._config) for it in running)
        )
        async with self._lock:
            current = [slot.current for slot in self._slots.values()]
            is_new = False
            for (generation, plan, models), answer in zip(before, answers, strict=True):
                # One that was replaced or configured anew meanwhile has been asked since.
                is_same = generation.plan is plan and generation.models is models
                if answer is not None and is_same and any(it is generation for it in current):
                    is_new = is_new or answer != (generation.models_provider, generation.models)
                    generation.models_provider, generation.models = answer
            if is_new:
                self._changed()

    def _publish(self) -> PluginSnapshot:
        """Make the new snapshot, and let go of what it no longer names."""
        generations = [slot.current for slot in self._slots.values()]
        snapshot = build_snapshot(
            [(generation.plan, generation.declaration, generation.view()) for generation in generations],
            generation=self.snapshot.generation + 1,
        )
        self._callbacks.http.private_hosts = {
            generation.plan.plugin_id: generation.plan.policy.private_hosts
            for generation in generations
            if generation.plan.policy.private_hosts is not None
        }
        self._callbacks.http.hosts = {
            generation.plan.plugin_id: generation.plan.policy.http_hosts
            for generation in generations
            if generation.plan.policy.http_hosts
        }
        self._callbacks.grants = {
            generation.plan.plugin_id: generation.plan.policy.permissions for generation in generations
        }
        self._leases.issue(snapshot)
        self.snapshot = snapshot
        self._retirement.published()
        if self.shadows is not None:
            self.shadows.follow(self._config)
        return snapshot

    def _changed(self) -> None:
        """Publish a snapshot that nobody asked for."""
        snapshot = self._publish()
        if self.on_change is not None:
            self.on_change(snapshot)

    def _room_made(self, slot: Slot) -> None:
        """An upgrade that waited for an older generation to end may be tried again."""
        self._tasks.start(self._upgrade_waiting(slot), name=f"upgrade:{slot.plugin_id}")

    async def _upgrade_waiting(self, slot: Slot) -> None:
        async with self._lock:
            if self._slots.get(slot.plugin_id) is slot and slot.waiting is not None:
                await self._bring(slot.waiting, force=True)
                self._changed()

    def _handle_changed(self, handle: ManagedHandle) -> None:
        """A process registered by itself, after a restart or a late start."""
        self._tasks.start(self._refresh(handle), name=f"refresh:{handle.plugin_id}")

    async def _refresh(self, handle: ManagedHandle) -> None:
        """Take over what a handle declares now, when that is something else than before."""
        async with self._lock:
            slot = self._slots.get(handle.plugin_id)
            if slot is None or slot.current.handle is not handle or handle.state is not PluginState.READY:
                return
            generation = slot.current
            before = generation.declaration
            try:
                generation.redeclare()
            except RegistrationError as error:
                slot.problem = str(error)
                log.warning("plugin.registration_refused", plugin_id=slot.plugin_id, error=str(error))
                return
            if slot.recovers:
                slot.recovers, slot.problem = False, ""
                await self._list_models(generation)
                self._changed()
            elif generation.declaration != before:
                self._changed()
