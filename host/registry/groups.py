"""Credentials that offer the same models in the same way are one group: ten thousand keys of a provider are one source.

What a group offers is worked out once and kept through reloads; a reload that changes one key looks at that key only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from msgspec.structs import replace

from host.credentials.records import AliasRule, Credential, CredentialModel
from host.registry.aliases import NO_ALIASES, aliased_names, merged, renamed, sanitised
from host.registry.models import ModelRow, ModelSource, canonical, matches
from pluginabi.payloads.common import ModelInfo, ThinkingSupport

_COMPAT_LEVELS: Final = ("low", "medium", "high")
_UNKNOWN: Final = ModelInfo(id="")
_FEW_TABLES: Final = 64
_TABLE: Final = 4
"""Where in the kind of a credential the number of its own table stands."""
GroupKey: TypeAlias = tuple[Any, ...]
Infos: TypeAlias = tuple[ModelInfo, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Credentials that differ in their secrets only, as far as routing is concerned."""

    source: ModelSource
    members: tuple[Credential, ...]
    """The enabled ones, by id."""

    @property
    def sample(self) -> Credential:
        """One of them."""
        return self.members[0]

    def may_serve(self, model: str) -> bool:
        """Whether a model that they do not list is not excluded: all are, of a key that was switched off."""
        return not matches(model, self.sample.excluded_models)

    @cached_property
    def ids(self) -> frozenset[str]:
        """Their ids."""
        return frozenset(member.id for member in self.members)


class Listings(Protocol):
    """Which models providers have, as far as their plugins say."""

    def of_provider(self, credential: Credential) -> Infos:
        """What the provider's plugin lists for everybody; always the same object while it does not change."""

    def of_credential(self, credential_id: str) -> Infos | None:
        """What the plugin listed for this credential; None when it was not asked or has no opinion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRules:
    """What the configuration says about models as a whole."""

    aliases: Mapping[str, tuple[AliasRule, ...]] = field(default_factory=dict)
    """Per provider, sanitised; for credentials that are no API keys."""


class Grouper:
    """Makes the groups of a set of credentials. One per process: what it worked out serves the next configuration."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[Credential, GroupKey]] = {}
        self._sources: dict[GroupKey, ModelSource] = {}
        self._numbers: dict[bytes, int] = {}
        """A number for each table of models; of those that nobody has any more only as many as there are others."""
        self._numbers_max = _FEW_TABLES
        self._next_number = 0
        self._count = 0

    def groups(self, credentials: Iterable[Credential], rules: ModelRules, listings: Listings) -> tuple[Group, ...]:
        """The groups in the order of their first credentials. Groups that offer what they did keep their source."""
        members: dict[GroupKey, list[Credential]] = {}
        kinds: dict[str, tuple[Credential, GroupKey]] = {}
        seen: dict[int, int] = {}
        for credential in credentials:
            known = self._kinds.get(credential.id)
            if known is None or known[0] is not credential:
                known = credential, self._kind_of(credential, seen)
            kinds[credential.id] = known
            if credential.disabled or credential.is_unusable:
                continue
            kind = known[1]
            if (own := listings.of_credential(credential.id)) is not None:
                kind = (*kind, self._number_of(own, seen))
            members.setdefault(kind, []).append(credential)
        self._kinds = kinds
        found = self._with_sources(members, rules, listings, seen)
        if len(self._numbers) > self._numbers_max:
            used = {kind[_TABLE] for _, kind in kinds.values()} | set(seen.values())
            self._numbers = {table: number for table, number in self._numbers.items() if number in used}
            self._numbers_max = 2 * len(self._numbers) + _FEW_TABLES
        return found

    def _with_sources(
        self, members: Mapping[GroupKey, list[Credential]], rules: ModelRules, listings: Listings, seen: dict[int, int]
    ) -> tuple[Group, ...]:
        sources: dict[GroupKey, ModelSource] = {}
        found: list[Group] = []
        has_plugins = any(credentials[0].source_kind == "plugin" for credentials in members.values())
        claimed: set[str] = set()
        for kind, credentials in members.items():
            sample = credentials[0]
            listed = listings.of_credential(sample.id)
            if listed is None:
                listed = listings.of_provider(sample)
            aliases, excluded = _rules_for(sample, rules)
            hidden = frozenset[str]()
            if sample.source_kind == "plugin":
                # A plugin on its own does not claim a model that a credential or an earlier plugin serves.
                hidden = frozenset(info.id.lower() for info in listed) & claimed
            key = (*kind, self._number_of(listed, seen), aliases, excluded, hidden)
            source = self._sources.get(key)
            if source is None:
                self._count += 1
                offered = tuple(info for info in listed if info.id.lower() not in hidden)
                source = _source_of(f"g{self._count}", sample, offered, aliases, excluded)
            sources[key] = source
            if has_plugins:
                claimed.update(row.client.lower() for row in source.rows)
            found.append(Group(source=source, members=tuple(sorted(credentials, key=_by_id))))
        self._sources = sources
        return tuple(found)

    def _kind_of(self, credential: Credential, seen: dict[int, int]) -> GroupKey:
        """Everything about a credential that routing looks at, but for its id and secret."""
        return (
            credential.source_kind == "plugin" and credential.id,
            credential.provider,
            credential.priority,
            credential.prefix,
            self._number_of(credential.models, seen),
            credential.model_patterns,
            credential.model_aliases,
            credential.excluded_models,
            credential.owned_by,
            credential.auth_kind,
            "compat_name" in credential.attributes,
            credential.unsupported_formats,
            bool(credential.secret),
        )

    def _number_of(self, models: Sequence[CredentialModel] | Infos, seen: dict[int, int]) -> int:
        """A number for a table of models: the same for equal ones, found at once for the very same object.

        `seen` is for objects that live as long as it is used.
        """
        number = seen.get(id(models))
        if number is None:
            number = seen[id(models)] = self._numbers.setdefault(msgspec.json.encode(models), self._next_number)
            self._next_number = max(self._next_number, number + 1)
        return number


