"""One plugin's slot in the gateway: the generation that serves, those that drain, and what was tried last."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import structlog

from host.config.model import Config
from host.runtime.discover import PluginSource
from host.runtime.handle import PluginHandle, PluginState, PluginView, Reply
from host.runtime.plan import Plan, data_dir_of, section_of
from host.runtime.policy import EffectivePolicy
from host.runtime.remembered import Declared, recall, remember
from host.runtime.resolve import ResolvedConfig
from host.runtime.scope import CallScope
from host.runtime.snapshot import Declaration, RegistrationError, declare, view_of
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.common import ModelInfo, Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse

log = structlog.get_logger("host.runtime.generation")


class ManagedHandle(PluginHandle, Protocol):
    """What the registry needs of a generation, in-process or a process, beside calling it."""

    @property
    def generation(self) -> int: ...

    @property
    def hello(self) -> Any:
        """With `capabilities` and `inputs`; None before the first one."""

    @property
    def registration(self) -> RegisterResponse | None: ...

    @property
    def last_error(self) -> str: ...

    async def start(self) -> None:
        """Returns when ready. Raises PluginStartError or InProcessStartError."""

    async def reconfigure(self, request: RegisterRequest) -> bool:
        """False when the plugin cannot; raises what it answered."""

    async def drain_and_stop(self, *, drain_s: float, successor: PluginHandle | None = None) -> None:
        """Calls that still come go to `successor`."""

    async def stop(self) -> None: ...

    def stderr_tail(self) -> Sequence[str]: ...


@dataclass(slots=True, eq=False)
class Generation:
    """A handle with the plan it was started under and what it declared."""

    plan: Plan
    handle: ManagedHandle
    declaration: Declaration
    models: tuple[ModelInfo, ...] = ()
    models_provider: str = ""
    in_the_way: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was replaced and a newer one needs its place: it ends at its first moment without a call."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def redeclare(self) -> None:
        """Take over what the handle declares now. Raises RegistrationError; then nothing changes."""
        self.declaration = declaration_of(self.plan, self.handle)

    def view(self) -> PluginView:
        """For the snapshot."""
        return view_of(self.plan, self.declaration, self.handle, models=self.models, provider=self.models_provider)


@dataclass(slots=True, eq=False)
class Slot:
    """Everything about one wanted plugin."""

    current: Generation
    attempted: Plan | None
    """The newest plan that was tried, in effect or not: the same plan is not tried twice."""
    problem: str = ""
    """Why `attempted` is not in effect."""
    recovers: bool = False
    """`current` did not start, and may still become ready by itself."""
    retiring: list[Generation] = field(default_factory=list)
    waiting: PluginSource | None = None
    """What an upgrade wanted to load that has to wait until one of `retiring` has ended its last call."""
    last_number: int = 0

    @property
    def plugin_id(self) -> str:
        return self.current.plan.plugin_id

    @property
    def reason(self) -> str:
        """Why what is wanted is not what serves; empty when it does."""
        if self.waiting is None:
            return self.problem
        return f"the next version starts when one of {len(self.retiring)} older ones has finished its calls"


class UnavailableHandle:
    """Stands for a plugin of which nothing could be started; every call is refused at once."""

    hello: Final = None
    registration: Final = None

    def __init__(self, plugin_id: str, reason: str) -> None:
        self.plugin_id = plugin_id
        self.generation = 0
        self.state = PluginState.FAILED
        self.last_error = reason

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        raise PluginTransportError(self.plugin_id, method, phase="unavailable", cause=self.last_error)

    async def start(self) -> None: ...

    async def reconfigure(self, request: RegisterRequest) -> bool:
        return False

    async def drain_and_stop(self, *, drain_s: float, successor: PluginHandle | None = None) -> None: ...

    async def stop(self) -> None: ...

    def stderr_tail(self) -> Sequence[str]:
        return ()


def declaration_of(plan: Plan, handle: ManagedHandle) -> Declaration:
    """What a handle declares; while it has said nothing, `undeclared`. Raises RegistrationError."""
    hello = handle.hello
    if hello is None:
        return undeclared(plan)
    declared = Declared(
        capabilities=tuple(hello.capabilities),
        inputs=hello.inputs,
        on_error=getattr(hello, "on_error", {}),
        registration=handle.registration,
    )
    declaration = _declaration(plan, declared)
    remember(plan, declared)
    return declaration


def undeclared(plan: Plan) -> Declaration:
    """What a plugin that has said nothing yet would say: what it said last time, else what its manifest lists."""
    declared = recall(plan)
    if declared is not None:
        try:
            return _declaration(plan, declared)
        except RegistrationError as error:
            log.warning("plugin.not_recalled", plugin_id=plan.plugin_id, reason=str(error))
    return declare(plan, capabilities=None, inputs={}, on_error={}, registration=None)


def _declaration(plan: Plan, declared: Declared) -> Declaration:
    return declare(
        plan,
        capabilities=tuple(declared.capabilities),
        inputs=declared.inputs,
        on_error=declared.on_error,
        registration=declared.registration,
    )


def generation_of(plan: Plan, handle: ManagedHandle) -> Generation:
    """A generation before its start."""
    return Generation(plan, handle, undeclared(plan))


def blocked_generation(source: PluginSource, config: Config, problem: str) -> Generation:
    """The generation of a plugin that cannot even be planned: visible, never callable, without permissions."""
    manifest = source.manifest
    policy = EffectivePolicy(
        carrier=manifest.runtime,
        permissions=frozenset(),
        wished_permissions=frozenset(manifest.permissions),
        on_error=manifest.on_error,
        inputs={method: tuple(words) for method, words in manifest.inputs.items()},
    )
    plan = Plan(
        source=source,
        policy=policy,
        section=section_of(config, source.plugin_id),
        config=ResolvedConfig({}),
        data_dir=data_dir_of(config, source.plugin_id),
    )
    return generation_of(plan, UnavailableHandle(source.plugin_id, problem))


def kept_plan(old: Plan, new: Plan) -> Plan:
    """The plan of a generation that stays although `new` was wanted: what the host itself enforces changes anyway.

    A permission that the operator took back is gone even when the plugin refuses its new configuration.
    """
    policy = replace(
        old.policy,
        permissions=old.policy.permissions & new.policy.permissions,
        http_hosts=new.policy.http_hosts,
        private_hosts=new.policy.private_hosts,
        timeouts_s=new.policy.timeouts_s,
        on_error=new.policy.on_error,
        first_byte_timeout_s=new.policy.first_byte_timeout_s,
        idle_timeout_s=new.policy.idle_timeout_s,
    )
    return replace(old, policy=policy, section=new.section)
