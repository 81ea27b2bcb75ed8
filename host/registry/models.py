"""Which models there are, who serves them, under which upstream names (spec credentials 2 and 3, client-api 7.6)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from msgspec.structs import replace

from host.registry.suffix import split_suffix
from pluginabi.payloads.common import ModelInfo

IMAGE_ONLY_MODELS: Final = frozenset({"gpt-image-1.5", "gpt-image-2"})
_RESOLVED_MAX: Final = 4096
MAX_NAME: Final = 256
"""Clients name models: a longer name is looked up in the lists, and kept nowhere."""


def canonical(model: str) -> str:
    """The one name under which the health of a model is kept: without suffix, in lower case."""
    return split_suffix(model.strip())[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model of a source: the client's name, and the upstream's (several for an alias pool)."""

    client: str
    upstreams: tuple[str, ...]
    info: ModelInfo
    force_mapping: bool = False
    """Answers name the model as the client did, not as the upstream does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSource:
    """Somebody who serves models: credentials that offer the same ones, or a plugin's executor on its own."""

    id: str
    provider: str
    rows: tuple[ModelRow, ...] = ()
    patterns: tuple[str, ...] = ()
    """Names it serves that it does not list (lower case, `*` is any run). What anybody lists it serves only where the
    list is of its own provider, and the name the provider's own."""
    prefix: str = ""
    excluded: tuple[str, ...] = ()

    @cached_property
    def offers(self) -> "tuple[Offer, ...]":
        """One offer per row that is not excluded."""
        return tuple(
            Offer(
                source=self,
                model=row.client,
                upstreams=row.upstreams,
                keys=tuple(dict.fromkeys(map(canonical, row.upstreams))),
                info=row.info,
                force_mapping=row.force_mapping,
            )
            for row in self.rows
            if not matches(row.client, self.excluded)
        )

    def offer(self, model: str) -> "Offer":
        """An offer of a model that it does not list, under the name as it is."""
        return Offer(source=self, model=model, upstreams=(model,), keys=(canonical(model),), info=ModelInfo(id=model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A source serves a model. `model` is the client's name without the source's prefix."""

    source: ModelSource
    model: str
    upstreams: tuple[str, ...]
    keys: tuple[str, ...]
    """The canonical names of the upstream's models."""
    info: ModelInfo
    force_mapping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Where a model name leads. `providers` is empty when nobody knows it."""

    model: str
    """The name with its suffix; another one than asked for when it was `auto`."""
    base: str
    suffix: str | None
    providers: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()


@dataclass(slots=True)
class Entry:
    """A model and who offers it."""

    info: ModelInfo
    offers: dict[str, Offer] = field(default_factory=dict)
    """By source."""


class Catalogue:
    """Every model that somebody lists, under every name it goes by. Immutable."""

    def __init__(self, sources: Iterable[ModelSource], *, force_model_prefix: bool = False) -> None:
        self.sources: Final = tuple(sources)
        self.force_model_prefix: Final = force_model_prefix
        self.entries: Final[dict[str, Entry]] = {}
        """By lower-case id."""
        self.patterned: Final = tuple(source for source in self.sources if source.patterns)
        for source in self.sources:
            self._add(source)

    @cached_property
    def listing(self) -> tuple[ModelInfo, ...]:
        """Every model, by id."""
        return by_id(entry.info for entry in self.entries.values())

    def _add(self, source: ModelSource) -> None:
        for offer in source.offers:
            names = [offer.model]
            if source.prefix:
                prefixed = f"{source.prefix}/{offer.model}"
                is_hidden = self.force_model_prefix and offer.model != source.prefix
                names = [prefixed] if is_hidden else [offer.model, prefixed]
            for name in names:
                entry = self.entries.get(name.lower())
                if entry is None:
                    # A declared name says how the model is called without prefix: under another id it would mislead.
                    info = offer.info if offer.info.id == name else replace(offer.info, id=name, name="")
                    entry = self.entries[name.lower()] = Entry(info)
                entry.offers.setdefault(source.id, offer)


class ModelRegistry:
    """A catalogue and how many credentials stand behind each source. Immutable, but for its cache of resolved names."""

    def __init__(self, catalogue: Catalogue, *, sizes: Mapping[str, int] | None = None) -> None:
        """`sizes` by source; one where it does not say."""
        self.catalogue: Final = catalogue
        self._sizes: Final = sizes or {}
        self._resolved: Final[dict[str, Resolution]] = {}

    def resolve(self, model: str) -> Resolution:
        """Providers of a model, the one with most credentials first, then by name."""
        found = self._resolved.get(model)
        if found is None:
            found = self._resolve(model)
            if len(self._resolved) >= _RESOLVED_MAX:
                self._resolved.clear()
            if len(model) <= MAX_NAME:
                self._resolved[model] = found
        return found

    def list(self) -> tuple[ModelInfo, ...]:
        """Every model, by id."""
        return self.catalogue.listing

    def info(self, model: str) -> ModelInfo | None:
        """One model by its exact or differently cased id."""
        entry = self.catalogue.entries.get(model.strip().lower())
        return entry.info if entry is not None else None

    def offers(self, model: str) -> tuple[Offer, ...]:
        """Who serves a model (a name without suffix)."""
        entry = self.catalogue.entries.get(model.strip().lower())
        return tuple(entry.offers.values()) if entry is not None else ()

    def count(self, model: str) -> int:
        """How many credentials serve a model."""
        return sum(self.size(offer.source) for offer in self.offers(model))

    def size(self, source: ModelSource) -> int:
        """How many credentials stand behind a source."""
        return self._sizes.get(source.id, 1)

    def _resolve(self, model: str) -> Resolution:
        base, suffix = split_suffix(model.strip())
        base = base.strip()
        if is_auto(base) and (newest := self._newest()) is not None:
            base, model = newest, newest if suffix is None else f"{newest}({suffix})"
        offers = self.offers(base)
        offers = (*offers, *self._by_pattern(base, offers)) if offers else self._by_pattern(base)
        if not offers and suffix is not None:
            offers, full = self.offers(model), model.strip()
            if offers:
                base, suffix = full, None
        counts: dict[str, int] = {}
        for offer in offers:
            provider = offer.source.provider
            counts[provider] = counts.get(provider, 0) + self.size(offer.source)
        providers = tuple(sorted(counts, key=lambda provider: (-counts[provider], provider)))
        return Resolution(model=model, base=base, suffix=suffix, providers=providers, offers=offers)

    def _by_pattern(self, base: str, listed: Sequence[Offer] = ()) -> tuple[Offer, ...]:
        """Who serves the model by pattern, beside those who list it."""
        found: list[Offer] = []
        if len(base) > MAX_NAME:
            return ()
        wanted = {(offer.source.provider, key) for offer in listed for key in offer.keys}
        known = {offer.source.id for offer in listed}
        for source in self.catalogue.patterned:
            name = self._without_prefix(base, source.prefix)
            if not name or source.id in known or (listed and (source.provider, canonical(name)) not in wanted):
                continue
            if matches(name, source.patterns) and not matches(name, source.excluded):
                found.append(source.offer(name))
        return tuple(found)

    def _without_prefix(self, base: str, prefix: str) -> str:
        """The name as the source calls it; empty where only the name with its prefix is offered."""
        head = f"{prefix}/"
        if not prefix or base[: len(head)].lower() != head.lower():
            is_hidden = prefix and self.catalogue.force_model_prefix and base.lower() != prefix.lower()
            return "" if is_hidden else base
        return base[len(head) :]

    def _newest(self) -> str | None:
        newest = max(self.catalogue.listing, key=age_of, default=None)
        return newest.id if newest is not None else None


def is_auto(model: str) -> bool:
    """Whether the client leaves the choice of the model to us."""
    return split_suffix(model.strip())[0].strip() == "auto"


def age_of(info: ModelInfo) -> tuple[int, str]:
    """The newest model has the largest."""
    return info.created or 0, info.id


def by_id(infos: Iterable[ModelInfo]) -> tuple[ModelInfo, ...]:
    """In the order of lists."""
    return tuple(sorted(infos, key=lambda info: info.id))


def matches(model: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern (lower case, `*` matches any run) names the model."""
    folded = model.lower()
    return any(re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), folded) for pattern in patterns)


def image_only_name(model: str) -> str | None:
    """The bare name of a model that only image endpoints may use; None for any other."""
    base, _ = split_suffix(model.strip())
    bare = base.strip().rsplit("/", 1)[-1].lower()
    return bare if bare in IMAGE_ONLY_MODELS else None