def _by_id(credential: Credential) -> str:
    return credential.id


def _rules_for(credential: Credential, rules: ModelRules) -> tuple[tuple[AliasRule, ...], tuple[str, ...]]:
    if credential.auth_kind == "apikey" or credential.source_kind in ("config", "plugin"):
        return NO_ALIASES, credential.excluded_models
    aliases = merged(sanitised(credential.model_aliases), rules.aliases.get(credential.provider, NO_ALIASES))
    return aliases, credential.excluded_models


def _source_of(
    source_id: str, credential: Credential, listed: Infos, aliases: tuple[AliasRule, ...], excluded: tuple[str, ...]
) -> ModelSource:
    if credential.models:
        rows = _configured_rows(credential, listed)
    else:
        kept = {info.id: info for info in listed if not matches(info.id, excluded)}
        rows = renamed(kept.values(), aliases)
        if not listed and credential.model_patterns:
            patterns = credential.model_patterns
            rows = aliased_names([rule for rule in aliases if _is_served(canonical(rule.name), patterns, excluded)])
    has_list = bool(credential.models or listed)
    return ModelSource(
        id=source_id,
        provider=credential.provider,
        rows=rows,
        patterns=credential.model_patterns if not has_list else (),
        prefix=credential.prefix,
        excluded=excluded if credential.models or not has_list else (),
    )


def _is_served(model: str, patterns: tuple[str, ...], excluded: tuple[str, ...]) -> bool:
    return matches(model, patterns) and not matches(model, excluded)


def _configured_rows(credential: Credential, listed: Infos) -> tuple[ModelRow, ...]:
    """The credential's own table: the first definition of an alias counts, all of them where aliases are pools."""
    is_pool = "compat_name" in credential.attributes
    known = {info.id.lower(): info for info in listed}
    pools: dict[str, list[CredentialModel]] = {}
    for model in credential.models:
        pool = pools.setdefault(model.client.lower(), [])
        if is_pool or not pool:
            pool.append(model)
    return tuple(
        ModelRow(
            client=pool[0].client,
            upstreams=tuple(dict.fromkeys(model.upstream for model in pool)),
            info=info_of(credential, pool[0], known.get(canonical(pool[0].upstream))),
            force_mapping=any(model.force_mapping for model in pool),
        )
        for pool in pools.values()
    )


def info_of(credential: Credential, model: CredentialModel, known: ModelInfo | None = None) -> ModelInfo:
    """What lists show of a configured model. `known`: what the provider's plugin says of the upstream's model."""
    compat = "compat_name" in credential.attributes
    kind = ("openai-image" if model.image else "openai-compatibility") if compat else credential.provider
    levels = () if model.image or not compat else _COMPAT_LEVELS
    support = ThinkingSupport(levels=levels) if levels else None
    base = known or _UNKNOWN
    support = base.thinking or support
    if model.thinking is not None:
        support = replace(support or ThinkingSupport(), **_thinking_fields(model.thinking))
    return ModelInfo(
        id=model.client,
        owned_by=credential.owned_by,
        type=kind,
        display_name=model.display_name or model.client,
        context_length=model.max_context_length or base.context_length,
        input_token_limit=None if model.max_context_length else base.input_token_limit,
        output_token_limit=base.output_token_limit,
        max_completion_tokens=base.max_completion_tokens,
        supported_input_modalities=model.input_modalities or base.supported_input_modalities,
        supported_output_modalities=model.output_modalities or base.supported_output_modalities,
        thinking=support,
        user_defined=True,
    )


def _thinking_fields(thinking: object) -> dict[str, object]:
    """The known members of a configured `thinking` map."""
    if not isinstance(thinking, Mapping):
        return {}
    names = ("min", "max", "zero_allowed", "dynamic_allowed", "levels")
    folded = {str(name).replace("-", "_"): value for name, value in thinking.items()}
    return {name: folded[name] for name in names if name in folded}
