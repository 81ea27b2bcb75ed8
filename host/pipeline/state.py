"""What a request needs to know of the world: one immutable state, swapped as a whole on every reload.

Everything that depends on configuration and plugins only is worked out here once, not per request: models, kinds of
lanes (plugin, formats, names), and plans per protocol and model. Nothing is made per credential and model: a plan over
ten thousand keys holds a few kinds of lanes, and a lane is made for the credential that was picked.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from msgspec import Struct

from host.config.model import Config
from host.credentials.cooldown import REFUSED_TOKEN, CooldownBook, elapsed_s
from host.credentials.handed_out import HandedOut
from host.credentials.manager import CredentialHealth, CredentialManager
from host.credentials.policy import RoutingPolicy, policy_of
from host.credentials.pool import CredentialPool, Health, Tier
from host.credentials.ready import Members
from host.credentials.records import Credential, CredentialChange, with_suffix
from host.pipeline.attach import PoolAttacher
from host.pipeline.executed import executor_of, is_executed, noted, unserved
from host.pipeline.formats import negotiate
from host.pipeline.model_lists import PluginListings, handed_out_models
from host.pipeline.plugin_credentials import plugin_credential, plugin_credentials
from host.registry.changes import log_changes
from host.registry.groups import Group, Grouper, Infos
from host.registry.listing import listed_models
from host.registry.models import (
    MAX_NAME,
    Catalogue,
    ModelRegistry,
    ModelSource,
    Offer,
    Resolution,
    age_of,
    by_id,
    canonical,
    image_only_name,
    is_auto,
)
from host.registry.rules import model_rules
from host.registry.suffix import split_suffix
from host.runtime.handle import Binding, PluginSnapshot, PluginState, PluginView
from pluginabi.payloads.common import CredentialHandle, ModelInfo

_PLANS_MAX: Final = 4096
_LANES_KEPT: Final = 64
"""Lanes of so few credentials are made once per plan; of more they are made when picked."""
EXECUTE: Final = "executor.execute"
EXECUTE_STREAM: Final = "executor.execute_stream"
COUNT: Final = "executor.count_tokens"
PREPARE: Final = "executor.prepare"
EXHAUSTED: Final = "executor.on_exhausted"
_NOBODY: Final = ModelSource(id="", provider="")
_NO_INFO: Final = ModelInfo(id="")


class Lane(Struct, frozen=True, kw_only=True, eq=False):
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
    keys: tuple[str, ...]
    """The canonical names under which the health of these models is kept."""
    info: ModelInfo | None = None
    prepare: Binding | None = None
    """The executor's `executor.prepare`, where it has one."""
    answers_as: str = ""
    """The model that answers shall name; empty: what they say."""

    @property
    def provider(self) -> str:
        return self.credential.provider

    def key_of(self, upstream: str) -> str:
        """Under which name the result of an upstream model counts."""
        return self.keys[0] if len(self.keys) == 1 else canonical(upstream)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LaneKind:
    """What the lanes of one group of credentials have in common."""

    binding: Binding
    input_format: str
    output_format: str
    model: str
    upstreams: tuple[str, ...]
    keys: tuple[str, ...]
    info: ModelInfo | None
    prepare: Binding | None
    answers_as: str = ""
    prefers_websockets: bool = False

    def lane(self, credential: Credential) -> Lane:
        """The lane of one of the credentials."""
        return Lane(
            credential=credential,
            handle=visible(credential),
            binding=self.binding,
            input_format=self.input_format,
            output_format=self.output_format,
            model=self.model,
            upstreams=self.upstreams,
            keys=self.keys,
            info=self.info,
            prepare=self.prepare,
            answers_as=self.answers_as,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """All ways to serve a model, and why there are none when there are none."""

    model: str
    suffix: str | None
    providers: tuple[str, ...]
    tiers: tuple[Tier, ...] = ()
    """Best priority first."""
    websocket_tiers: tuple[Tier, ...] = ()
    """Of these those who are preferred for requests that came over a WebSocket."""
    kinds: Mapping[Tier, tuple[LaneKind, ...]] = field(default_factory=dict)
    known: bool = True
    """Whether anybody offers the model at all."""
    unsupported: tuple[str, ...] = ()
    """Formats of those who offer it but cannot be reached from the client's protocol."""
    missing_method: bool = False
    """Somebody offers it in the right format, but not for this kind of call."""
    unexecuted: tuple[str, ...] = ()
    """Providers that offer it and that no plugin executes."""
    cursor: str = ""
    image_only: str | None = None
    """The bare name of a model that only image endpoints may use."""
    _lanes: dict[str, Lane] = field(default_factory=dict)

    @cached_property
    def total(self) -> int:
        """How many credentials there are."""
        return sum(len(tier.ready.members) for tier in self.tiers)

    @property
    def has_free(self) -> bool:
        """Whether any of them could serve the model right now."""
        for tier in self.tiers:
            tier.ready.sync()
        return any(tier.ready.count for tier in self.tiers)

    def lane(self, tier: Tier, position: int) -> Lane:
        """The lane of the credential at a position of one of the tiers."""
        members = tier.ready.members
        credential = members.credentials[position]
        lane = self._lanes.get(credential.id)
        if lane is None:
            lane = self.kinds[tier][members.groups[position] if members.groups else 0].lane(credential)
            if self.total <= _LANES_KEPT:
                self._lanes[credential.id] = lane
        return lane

    def lanes(self) -> Iterator[Lane]:
        """Every lane, best priority first."""
        return (self.lane(tier, position) for tier in self.tiers for position in range(len(tier.ready.members)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What lives on from one state to the next."""

    grouper: Grouper = field(default_factory=Grouper)
    listed: dict[str, Infos] = field(default_factory=dict)
    """Models that a plugin listed for one credential, by its id."""
    handed_out: HandedOut = field(default_factory=HandedOut)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """Replaced on reload; a request keeps the one it started with. Make it with `build_state`."""

    config: Config
    plugins: PluginSnapshot
    registry: ModelRegistry
    pool: CredentialPool
    manager: CredentialManager
    """Of the process: outlives this state and knows every credential as it is now."""
    groups: Mapping[str, Group] = field(default_factory=dict)
    """By source."""
    parts: Parts = field(default_factory=Parts)
    handed_out_models: tuple[ModelInfo, ...] = ()
    """Models that nobody serves here, by what the sources of credentials say; for lists only."""
    attacher: PoolAttacher = field(init=False)
    plans: dict[tuple[str, str, str, str, str], Plan] = field(default_factory=dict)
    """Those that were made and are kept."""
    _members: dict[tuple[tuple[str, ...], frozenset[int] | None], Members] = field(default_factory=dict)
    _listed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attacher = PoolAttacher(self.pool, self.manager.current, self.parts.handed_out.get, plugins=self.plugins)
        object.__setattr__(self, "attacher", attacher)

    @property
    def policy(self) -> RoutingPolicy:
        """How credentials are chosen and tried again."""
        return self.pool.policy

    def listing(self) -> tuple[ModelInfo, ...]:
        """The models that clients are shown: without those that no credential can serve for long."""
        book = self.pool.book
        if self._listed.get("version") != book.version or book.is_due or self._listed["until_s"] <= book.clock():
            own = listed_models(self.registry, self.groups, book, unserved=unserved(self.plugins, self.groups))
            models = by_id((*own.models, *self.handed_out_models)) if self.handed_out_models else own.models
            self._listed.update(models=models, until_s=own.until_s, version=book.version)
        found: tuple[ModelInfo, ...] = self._listed["models"]
        return found

    def models_of(self, credential_id: str) -> tuple[str, ...]:
        """The canonical names of the upstream models that a credential serves."""
        for group in self.groups.values():
            if credential_id in group.ids:
                return tuple(dict.fromkeys(key for offer in group.source.offers for key in offer.keys))
        return ()

    def health_of(self, credential_id: str) -> CredentialHealth:
        """How a credential does, for listings."""
        health = self.pool.health.health_of(credential_id, self.models_of(credential_id))
        return noted(health, self.plugins, self.pool.by_id.get(credential_id))

    def credentials_changed(self, change: CredentialChange) -> None:
        """Health that was another record's is dropped; a renewed token takes back what a refusal of the old one did."""
        health = self.pool.health
        health.tallies.drop(change.removed)
        for credential_id in change.reset:
            health.book.reset(credential_id)
            health.ready.pop(credential_id, None)
        for credential_id in change.refreshed:
            health.book.lift(credential_id, REFUSED_TOKEN)

    def reset_quota(self, auth_index: str) -> tuple[str, ...] | None:
        """Make every credential with this index usable at once; the models it concerns, None for an unknown index.

        Without a block these are all models of the credential (spec credentials 5.11).
        """
        found = [credential.id for credential in self.pool.credentials if credential.auth_index == auth_index]
        if not auth_index or not found:
            return None
        models = [name for it in found for name in self.pool.book.reset(it) or self.models_of(it)]
        return tuple(dict.fromkeys(models))

    def plan(self, model: str, *, method: str, source: str, wanted: str, provider: str = "") -> Plan:
        """The lanes for a model, cached. `provider`: chosen by a router, with the model taken as it is."""
        key = (model, method, source, wanted, provider)
        plan = self.plans.get(key)
        if plan is None:
            if not provider and is_auto(model) and (newest := self._newest(model, method, source, wanted)) is not None:
                return newest
            plan = self._make_plan(model, method, source, wanted, provider)
            if len(self.plans) >= _PLANS_MAX:
                self.plans.clear()
                self._members.clear()
                self.pool.forget_tiers()
            if len(model) <= MAX_NAME:
                self.plans[key] = plan
        return plan

    def _newest(self, model: str, method: str, source: str, wanted: str) -> Plan | None:
        """For `auto`: the newest model that can be reached and has a free credential, else the newest of any."""
        _, suffix = split_suffix(model.strip())
        first = None
        for info in sorted(self.listing(), key=age_of, reverse=True):
            if is_auto(info.id):
                continue
            plan = self.plan(with_suffix(info.id, suffix), method=method, source=source, wanted=wanted)
            if plan.tiers and plan.image_only is None:
                if plan.has_free:
                    return plan
                first = first or plan
        return first

    def plugin_lane(self, plugin_id: str, *, model: str, method: str, source: str, wanted: str) -> Lane | None:
        """A plugin's executor as the target of a router; None unless it is ready and speaks the formats."""
        view = self.plugins.plugins.get(plugin_id)
        if view is None or view.handle.state != PluginState.READY:
            return None
        if view.executor is not None and view.executor.scope == "oauth":
            return None
        return self._lane(plugin_credential(view), view, model, method, source, wanted)

    def lane_for(self, credential: Credential, *, model: str, method: str, source: str, wanted: str) -> Lane | None:
        """A lane of a credential that is not one of the pool's; None when nobody executes its provider that way."""
        view = executor_of(self.plugins, credential)
        return self._lane(credential, view, model, method, source, wanted) if view is not None else None

    def _lane(
        self, credential: Credential, view: PluginView, model: str, method: str, source: str, wanted: str
    ) -> Lane | None:
        offer = Offer(source=_NOBODY, model=model, upstreams=(model,), keys=(canonical(model),), info=_NO_INFO)
        found = self._kind(credential, view, offer, method, source, wanted)
        return found.lane(credential) if isinstance(found, LaneKind) else None

    def translates(self, method: str, from_format: str, to_format: str) -> bool:
        """Whether a body can get from one format to the other: not at all needed, or some plugin offers to try."""
        return from_format == to_format or bool(self.plugins.bindings.get(method))

    def _make_plan(self, model: str, method: str, source: str, wanted: str, provider: str) -> Plan:
        found = self.registry.resolve(model)
        if provider:
            found = self._routed(model, provider)
        kinds: dict[str, LaneKind] = {}
        unsupported: list[str] = []
        missing_method, unexecuted = False, []
        for offer in found.offers:
            group = self.groups.get(offer.source.id)
            if group is None:
                continue
            if not is_executed(self.plugins, group.sample):
                unexecuted.append(offer.source.provider)
                continue
            kind = self._kind_of_group(group, offer, method, source, wanted)
            if isinstance(kind, LaneKind):
                kinds[offer.source.id] = replace(kind, answers_as=found.base) if offer.force_mapping else kind
            elif kind is None:
                missing_method = True
            else:
                unsupported.extend(kind)
        order = {name: index for index, name in enumerate(found.providers)}
        by_priority = self._by_priority(kinds)
        tiers = [self._tier(ids, kinds, order) for ids in by_priority]
        for_websockets = [
            self._tier(ids, kinds, order, for_websockets=True)
            for ids in by_priority
            if any(kinds[it].prefers_websockets for it in ids)
        ]
        return Plan(
            model=found.model,
            suffix=found.suffix,
            providers=found.providers,
            tiers=tuple(tier for tier, _ in tiers),
            websocket_tiers=tuple(tier for tier, _ in for_websockets if len(tier.ready.members)),
            kinds=dict([*tiers, *for_websockets]),
            known=bool(found.offers),
            unsupported=tuple(dict.fromkeys(unsupported)),
            missing_method=missing_method,
            unexecuted=tuple(dict.fromkeys(unexecuted)),
            cursor=f"{','.join(sorted(found.providers))}:{canonical(found.base)}",
            image_only=image_only_name(model),
        )

    def _by_priority(self, source_ids: Iterable[str]) -> list[list[str]]:
        """The sources of one priority each, best first."""
        found: dict[int, list[str]] = {}
        for source_id in source_ids:
            found.setdefault(self.groups[source_id].sample.priority, []).append(source_id)
        return [found[priority] for priority in sorted(found, reverse=True)]

    def _tier(
        self,
        source_ids: Sequence[str],
        kinds: Mapping[str, LaneKind],
        order: Mapping[str, int],
        *,
        for_websockets: bool = False,
    ) -> tuple[Tier, tuple[LaneKind, ...]]:
        """The credentials of some groups by provider as resolved, then by id; and the kind of lane of each group."""
        ids = tuple(sorted(source_ids, key=lambda it: order[self.groups[it].source.provider]))
        of_ids = tuple(kinds[source_id] for source_id in ids)
        able = frozenset(n for n, kind in enumerate(of_ids) if kind.prefers_websockets) if for_websockets else None
        members = self._members.get((ids, able))
        if members is None:
            members = _members_of([self.groups[source_id] for source_id in ids], order)
            if able is not None:
                members = members.only(lambda it, group: group in able and bool(it.websockets))
            self._members[ids, able] = members
        return self.pool.tier(members, [kind.keys for kind in of_ids]), of_ids

    def _routed(self, model: str, provider: str) -> Resolution:
        """A router's provider: those of its credentials that map the model, else all that may serve it as it is."""
        found = self.registry.resolve(model)
        offers = tuple(it for it in found.offers if it.source.provider == provider and not is_auto(model))
        base, suffix = split_suffix(model.strip())
        if not offers and len(base) <= MAX_NAME:
            groups = (it for it in self.groups.values() if it.source.provider == provider and it.may_serve(base))
            offers = tuple(group.source.offer(base) for group in groups)
        return Resolution(model=model, base=base, suffix=suffix, providers=(provider,), offers=offers)

    def _kind_of_group(
        self, group: Group, offer: Offer, method: str, source: str, wanted: str
    ) -> LaneKind | Sequence[str] | None:
        view = executor_of(self.plugins, group.sample)
        return None if view is None else self._kind(group.sample, view, offer, method, source, wanted)

    def _kind(
        self, credential: Credential, view: PluginView, offer: Offer, method: str, source: str, wanted: str
    ) -> LaneKind | Sequence[str] | None:
        """A kind of lane; the executor's formats when it cannot be reached in any; None when it lacks the method."""
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
        if (binding := self.plugins.binding(view.plugin_id, method)) is None:
            return None
        return LaneKind(
            binding=binding,
            input_format=formats.input,
            output_format=formats.output,
            model=offer.model,
            upstreams=offer.upstreams,
            keys=offer.keys,
            info=None if offer.info is _NO_INFO else offer.info,
            prepare=self.plugins.binding(view.plugin_id, PREPARE) if credential.source_kind != "plugin" else None,
            prefers_websockets=view.executor is not None and view.executor.prefers_websockets,
        )


def build_state(
    config: Config,
    plugins: PluginSnapshot,
    *,
    previous: GatewayState | None = None,
    manager: CredentialManager | None = None,
    clock: Callable[[], float] = elapsed_s,
) -> GatewayState:
    """The state for a configuration and a plugin snapshot. Cooldowns, cursors and handles of `previous` live on.

    `manager` brings the credentials, with `config` applied; without one they are the configuration's keys.
    """
    if manager is None:
        manager = previous.manager if previous is not None else CredentialManager()
        manager.apply_config(config)
    credentials = [*manager.credentials]
    credentials.extend(plugin_credentials(plugins, {found.provider for found in credentials}))
    health = previous.pool.health if previous is not None else Health(book=CooldownBook(clock=clock))
    pool = CredentialPool(credentials, policy=policy_of(config), health=health)
    pool.settle()
    parts = previous.parts if previous is not None else Parts()
    groups = parts.grouper.groups(credentials, model_rules(config), PluginListings(plugins, parts.listed))
    registry = _registry(groups, config, previous.registry if previous is not None else None)
    state = GatewayState(
        config=config,
        plugins=plugins,
        registry=registry,
        pool=pool,
        manager=manager,
        groups={group.source.id: group for group in groups},
        parts=parts,
        handed_out_models=tuple(
            info for info in handed_out_models(plugins) if info.id.lower() not in registry.catalogue.entries
        ),
    )
    manager.health = state
    return state


def _registry(groups: Sequence[Group], config: Config, previous: ModelRegistry | None) -> ModelRegistry:
    """The registry of these groups: over the catalogue that there is, when they offer the same."""
    sources = tuple(group.source for group in groups)
    sizes = {group.source.id: len(group.members) for group in groups}
    known = previous.catalogue if previous is not None else None
    if known is not None and known.force_model_prefix == config.force_model_prefix and known.sources == sources:
        return ModelRegistry(known, sizes=sizes)
    catalogue = Catalogue(sources, force_model_prefix=config.force_model_prefix)
    if known is not None:
        log_changes(known, catalogue)
    return ModelRegistry(catalogue, sizes=sizes)


def _members_of(groups: Sequence[Group], order: Mapping[str, int]) -> Members:
    if len(groups) == 1:
        return Members(groups[0].members)
    found = [(order[each.provider], each.id, index, each) for index, it in enumerate(groups) for each in it.members]
    found.sort(key=lambda row: row[:2])
    return Members([row[3] for row in found], [row[2] for row in found])


def visible(credential: Credential) -> CredentialHandle | None:
    """What plugins see of a credential; None for a plugin that executes on its own."""
    if credential.source_kind == "plugin":
        return None
    return CredentialHandle(
        handle=credential.handle,
        provider=credential.provider,
        label=credential.label,
        attributes=credential.attributes,
    )
