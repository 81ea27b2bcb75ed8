"""What a request needs to know of the world: one immutable state, swapped as a whole on every reload.

Everything that depends on configuration and plugins only is worked out here once, not per request: models, lanes
(credential, plugin, formats), and plans per protocol and model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from msgspec.structs import replace

from host.config.model import Config
from host.credentials.classify import TRANSIENT_COOLDOWN_S
from host.credentials.cooldown import CooldownBook
from host.credentials.manager import CredentialManager
from host.credentials.pool import CredentialPool, Cursors, Strategy
from host.credentials.records import Credential, CredentialModel
from host.pipeline.attach import PoolAttacher
from host.pipeline.formats import negotiate
from host.registry.models import ModelRegistry, ModelRow, ModelSource, Offer, Resolution, image_only_name
from host.registry.suffix import split_suffix
from host.runtime.handle import Binding, PluginSnapshot, PluginState, PluginView
from pluginabi.payloads.common import CredentialHandle, ModelInfo, ThinkingSupport

_PLANS_MAX: Final = 4096
EXECUTE: Final = "executor.execute"
EXECUTE_STREAM: Final = "executor.execute_stream"
COUNT: Final = "executor.count_tokens"
EXECUTOR_METHODS: Final = (EXECUTE, EXECUTE_STREAM, COUNT)
_COMPAT_LEVELS: Final = ("low", "medium", "high")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane:
    """One way to serve a model: a credential (or a plugin on its own), the executor, the formats, the names."""

    credential: Credential
    handle: CredentialHandle | None
    """What plugins see of the credential; None where a plugin executes on its own."""
    binding: Binding
    input_format: str
    output_format: str
    model: str
    """The client's model without the credential's prefix."""
    upstreams: tuple[str, ...]
    """Upstream names without the client's suffix; several for an alias pool."""
    state_models: tuple[str, ...]
    info: ModelInfo | None = None

    @property
    def provider(self) -> str:
        return self.credential.provider


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """All lanes for a model, best priority first, and why there are none when there are none."""

    model: str
    suffix: str | None
    providers: tuple[str, ...]
    lanes: tuple[Lane, ...] = ()
    known: bool = True
    """Whether anybody offers the model at all."""
    unsupported: tuple[str, ...] = ()
    """Formats of those who offer it but cannot be reached from the client's protocol."""
    missing_method: bool = False
    """Somebody offers it in the right format, but not for this kind of call."""
    cursor: str = ""
    image_only: str | None = None
    """The bare name of a model that only image endpoints may use."""
    credential_ids: tuple[str, ...] = ()
    """Of the lanes, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """Replaced on reload; a request keeps the one it started with. Make it with `build_state`."""

    config: Config
    plugins: PluginSnapshot
    registry: ModelRegistry
    pool: CredentialPool
    manager: CredentialManager
    """Of the process: outlives this state and knows every credential as it is now."""
    strategy: Strategy = "round-robin"
    transient_s: float = TRANSIENT_COOLDOWN_S
    attacher: PoolAttacher = field(init=False)
    """Puts secrets on the upstream requests of plugins."""
    _plans: dict[tuple[str, str, str, str, str], Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacher", PoolAttacher(self.pool, self.manager.current))

    def plan(self, model: str, *, method: str, source: str, wanted: str, provider: str = "") -> Plan:
        """The lanes for a model, cached. `provider`: chosen by a router, with the model taken as it is."""
        key = (model, method, source, wanted, provider)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(model, method, source, wanted, provider)
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def plugin_lane(self, plugin_id: str, *, model: str, method: str, source: str, wanted: str) -> Lane | None:
        """A plugin's executor as the target of a router; None unless it is ready and speaks the formats."""
        view = self.plugins.plugins.get(plugin_id)
        if view is None or view.handle.state != PluginState.READY:
            return None
        if view.executor is not None and view.executor.scope == "oauth":
            return None
        credential = _plugin_credential(view, provider_of(view))
        found = self._lane(credential, view, method, source, wanted, model=model, upstreams=(model,), info=None)
        return found if isinstance(found, Lane) else None

    def translates(self, method: str, from_format: str, to_format: str) -> bool:
        """Whether a body can get from one format to the other: not at all needed, or some plugin offers to try."""
        return from_format == to_format or bool(self.plugins.bindings.get(method))

    def _make_plan(self, model: str, method: str, source: str, wanted: str, provider: str) -> Plan:
        found = self.registry.resolve(model)
        if provider:
            found = self._routed(model, provider)
        lanes: list[Lane] = []
        unsupported: list[str] = []
        missing_method = False
        for credential, offer in self._offers(found):
            lane = self._lane_of_offer(credential, offer, method, source, wanted)
            if isinstance(lane, Lane):
                lanes.append(lane)
            elif lane is None:
                missing_method = True
            else:
                unsupported.extend(lane)
        order = {name: index for index, name in enumerate(found.providers)}
        lanes.sort(key=lambda lane: (-lane.credential.priority, order[lane.provider], lane.credential.id))
        return Plan(
            model=found.model,
            suffix=found.suffix,
            providers=found.providers,
            lanes=tuple(lanes),
            known=bool(found.offers),
            unsupported=tuple(dict.fromkeys(unsupported)),
            missing_method=missing_method,
            cursor=f"{','.join(found.providers)}:{found.base}",
            image_only=image_only_name(model),
            credential_ids=tuple(lane.credential.id for lane in lanes),
        )

    def _routed(self, model: str, provider: str) -> Resolution:
        """A router's provider: those of its credentials that map the model, else all of them with the name as it is."""
        found = self.registry.resolve(model)
        offers = tuple(offer for offer in found.offers if offer.source.provider == provider)
        base, suffix = split_suffix(model.strip())
        if not offers:
            offers = tuple(
                Offer(source=_bare_source(credential), model=base, upstreams=(base,), info=ModelInfo(id=base))
                for credential in self.pool.credentials
                if credential.provider == provider and not credential.disabled
            )
        return Resolution(model=model, base=base, suffix=suffix, providers=(provider,), offers=offers)

    def _offers(self, found: Resolution) -> Iterator[tuple[Credential, Offer]]:
        for offer in found.offers:
            credential = self.pool.by_id.get(offer.source.id)
            if credential is not None and not credential.disabled:
                yield credential, offer

    def _lane_of_offer(
        self, credential: Credential, offer: Offer, method: str, source: str, wanted: str
    ) -> Lane | Sequence[str] | None:
        view = self.executor_of(credential)
        if view is None:
            return None
        return self._lane(
            credential, view, method, source, wanted, model=offer.model, upstreams=offer.upstreams, info=offer.info
        )

    def executor_of(self, credential: Credential) -> PluginView | None:
        """The plugin that executes a credential."""
        if credential.source_kind == "plugin":
            return self.plugins.plugins.get(credential.attributes["plugin"])
        return self.plugins.executor_of_provider(credential.provider)

    def _lane(
        self,
        credential: Credential,
        view: PluginView,
        method: str,
        source: str,
        wanted: str,
        *,
        model: str,
        upstreams: tuple[str, ...],
        info: ModelInfo | None,
    ) -> Lane | Sequence[str] | None:
        """A lane; the executor's formats when it cannot be reached in any; None when it lacks the method."""
        formats = negotiate(
            view.executor,
            source=source,
            wanted=wanted,
            request=lambda here, there: self.translates("request.translate", here, there),
            response=lambda here, there: self.translates("response.translate", here, there),
            unsupported=credential.unsupported_formats,
        )
        if formats is None:
            declared = view.executor.input_formats if view.executor is not None else ()
            return [name for name in declared if name not in credential.unsupported_formats] or ["nothing"]
        binding = self.plugins.binding(view.plugin_id, method)
        if binding is None:
            return None
        return Lane(
            credential=credential,
            handle=_visible(credential),
            binding=binding,
            input_format=formats.input,
            output_format=formats.output,
            model=model,
            upstreams=upstreams,
            # A pool keeps the health of each upstream name; anything else that of the name clients use.
            state_models=tuple(split_suffix(name)[0] for name in upstreams) if len(upstreams) > 1 else (model,),
            info=info,
        )


