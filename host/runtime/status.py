"""What `jackfield plugins list` and the management API show of every plugin."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from host.config.model import Config
from host.runtime.confinement import IN_PROCESS, ConfinementReport, this_kernel, what_is_in_force
from host.runtime.discover import Discovery, PluginSource
from host.runtime.generation import Slot
from host.runtime.handle import PluginState
from host.runtime.plan import section_of
from host.runtime.policy import EffectivePolicy, PolicyError, effective_policy
from host.runtime.resolve import masked_config


class ShadowDifference(Struct, frozen=True, kw_only=True):
    """One place, as a JSON pointer, with the value in both answers; texts of bodies only by their length."""

    at: str
    serving: str
    shadow: str


class ShadowExample(Struct, frozen=True, kw_only=True):
    """A call that two versions of a plugin answered differently."""

    at: str
    method: str
    request_id: str
    differences: Sequence[ShadowDifference]
    count: int
    """How many there are, shown or not."""


class ShadowStatus(Struct, frozen=True, kw_only=True):
    """Another version of a plugin that gets copies of its calls: how it runs, and how its answers compare."""

    state: str
    reason: str = ""
    version: str = ""
    directory: str = ""
    sample: float = 1.0
    since: str = ""
    """When counting began: with the shadow, or with the version that serves."""
    equal: int = 0
    different: int = 0
    error: int = 0
    timeout: int = 0
    dropped: int = 0
    """Not asked: the shadow was not ready or did not keep up."""
    methods: Mapping[str, Mapping[str, int]] = {}
    last_error: str = ""
    refused: Mapping[str, int] = {}
    """What it asked of the host in vain, because it would have had an effect."""
    examples: Sequence[ShadowExample] = ()
    """The latest calls that were answered differently."""


class PluginStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row. States are those of `PluginState`, and `broken` and `shadowed` for what was found but cannot be used."""

    id: str
    state: str
    reason: str = ""
    name: str = ""
    version: str = ""
    carrier: str = ""
    host_rights: bool = False
    """Third-party code that runs inside the host."""
    origin: str = ""
    directory: str = ""
    enabled: bool = False
    priority: int = 0
    capabilities: tuple[str, ...] = ()
    permissions_wanted: tuple[str, ...] = ()
    permissions_granted: tuple[str, ...] = ()
    config: Mapping[str, Any] = {}
    """The plugin's own section, secrets masked."""
    generation: int = 0
    draining: int = 0
    """Older generations that still finish calls."""
    restarts: int = 0
    pid: int | None = None
    rss_bytes: int | None = None
    """Memory of its process at the last look."""
    cpu_share: float | None = None
    """Of one processor, over the last half minute."""
    confinement: ConfinementReport | None = None
    """What the kernel keeps its process from doing, running or not."""
    refused: Mapping[str, int] = {}
    """What it tried and was refused since the host started, and how often."""
    stderr: tuple[str, ...] = ()
    """Its last lines, when something is wrong."""
    shadow: ShadowStatus | None = None


def status_of_slot(slot: Slot, refused: Mapping[str, int], shadow: ShadowStatus | None = None) -> PluginStatus:
    """A plugin that runs, or should."""
    generation = slot.current
    plan, handle = generation.plan, generation.handle
    manifest = plan.source.manifest
    reason = slot.reason
    if not reason and handle.state is not PluginState.READY:
        reason = handle.last_error
    if not reason and not generation.declaration.capabilities and handle.state is PluginState.READY:
        reason = "it declares no hooks, so nothing calls it"
    return PluginStatus(
        id=plan.plugin_id,
        state=str(handle.state),
        reason=reason or plan.policy.remark,
        name=manifest.name,
        version=manifest.version,
        carrier=plan.policy.carrier,
        host_rights=plan.policy.carrier == "inprocess" and not plan.bundled,
        origin=plan.source.origin,
        directory=str(plan.source.directory),
        enabled=True,
        priority=plan.section.priority,
        capabilities=tuple(sorted(generation.declaration.capabilities)),
        permissions_wanted=tuple(sorted(plan.policy.wished_permissions)),
        permissions_granted=tuple(sorted(plan.policy.permissions)),
        config=masked_config(plan.section.config, manifest.secret_fields),
        generation=handle.generation,
        draining=len(slot.retiring),
        restarts=getattr(handle, "restarts", 0),
        pid=getattr(handle, "pid", None),
        confinement=getattr(handle, "confinement", None) or _confinement(plan.policy),
        refused=refused,
        rss_bytes=getattr(handle, "rss_bytes", None),
        cpu_share=getattr(handle, "cpu_share", None),
        stderr=tuple(handle.stderr_tail()) if reason else (),
        shadow=shadow,
    )


def status_of_source(source: PluginSource, config: Config, needed: bool) -> PluginStatus:
    """A plugin that was found and does not run."""
    manifest = source.manifest
    section = section_of(config, source.plugin_id)
    if source.origin == "bundled":
        reason = "" if needed else "nothing in the configuration needs it"
    elif not config.plugins.enabled:
        reason = "plugins.enabled is false"
    else:
        reason = "enabled" if section.enabled else f"not enabled: jackfield plugins enable {source.plugin_id}"
    state, granted, carrier = str(PluginState.DISCOVERED), frozenset[str](), str(manifest.runtime)
    confinement = None
    try:
        policy = effective_policy(source, config)
        granted, carrier, confinement = policy.permissions, policy.carrier, _confinement(policy)
    except PolicyError as error:
        state, reason = "broken", str(error)
    return PluginStatus(
        id=source.plugin_id,
        state=state,
        reason=reason,
        name=manifest.name,
        version=manifest.version,
        carrier=carrier,
        origin=source.origin,
        directory=str(source.directory),
        enabled=section.enabled,
        priority=section.priority,
        capabilities=tuple(sorted(manifest.methods)),
        permissions_wanted=tuple(sorted(manifest.permissions)),
        permissions_granted=tuple(sorted(granted)),
        config=masked_config(section.config, manifest.secret_fields),
        confinement=confinement,
    )


def _confinement(policy: EffectivePolicy) -> ConfinementReport:
    if policy.carrier == "inprocess":
        return IN_PROCESS
    return what_is_in_force(policy.confinement, network="network" in policy.permissions, kernel=this_kernel())


def statuses_of_unusable(discovery: Discovery) -> list[PluginStatus]:
    """What was found and cannot be used."""
    rows = [
        PluginStatus(
            id=broken.plugin_id, state="broken", reason=broken.reason, origin=broken.origin, directory=broken.path
        )
        for broken in discovery.broken
    ]
    rows += [
        PluginStatus(
            id=shadowed.plugin_id,
            state="shadowed",
            reason=f"{shadowed.by} has this id already",
            directory=shadowed.path,
        )
        for shadowed in discovery.shadowed
    ]
    return rows
