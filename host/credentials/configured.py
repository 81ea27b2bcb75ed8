"""Credential records made from the keys of the configuration (spec credentials 1.9, 12.5)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, ProviderKey
from host.credentials.ids import COMPAT_FAMILY, IdGenerator, auth_index, compat_provider_key, extra_parts
from host.credentials.records import (
    DEFAULT_BASE_URL,
    DEFAULT_MODELS,
    SECRET_HEADER,
    Credential,
    CredentialModel,
    HandleMint,
    exclusion_attributes,
    visible_attributes,
)
from host.credentials.rules import error_rules
from host.credentials.secret import Secret

PROVIDER_LISTS: Final[Mapping[str, str]] = {
    "gemini-api-key": "gemini",
    "claude-api-key": "claude",
    "codex-api-key": "codex",
    "vertex-api-key": "vertex",
}
"""Lists of keys with a provider of their own, in the order of the config."""
_KIND_WITH_PROXY: Final = frozenset({"vertex"})
"""Whose ids have always had the proxy in them."""


@dataclass(frozen=True, slots=True)
class Configured:
    """A record and the entry it was made of: an entry that did not change keeps its record."""

    entry: tuple[object, ...]
    credential: Credential


_Row = tuple[str, "Place", tuple[object, ...], Callable[[], Credential]]


class Place(NamedTuple):
    """Where in the configuration a key stands: the list and the position in it (of a compat key the provider's)."""

    section: str
    position: int


class _Shared:
    """What the keys of an OpenAI-compatible provider share."""

    def __init__(self, part: tuple[object, ...], provider: CompatProvider) -> None:
        self.part: Final = part
        self._entries: Final = provider.models

    @cached_property
    def models(self) -> tuple[CredentialModel, ...]:
        """The one table of models of all the keys."""
        return _models(self._entries)


class ConfiguredKeys:
    """The records of the configuration's keys. Reading the next configuration makes only what changed anew."""

    def __init__(self, mint: HandleMint) -> None:
        self.places: Mapping[str, Place] = {}
        self._mint: Final = mint
        self._known: dict[str, Configured] = {}
        self._shared: dict[str, _Shared] = {}
        self._digests: Mapping[tuple[str, ...], str] = {}

    def read(self, config: Config, *, now_s: float | None = None) -> dict[str, Credential]:
        """Every credential of the configuration by id: gemini, claude, codex, OpenAI-compatible, vertex."""
        known, found, places = self._known, {}, {}
        for credential_id, place, entry, make in self._entries(config):
            before = known.get(credential_id)
            if before is None:
                found[credential_id] = Configured(entry, replace(make(), created_at_s=now_s, updated_at_s=now_s))
            elif before.entry == entry:
                found[credential_id] = before
            else:
                created_s = before.credential.created_at_s
                found[credential_id] = Configured(entry, replace(make(), created_at_s=created_s, updated_at_s=now_s))
            places[credential_id] = place
        self._known, self.places = found, places
        return {credential_id: configured.credential for credential_id, configured in found.items()}

    def _entries(self, config: Config) -> Iterator[_Row]:
        ids = IdGenerator(self._digests)
        yield from _keys("gemini-api-key", config.gemini_api_key, ids, self._mint)
        yield from _keys("claude-api-key", config.claude_api_key, ids, self._mint)
        yield from _keys("codex-api-key", config.codex_api_key, ids, self._mint)
        shared: dict[str, _Shared] = {}
        for index, provider in enumerate(config.openai_compatibility):
            part = shared_part(provider)
            before = self._shared.get(provider.name)
            # The same object as last time where nothing changed: thousands of keys of one provider compare at once.
            common = before if before is not None and before.part == part else _Shared(part, provider)
            shared.setdefault(provider.name, common)
            yield from _compat(Place(COMPAT_FAMILY, index), provider, common, ids, self._mint)
        self._shared = shared
        yield from _keys("vertex-api-key", config.vertex_api_key, ids, self._mint)
        self._digests = ids.used


def credentials_of_config(config: Config, mint: HandleMint) -> tuple[Credential, ...]:
    """Every credential of one configuration."""
    return tuple(ConfiguredKeys(mint).read(config).values())


def _keys(section: str, keys: Sequence[ProviderKey], ids: IdGenerator, mint: HandleMint) -> Iterator[_Row]:
    provider = PROVIDER_LISTS[section]
    for index, key in enumerate(keys):
        if not key.api_key.strip() and not key.base_url.strip():
            continue
        credential_id, short = ids.next(f"{provider}:apikey", *_id_parts(provider, key))

        def make(key: ProviderKey = key, credential_id: str = credential_id, short: str = short) -> Credential:
            return _of_key(provider, key, credential_id, short, mint)

        yield credential_id, Place(section, index), (key,), make


def _id_parts(provider: str, key: ProviderKey) -> tuple[str, ...]:
    if provider in _KIND_WITH_PROXY:
        extra = extra_parts(prefix=key.prefix, headers=key.headers)
        return (key.api_key, key.base_url, key.proxy_url, *extra)
    return (key.api_key, key.base_url, *extra_parts(proxy_url=key.proxy_url, prefix=key.prefix, headers=key.headers))


def _of_key(provider: str, key: ProviderKey, credential_id: str, short: str, mint: HandleMint) -> Credential:
    api_key, base_url = key.api_key.strip(), key.base_url.strip()
    reached = base_url or DEFAULT_BASE_URL.get(provider, "")
    header = SECRET_HEADER.get(provider)
    source = f"config:{'vertex-apikey' if provider == 'vertex' else provider}[{short}]"
    family = "" if provider == "vertex" else f"{provider}-api-key"
    excluded = folded_patterns(key.excluded_models)
    return Credential(
        id=credential_id,
        provider=provider,
        label=f"{provider}-apikey",
        handle=mint.handle(credential_id),
        auth_index=auth_index(family, base_url=base_url, api_key=api_key, credential_id=credential_id),
        attributes=visible_attributes(
            base_url=reached,
            auth_kind="apikey",
            source=source,
            provider_key="vertex" if provider == "vertex" else "",
            websockets="true" if key.websockets else "",
            priority=key.priority,
            **exclusion_attributes(excluded),
        ),
        auth_kind="apikey",
        secret=Secret(api_key) if api_key else None,
        secret_place="none" if not api_key else "header" if header else "bearer",
        secret_name=(header or "authorization") if api_key else "",
        headers=folded_headers(key.headers),
        proxy_url=key.proxy_url.strip(),
        base_url=reached,
        priority=key.priority,
        weight=1 if key.weight is None else key.weight,
        prefix=path_segment(key.prefix),
        models=_models(key.models),
        model_patterns=DEFAULT_MODELS.get(provider, ()),
        excluded_models=excluded,
        owned_by=provider,
        disable_cooling=key.disable_cooling,
        request_retry=key.request_retry,
        error_rules=error_rules(key.request_scoped_errors),
        websockets=key.websockets or None,
    )


def _compat(
    place: Place, provider: CompatProvider, shared: _Shared, ids: IdGenerator, mint: HandleMint
) -> Iterator[_Row]:
    if provider.disabled:
        return
    name = provider.name.strip() or COMPAT_FAMILY
    base_url = provider.base_url.strip()
    kind = f"{COMPAT_FAMILY}:{name.lower()}"
    extra = extra_parts(prefix=provider.prefix, headers=provider.headers)

    for item in provider.api_key_entries or (None,):
        parts = (item.api_key, base_url, item.proxy_url, *extra) if item is not None else (base_url, *extra)
        credential_id, short = ids.next(kind, *parts)
        key = item or CompatKey()

        def make(key: CompatKey = key, credential_id: str = credential_id, short: str = short) -> Credential:
            return _of_compat_key(provider, name, key, credential_id, short, mint, shared.models)

        yield credential_id, place, (shared.part, key), make


def shared_part(provider: CompatProvider) -> tuple[object, ...]:
    """What the keys of a provider share."""
    return tuple(getattr(provider, name) for name in CompatProvider.__struct_fields__ if name != "api_key_entries")


def _of_compat_key(
    provider: CompatProvider,
    name: str,
    key: CompatKey,
    credential_id: str,
    short: str,
    mint: HandleMint,
    models: tuple[CredentialModel, ...],
) -> Credential:
    api_key, base_url = key.api_key.strip(), provider.base_url.strip()
    return Credential(
        id=credential_id,
        provider=compat_provider_key(name),
        label=name,
        handle=mint.handle(credential_id),
        auth_index=auth_index(COMPAT_FAMILY, base_url=base_url, api_key=api_key, credential_id=credential_id),
        attributes=visible_attributes(
            base_url=base_url,
            compat_name=name,
            provider_key=compat_provider_key(name),
            source=f"config:{name.lower()}[{short}]",
            priority=provider.priority,
            responses="true" if provider.responses else "",
        ),
        auth_kind="apikey" if api_key else "",
        secret=Secret(api_key) if api_key else None,
        secret_place="bearer" if api_key else "none",
        secret_name="authorization" if api_key else "",
        headers=folded_headers(provider.headers),
        proxy_url=key.proxy_url.strip(),
        base_url=base_url,
        priority=provider.priority,
        weight=1 if key.weight is None else key.weight,
        prefix=path_segment(provider.prefix),
        models=models,
        owned_by=name,
        disable_cooling=provider.disable_cooling,
        request_retry=provider.request_retry,
        error_rules=error_rules(provider.request_scoped_errors),
        unsupported_formats=frozenset() if provider.responses else frozenset({"openai-response"}),
    )


def folded_headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Custom headers: names trimmed and in lower case, values trimmed, without the empty ones."""
    return tuple(
        (name.strip().lower(), value.strip()) for name, value in headers.items() if name.strip() and value.strip()
    )


def path_segment(prefix: str) -> str:
    """One path segment; anything else is no prefix."""
    trimmed = prefix.strip().strip("/").strip()
    return "" if "/" in trimmed else trimmed


def folded_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Model patterns in lower case, each once, sorted."""
    return tuple(sorted({pattern.strip().lower() for pattern in patterns if pattern.strip()}))


def compat_models(provider: CompatProvider) -> tuple[CredentialModel, ...]:
    """The models of an OpenAI-compatible provider."""
    return _models(provider.models)


def _models(entries: Sequence[ModelEntry]) -> tuple[CredentialModel, ...]:
    return tuple(
        CredentialModel(
            client=entry.alias.strip() or entry.name.strip(),
            upstream=entry.name.strip(),
            display_name=entry.display_name.strip(),
            image=entry.image,
            thinking=entry.thinking,
            max_context_length=positive(entry.max_context_length),
            input_modalities=modalities(entry.input_modalities),
            output_modalities=modalities(entry.output_modalities),
            force_mapping=entry.force_mapping,
        )
        for entry in entries
        if entry.name.strip()
    )


def positive(count: int | None) -> int | None:
    """A number of tokens; 0 and less are none."""
    return count if count is not None and count > 0 else None


def modalities(words: Iterable[object]) -> tuple[str, ...]:
    """Kinds of content in lower case, each once."""
    return tuple(dict.fromkeys(folded for word in words if (folded := str(word).strip().lower())))