def build_state(
    config: Config,
    plugins: PluginSnapshot,
    *,
    previous: GatewayState | None = None,
    manager: CredentialManager | None = None,
    clock: Callable[[], float] = monotonic,
) -> GatewayState:
    """The state for a configuration and a plugin snapshot. Cooldowns, cursors and handles of `previous` live on.

    `manager` brings the credentials, with `config` applied; without one they are the configuration's keys.
    """
    if manager is None:
        manager = previous.manager if previous is not None else CredentialManager()
        manager.apply_config(config)
    credentials = [*manager.credentials]
    credentials.extend(_plugin_credentials(plugins, {found.provider for found in credentials}))
    book = previous.pool.book if previous is not None else CooldownBook(clock=clock)
    book.keep_only({credential.id for credential in credentials})
    pool = CredentialPool(
        credentials,
        book=book,
        cursors=previous.pool.cursors if previous is not None else Cursors(),
        cooling_disabled=config.disable_cooling,
    )
    sources = _sources(credentials, plugins)
    wanted = config.transient_error_cooldown_seconds
    return GatewayState(
        config=config,
        plugins=plugins,
        registry=ModelRegistry(sources, force_model_prefix=config.force_model_prefix),
        pool=pool,
        manager=manager,
        strategy="fill-first" if config.routing.strategy == "fill-first" else "round-robin",
        transient_s=TRANSIENT_COOLDOWN_S if wanted == 0 else max(0.0, float(wanted)),
    )


