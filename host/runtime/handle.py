"""The seam between the pipeline and plugins: handles, bindings and the snapshot. Both carriers look alike above it."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from msgspec import Struct

from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import StreamItem
from pluginabi.errors import AbiError
from pluginabi.frames import Usage
from pluginabi.methods import OnError
from pluginabi.payloads.common import ModelInfo, Payload
from pluginabi.payloads.lifecycle import ExecutorRegistration, FrontendAuthRegistration

EXECUTOR_METHODS: Final = ("executor.execute", "executor.execute_stream", "executor.count_tokens")
ATTEMPT_METHODS: Final = frozenset({*EXECUTOR_METHODS, "executor.prepare"})
"""Whose failures the pipeline logs, as it knows the credential and what follows."""


class PluginState(StrEnum):
    """`stopped -> starting -> handshaking -> registering -> ready <-> unresponsive -> draining -> stopped`."""

    DISCOVERED = "discovered"
    STOPPED = "stopped"
    STARTING = "starting"
    HANDSHAKING = "handshaking"
    REGISTERING = "registering"
    READY = "ready"
    UNRESPONSIVE = "unresponsive"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


class ItemStream(Protocol):
    """The items of an open stream; credit is returned as they are consumed."""

    usage: Usage | None
    """Set once the stream has ended."""

    def __aiter__(self) -> AsyncIterator[StreamItem]:
        """Yields items, progress included. Raises PluginError or PluginTransportError at the end of a failed stream."""

    async def aclose(self, reason: str = "client_gone") -> None:
        """Cancel what still runs; idempotent."""


class Reply(Struct, frozen=True, kw_only=True):
    """A plugin's answer: its decoded result, the usage of the closing frame, and the items when a stream was opened."""

    result: Any = None
    """The method's response struct; an empty answer is the struct with its defaults."""
    usage: Usage | None = None
    items: Any = None
    """`ItemStream` or None."""


class PluginHandle(Protocol):
    """One generation of one plugin, in-process or a process; what `invoke` talks to."""

    @property
    def plugin_id(self) -> str: ...

    @property
    def state(self) -> PluginState: ...

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        """Call the plugin and wait for its result; `stream=True` when a stream may be opened.

        Raises PluginError (normalised, origin set) and PluginTransportError (PluginTimeout included). Cancelling the
        awaiting task cancels the call in the plugin.
        """


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one binding wants to see (design: What a plugin sees)."""

    body: bool = False
    body_exact: bool = False
    body_pointers: tuple[str, ...] = ()
    client_body: bool = False
    request_body: bool = False
    history: bool = False
    all_candidates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One plugin's implementation of one method, with the policy it is called under."""

    plugin_id: str
    method: str
    priority: int
    handle: PluginHandle
    on_error: OnError
    timeout_s: float | None
    """Until `result`; None: no deadline."""
    inputs: Inputs
    permissions: frozenset[str]
    idle_timeout_s: float | None = None
    """Between two items of a stream; progress items count."""

    def may(self, permission: str) -> bool:
        return permission in self.permissions


class CopiedCall(Protocol):
    """A call that another version of the plugin will get as well; told how it ended."""

    def answered(self, result: Any) -> None: ...

    def failed(self, failure: AbiError) -> None: ...


class CallCopier(Protocol):
    """Copies calls for shadows; see `host.shadow`. Must not raise and must not wait."""

    def take(
        self, binding: "Binding", build: Callable[["Binding"], Payload], request: RequestScope | None
    ) -> CopiedCall | None:
        """A copy of a call that is about to be made; None for one that is not compared."""


class CallTap(Protocol):
    """Listens to calls while somebody records them; see `host.recording`."""

    def handle(self, binding: Binding) -> PluginHandle:
        """What to call instead of the binding's own handle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginView:
    """What the snapshot knows of an enabled plugin, whatever its state."""

    plugin_id: str
    version: str
    priority: int
    handle: PluginHandle
    capabilities: frozenset[str]
    providers: tuple[str, ...] = ()
    executor: ExecutorRegistration | None = None
    frontend_auth: FrontendAuthRegistration | None = None
    thinking_provider: str | None = None
    auth_provider: str = ""
    """What it is called as an auth provider (`auth.*`), in lower case; empty: by its executor's keys, else its id."""
    models: tuple[ModelInfo, ...] = ()
    bundled: bool = False

    def names(self, provider: str) -> bool:
        """Whether the provider is one of its own: by an exact key or by a pattern (`x-*`)."""
        return any(key == provider or (key.endswith("*") and provider.startswith(key[:-1])) for key in self.providers)

    @property
    def executes(self) -> bool:
        """Whether it has an executor."""
        return not self.capabilities.isdisjoint(EXECUTOR_METHODS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class PluginSnapshot:
    """Immutable; plugins in priority order (higher first, then id). A request keeps the one it started with.

    A generation of a plugin is stopped once the last snapshot that names it is gone.
    """

    generation: int = 0
    bindings: Mapping[str, tuple[Binding, ...]] = field(default_factory=dict)
    """Method -> implementers; a method nobody implements has no key."""
    plugins: Mapping[str, PluginView] = field(default_factory=dict)

    def implementers(self, method: str, skip: frozenset[str] = frozenset()) -> tuple[Binding, ...]:
        """The bindings of `method` in calling order, without the plugins in `skip`."""
        found = self.bindings.get(method, ())
        if not skip or not found:
            return found
        return tuple(binding for binding in found if binding.plugin_id not in skip)

    def binding(self, plugin_id: str, method: str) -> Binding | None:
        """One plugin's binding of `method`."""
        for binding in self.bindings.get(method, ()):
            if binding.plugin_id == plugin_id:
                return binding
        return None

    def executor_of_provider(self, provider: str) -> PluginView | None:
        """The plugin that executes `provider`: an exact key beats a pattern (`x-*`), then priority.

        One without an executor, which logs in or lists models for the provider, only where nobody executes it.
        """
        named = (view for view in self.plugins.values() if view.names(provider))
        # Of equals `max` takes the first, and plugins stand in the order of their priority.
        return max(named, key=lambda view: (view.executes, provider in view.providers), default=None)


EMPTY_SNAPSHOT = PluginSnapshot()
