"""Which models there are, who serves them, under which upstream names (spec credentials 2 and 3, client-api 7.6)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from host.registry.suffix import split_suffix
from pluginabi.payloads.common import ModelInfo

IMAGE_ONLY_MODELS: Final = frozenset({"gpt-image-1.5", "gpt-image-2"})
_RESOLVED_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model of a source: the client's name, and the upstream's (several for an alias pool)."""

    client: str
    upstreams: tuple[str, ...]
    info: ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Somebody who serves models: a credential, or a plugin's executor on its own."""

    id: str
    provider: str
    rows: tuple[ModelRow, ...] = ()
    patterns: tuple[str, ...] = ()
    """Names it serves that are not listed (lower case, `*` is any run); a listed model of anybody wins."""
    prefix: str = ""
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A source serves a model. `model` is the client's name without the source's prefix."""

    source: ModelSource
    model: str
    upstreams: tuple[str, ...]
    info: ModelInfo


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
class _Entry:
    info: ModelInfo
    offers: dict[str, Offer] = field(default_factory=dict)


class ModelRegistry:
    """Immutable after construction, but for its cache of resolved names."""

    def __init__(self, sources: Iterable[ModelSource], *, force_model_prefix: bool = False) -> None:
        self._entries: dict[str, _Entry] = {}
        self._resolved: dict[str, Resolution] = {}
        self._patterned: list[ModelSource] = []
        for source in sources:
            self._add(source, force_model_prefix)
            if source.patterns:
                self._patterned.append(source)
        self._listing = tuple(sorted((entry.info for entry in self._entries.values()), key=lambda info: info.id))

    def resolve(self, model: str) -> Resolution:
        """Providers of a model, the one with most sources first, then by name."""
        found = self._resolved.get(model)
        if found is None:
            found = self._resolve(model)
            if len(self._resolved) >= _RESOLVED_MAX:
                self._resolved.clear()
            self._resolved[model] = found
        return found

    def list(self) -> tuple[ModelInfo, ...]:
        """Every model, by id."""
        return self._listing

    def info(self, model: str) -> ModelInfo | None:
        """One model by its exact or differently cased id."""
        entry = self._entries.get(model.strip().lower())
        return entry.info if entry is not None else None

    def offers(self, model: str) -> tuple[Offer, ...]:
        """Who serves a model (a name without suffix)."""
        entry = self._entries.get(model.strip().lower())
        return tuple(entry.offers.values()) if entry is not None else ()

    def _resolve(self, model: str) -> Resolution:
        base, suffix = split_suffix(model.strip())
        base = base.strip()
        if base == "auto" and (newest := self._newest()) is not None:
            base, model = newest, newest if suffix is None else f"{newest}({suffix})"
        offers = self.offers(base) or self._by_pattern(base)
        if not offers and suffix is not None:
            offers, full = self.offers(model), model.strip()
            if offers:
                base, suffix = full, None
        counts: dict[str, int] = {}
        for offer in offers:
            counts[offer.source.provider] = counts.get(offer.source.provider, 0) + 1
        providers = tuple(sorted(counts, key=lambda provider: (-counts[provider], provider)))
        return Resolution(model=model, base=base, suffix=suffix, providers=providers, offers=offers)

    def _by_pattern(self, base: str) -> tuple[Offer, ...]:
        found = []
        for source in self._patterned:
            name = base.removeprefix(f"{source.prefix}/") if source.prefix else base
            if matches(name, source.patterns) and not matches(name, source.excluded):
                found.append(Offer(source=source, model=name, upstreams=(name,), info=ModelInfo(id=name)))
        return tuple(found)

    def _newest(self) -> str | None:
        newest = max(self._listing, key=lambda info: (info.created or 0, info.id), default=None)
        return newest.id if newest is not None else None

    def _add(self, source: ModelSource, force_model_prefix: bool) -> None:
        for row in source.rows:
            if matches(row.client, source.excluded):
                continue
            offer = Offer(source=source, model=row.client, upstreams=row.upstreams, info=row.info)
            names = [row.client]
            if source.prefix:
                prefixed = f"{source.prefix}/{row.client}"
                names = [prefixed] if force_model_prefix and row.client != source.prefix else [row.client, prefixed]
            for name in names:
                entry = self._entries.get(name.lower())
                if entry is None:
                    # A declared name says how the model is called without prefix: under another id it would mislead.
                    info = row.info if row.info.id == name else replace(row.info, id=name, name="")
                    entry = self._entries[name.lower()] = _Entry(info)
                entry.offers.setdefault(source.id, offer)


def matches(model: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern (lower case, `*` matches any run) names the model."""
    folded = model.lower()
    return any(re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), folded) for pattern in patterns)


def image_only_name(model: str) -> str | None:
    """The bare name of a model that only image endpoints may use; None for any other."""
    base, _ = split_suffix(model.strip())
    bare = base.strip().rsplit("/", 1)[-1].lower()
    return bare if bare in IMAGE_ONLY_MODELS else None
