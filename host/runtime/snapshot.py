"""From running generations to the immutable snapshot of plugins, and when an old snapshot is no longer in use."""

import asyncio
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from host.runtime.handle import Binding, Inputs, PluginHandle, PluginSnapshot, PluginView
from host.runtime.plan import Plan
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.lifecycle import FrontendAuthRegistration, RegisterResponse

log = structlog.get_logger("host.runtime.snapshot")

FRONTEND_AUTH: Final = "frontend_auth.authenticate"
_LIFECYCLE_PREFIX: Final = "plugin."


class RegistrationError(Exception):
    """What a plugin declares does not fit together; the message is for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is known of a plugin's hooks: from hello and registration, or from the manifest while there is neither."""

    capabilities: frozenset[str]
    inputs: Mapping[str, Inputs]
    on_error_preset: Mapping[str, str]
    registration: RegisterResponse


def declare(
    plan: Plan,
    *,
    capabilities: Sequence[str] | None,
    inputs: Mapping[str, Sequence[str]],
    on_error: Mapping[str, str],
    registration: RegisterResponse | None,
) -> Declaration:
    """The hooks in effect. `capabilities` None: no hello was ever seen. Raises RegistrationError."""
    known = frozenset(capabilities if capabilities is not None else plan.source.manifest.methods)
    registration = registration if registration is not None else RegisterResponse()
    if registration.capabilities is not None:
        unknown = sorted(set(registration.capabilities) - known)
        if unknown and capabilities is not None:
            raise RegistrationError(f"plugin.register names {', '.join(unknown)}, which its hello does not")
        known = frozenset(registration.capabilities)
    hooks = frozenset(
        method for method in known if not method.startswith(_LIFECYCLE_PREFIX) and _is_method(plan, method)
    )
    try:
        parsed = {method: plan.policy.method_inputs(method, inputs) for method in hooks}
    except ValueError as error:
        raise RegistrationError(f"its hello asks for an unknown input: {error}") from None
    return Declaration(capabilities=hooks, inputs=parsed, on_error_preset=on_error, registration=registration)


def view_of(
    plan: Plan, declaration: Declaration, handle: PluginHandle, *, models: Sequence[ModelInfo], provider: str
) -> PluginView:
    """How the pipeline sees a plugin. `models` and `provider` come from `model.static` or `model.register`."""
    registration = declaration.registration
    providers = tuple(key.strip().lower() for key in registration.providers or ())
    if provider and provider not in providers:
        providers = (*providers, provider)
    frontend_auth = None
    if FRONTEND_AUTH in declaration.capabilities:
        frontend_auth = registration.frontend_auth or FrontendAuthRegistration()
        if not frontend_auth.id.strip():
            frontend_auth = FrontendAuthRegistration(id=plan.plugin_id, exclusive=frontend_auth.exclusive)
    return PluginView(
        plugin_id=plan.plugin_id,
        version=plan.source.manifest.version,
        priority=plan.section.priority,
        handle=handle,
        capabilities=declaration.capabilities,
        providers=providers,
        executor=registration.executor,
        frontend_auth=frontend_auth,
        thinking_provider=registration.thinking_provider,
        auth_provider=(registration.auth_provider or "").strip().lower(),
        models=(*(registration.models or ()), *models),
        bundled=plan.bundled,
    )


def build_snapshot(entries: Iterable[tuple[Plan, Declaration, PluginView]], *, generation: int) -> PluginSnapshot:
    """The snapshot of these plugins: by priority, higher first, then by id."""
    ordered = sorted(entries, key=lambda entry: (-entry[2].priority, entry[2].plugin_id))
    bindings: dict[str, list[Binding]] = {}
    for plan, declaration, view in ordered:
        for method in sorted(view.capabilities):
            bindings.setdefault(method, []).append(_binding(plan, declaration, view, method))
    return PluginSnapshot(
        generation=generation,
        bindings={method: tuple(found) for method, found in bindings.items()},
        plugins={view.plugin_id: view for _, _, view in ordered},
    )


def _binding(plan: Plan, declaration: Declaration, view: PluginView, method: str) -> Binding:
    policy = plan.policy
    return Binding(
        plugin_id=plan.plugin_id,
        method=method,
        priority=view.priority,
        handle=view.handle,
        on_error=policy.method_on_error(method, declaration.on_error_preset),
        timeout_s=policy.method_timeout_s(method),
        inputs=declaration.inputs[method],
        permissions=policy.permissions,
        idle_timeout_s=policy.idle_timeout_s if PLUGIN_METHODS[method].stream else None,
    )


def _is_method(plan: Plan, method: str) -> bool:
    if method in PLUGIN_METHODS:
        return True
    # A plugin built for a newer host still works with what this one knows.
    log.info("plugin.unknown_capability", plugin_id=plan.plugin_id, method=method)
    return False


class SnapshotLeases:
    """Knows which generations of plugins some living snapshot still names. For one event loop."""

    def __init__(self) -> None:
        self._living: dict[weakref.ref[PluginSnapshot], frozenset[int]] = {}
        self._changed = asyncio.Event()

    def issue(self, snapshot: PluginSnapshot) -> None:
        """Follow a snapshot until nobody holds it."""
        loop = asyncio.get_running_loop()

        def gone(reference: "weakref.ref[PluginSnapshot]") -> None:
            # The collector may run in any thread, and after the loop has ended.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._forget, reference)

        handles = frozenset(id(view.handle) for view in snapshot.plugins.values())
        self._living[weakref.ref(snapshot, gone)] = handles

    async def released(self, handle: PluginHandle) -> None:
        """Wait until no living snapshot names `handle`."""
        while any(id(handle) in handles for handles in self._living.values()):
            self._changed.clear()
            await self._changed.wait()

    def _forget(self, reference: "weakref.ref[PluginSnapshot]") -> None:
        self._living.pop(reference, None)
        self._changed.set()