def provider_of(view: PluginView) -> str:
    """The provider key a plugin's own executor goes by: its first exact key, else its id."""
    return next(
        (key.strip().lower() for key in view.providers if key.strip() and not key.endswith("*")), view.plugin_id
    )


def executes(view: PluginView) -> bool:
    """Whether the plugin has an executor."""
    return any(method in view.capabilities for method in EXECUTOR_METHODS)


def _plugin_credential(view: PluginView, provider: str) -> Credential:
    return Credential(
        id=f"plugin:{view.plugin_id}:{provider}:executor",
        provider=provider,
        label=view.plugin_id,
        source_kind="plugin",
        attributes={"plugin": view.plugin_id},
    )


def _plugin_credentials(plugins: PluginSnapshot, configured: set[str]) -> Iterator[Credential]:
    """Plugins that serve models on their own: with models and an executor, and no credential for their provider.

    With `scope = static` also beside credentials; never with `oauth`, which says that a credential is needed.
    """
    for view in plugins.plugins.values():
        scope = view.executor.scope if view.executor is not None else "both"
        provider = provider_of(view)
        alone = scope == "static" or (scope != "oauth" and provider not in configured)
        if view.models and executes(view) and alone:
            yield _plugin_credential(view, provider)


def _sources(credentials: Sequence[Credential], plugins: PluginSnapshot) -> Iterator[ModelSource]:
    """Who serves what. A plugin on its own does not claim a model that a credential or an earlier plugin serves."""
    claimed: set[str] = set()
    for credential in credentials:
        rows = _rows(credential, plugins)
        if credential.source_kind == "plugin":
            rows = tuple(row for row in rows if row.client.lower() not in claimed)
        claimed.update(row.client.lower() for row in rows)
        yield ModelSource(
            id=credential.id,
            provider=credential.provider,
            rows=rows,
            patterns=credential.model_patterns if not rows else (),
            prefix=credential.prefix,
            excluded=credential.excluded_models,
        )


def _rows(credential: Credential, plugins: PluginSnapshot) -> tuple[ModelRow, ...]:
    if credential.disabled:
        return ()
    if credential.models:
        return _configured_rows(credential)
    if credential.source_kind == "plugin":
        view = plugins.plugins.get(credential.attributes["plugin"])
    else:
        view = plugins.executor_of_provider(credential.provider)
    if view is None or (view.executor is not None and view.executor.scope == "static" and credential.secret):
        return ()
    return tuple(
        ModelRow(client=info.id, upstreams=(info.id,), info=info) for info in {i.id: i for i in view.models}.values()
    )


def _configured_rows(credential: Credential) -> tuple[ModelRow, ...]:
    first: dict[str, CredentialModel] = {}
    for model in credential.models:
        first.setdefault(model.client.lower(), model)
    return tuple(
        ModelRow(client=model.client, upstreams=credential.upstream_names(model.client), info=_info(credential, model))
        for model in first.values()
    )


def _info(credential: Credential, model: CredentialModel) -> ModelInfo:
    compat = "compat_name" in credential.attributes
    kind = ("openai-image" if model.image else "openai-compatibility") if compat else credential.provider
    levels = () if model.image or not compat else _COMPAT_LEVELS
    support = ThinkingSupport(levels=levels) if levels else None
    if model.thinking is not None:
        support = replace(support or ThinkingSupport(), **_thinking_fields(model.thinking))
    return ModelInfo(
        id=model.client,
        owned_by=credential.owned_by,
        type=kind,
        display_name=model.client,
        thinking=support,
        user_defined=True,
    )


def _thinking_fields(thinking: object) -> dict[str, object]:
    """The known members of a configured `thinking` map."""
    if not isinstance(thinking, dict):
        return {}
    names = ("min", "max", "zero_allowed", "dynamic_allowed", "levels")
    folded = {str(name).replace("-", "_"): value for name, value in thinking.items()}
    return {name: folded[name] for name in names if name in folded}


def _bare_source(credential: Credential) -> ModelSource:
    return ModelSource(id=credential.id, provider=credential.provider, rows=())


def _visible(credential: Credential) -> CredentialHandle | None:
    if credential.source_kind == "plugin":
        return None
    return CredentialHandle(
        handle=credential.handle,
        provider=credential.provider,
        label=credential.label,
        attributes=credential.attributes,
    )
