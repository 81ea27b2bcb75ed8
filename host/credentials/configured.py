"""Credential records made from the keys of the configuration (spec credentials 1.9, 12.5)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, ProviderKey
from host.credentials.ids import COMPAT_FAMILY, IdGenerator, auth_index, compat_provider_key, extra_parts, short_digest
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
_KEYLESS: Final = CompatKey()
"""Of a provider that needs no key."""


class Place(NamedTuple):
    """Where in the configuration a key stands: the list and the position in it (of a compat key the provider's)."""

    section: str
    position: int


class Configured(NamedTuple):
    """A record and what it was made of: an entry that did not change keeps its record."""

    entry: object
    part: tuple[object, ...]
    credential: Credential


class _Keys(ABC):
    """Keys that share everything but what stands in their own entries. Lives on while what they share stays."""

    def __init__(self, kind: str, part: tuple[object, ...] = ()) -> None:
        self.kind: Final = kind
        """What their ids begin with."""
        self.part: Final = part
        """What they share."""
        self.digests: dict[int, tuple[object, str]] = {}
        """Of the entries that were there last time, by the id of the object, which is kept for that."""

    @abstractmethod
    def id_parts(self, entry: Any) -> tuple[str, ...]:
        """What the id of an entry's record is made of."""

    @abstractmethod
    def index(self, entry: Any, credential_id: str) -> str:
        """The `auth_index` of an entry's record."""

    @abstractmethod
    def record(self, entry: Any, credential_id: str, short: str, mint: HandleMint) -> Credential:
        """The record of an entry."""


_Named: TypeAlias = tuple[int, _Keys, object, str, str]
"""An entry that makes a record: its position, what it shares with others, itself, its digest and its id."""


class ConfiguredKeys:
    """The records of the configuration's keys. Reading the next configuration makes only what changed anew."""

    def __init__(self, mint: HandleMint) -> None:
        self._mint: Final = mint
        self._known: dict[str, Configured] = {}
        self._lists: dict[str, _Keys] = {}

    def read(self, config: Config, *, now_s: float | None = None) -> dict[str, Credential]:
        """Every credential of the configuration by id: gemini, claude, codex, OpenAI-compatible, vertex."""
        known = self._known
        found: dict[str, Configured] = {}
        for _, keys, entry, short, credential_id in self._named(config):
            before = known.get(credential_id)
            if before is not None and before[:2] == (entry, keys.part):
                found[credential_id] = before
                continue
            record = keys.record(entry, credential_id, short, self._mint)
            created_s = before.credential.created_at_s if before is not None else now_s
            record = replace(record, created_at_s=created_s, updated_at_s=now_s)
            found[credential_id] = Configured(entry, keys.part, record)
        self._known = found
        return {credential_id: configured.credential for credential_id, configured in found.items()}

    def indexes(self, config: Config, section: str) -> dict[int, list[str]]:
        """The `auth_index` of every record of a section by position, without the records. Digests of entries that the
        configuration before had too are not computed again."""
        found: dict[int, list[str]] = {}
        for position, keys, entry, _, credential_id in self._named(config, section):
            found.setdefault(position, []).append(keys.index(entry, credential_id))
        return found

    def _named(self, config: Config, wanted: str = "") -> Iterator[_Named]:
        """Every entry that makes a record, of all sections or one, in the order of the records. To be walked to its
        end."""
        ids, lists = IdGenerator(), dict[str, _Keys]()
        for section, keys, entries in self._all(config, lists):
            if wanted and section != wanted:
                continue
            digests: dict[int, tuple[object, str]] = {}
            known, kind, next_id = keys.digests, keys.kind, ids.next
            for position, entry in entries:
                digest = known.get(id(entry))
                if digest is None or digest[0] is not entry:
                    digest = entry, short_digest(kind, *keys.id_parts(entry))
                digests[id(entry)] = digest
                short = digest[1]
                yield position, keys, entry, short, next_id(kind, short)
            keys.digests = digests
        self._lists = lists

    def place_in(self, config: Config, credential_id: str) -> Place | None:
        """Where a record of `config`, which need not have been read, comes from."""
        ids = IdGenerator()
        for section, keys, entries in self._all(config, {}):
            if not credential_id.startswith(f"{keys.kind}:"):
                continue
            for position, entry in entries:
                if ids.next(keys.kind, short_digest(keys.kind, *keys.id_parts(entry))) == credential_id:
                    return Place(section, position)
        return None

    def _all(
        self, config: Config, lists: dict[str, _Keys]
    ) -> Iterator[tuple[str, _Keys, Iterable[tuple[int, object]]]]:
        """The section, what its entries share, and each entry with its position. `lists` gets what is to live on."""
        yield self._of_provider("gemini-api-key", config.gemini_api_key, lists)
        yield self._of_provider("claude-api-key", config.claude_api_key, lists)
        yield self._of_provider("codex-api-key", config.codex_api_key, lists)
        for index, provider in enumerate(config.openai_compatibility):
            if provider.disabled:
                continue
            part, name = shared_part(provider), f"{COMPAT_FAMILY}/{provider.name}"
            before = self._lists.get(name)
            # The same object as last time where nothing changed: thousands of keys of one provider compare at once.
            keys = before if before is not None and before.part == part else _CompatKeys(provider, part)
            lists.setdefault(name, keys)
            yield COMPAT_FAMILY, keys, ((index, entry) for entry in provider.api_key_entries or (_KEYLESS,))
        yield self._of_provider("vertex-api-key", config.vertex_api_key, lists)

    def _of_provider(
        self, section: str, entries: Sequence[ProviderKey], lists: dict[str, _Keys]
    ) -> tuple[str, _Keys, Iterable[tuple[int, object]]]:
        keys = lists[section] = self._lists.get(section) or _ProviderKeys(PROVIDER_LISTS[section])
        used = ((it, key) for it, key in enumerate(entries) if key.api_key.strip() or key.base_url.strip())
        return section, keys, used


class _ProviderKeys(_Keys):
    """A list of keys of one provider."""

    def __init__(self, provider: str) -> None:
        super().__init__(f"{provider}:apikey")
        self._provider: Final = provider

    def id_parts(self, entry: ProviderKey) -> tuple[str, ...]:
        return _id_parts(self._provider, entry)

    def index(self, entry: ProviderKey, credential_id: str) -> str:
        return _index(self._provider, entry, credential_id)

    def record(self, entry: ProviderKey, credential_id: str, short: str, mint: HandleMint) -> Credential:
        return _of_key(self._provider, entry, credential_id, short, mint)


class _CompatKeys(_Keys):
    """The keys of an OpenAI-compatible provider."""

    def __init__(self, provider: CompatProvider, part: tuple[object, ...]) -> None:
        self._name: Final = provider.name.strip() or COMPAT_FAMILY
        super().__init__(f"{COMPAT_FAMILY}:{self._name.lower()}", part)
        self._provider: Final = provider
        self._extra: Final = extra_parts(prefix=provider.prefix, headers=provider.headers)

    @cached_property
    def _models(self) -> tuple[CredentialModel, ...]:
        """The one table of models of all the keys."""
        return compat_models(self._provider)

    def id_parts(self, entry: CompatKey) -> tuple[str, ...]:
        base_url = self._provider.base_url.strip()
        own = (base_url,) if entry is _KEYLESS else (entry.api_key, base_url, entry.proxy_url)
        return (*own, *self._extra)

    def index(self, entry: CompatKey, credential_id: str) -> str:
        return _compat_index(self._provider, entry, credential_id)

    def record(self, entry: CompatKey, credential_id: str, short: str, mint: HandleMint) -> Credential:
        return _of_compat_key(self._provider, self._name, entry, credential_id, short, mint, self._models)


def _id_parts(provider: str, key: ProviderKey) -> tuple[str, ...]:
    if provider in _KIND_WITH_PROXY:
        extra = extra_parts(prefix=key.prefix, headers=key.headers)
        return (key.api_key, key.base_url, key.proxy_url, *extra)
    return (key.api_key, key.base_url, *extra_parts(proxy_url=key.proxy_url, prefix=key.prefix, headers=key.headers))


def _index(provider: str, key: ProviderKey, credential_id: str) -> str:
    family = "" if provider == "vertex" else f"{provider}-api-key"
    base_url, api_key = key.base_url.strip(), key.api_key.strip()
    return auth_index(family, base_url=base_url, api_key=api_key, credential_id=credential_id)


def _compat_index(provider: CompatProvider, key: CompatKey, credential_id: str) -> str:
    base_url, api_key = provider.base_url.strip(), key.api_key.strip()
    return auth_index(COMPAT_FAMILY, base_url=base_url, api_key=api_key, credential_id=credential_id)


def _of_key(provider: str, key: ProviderKey, credential_id: str, short: str, mint: HandleMint) -> Credential:
    api_key, base_url = key.api_key.strip(), key.base_url.strip()
    reached = base_url or DEFAULT_BASE_URL.get(provider, "")
    header = SECRET_HEADER.get(provider)
    source = f"config:{'vertex-apikey' if provider == 'vertex' else provider}[{short}]"
    excluded = folded_patterns(key.excluded_models)
    return Credential(
        id=credential_id,
        provider=provider,
        label=f"{provider}-apikey",
        handle=mint.handle(credential_id),
        auth_index=_index(provider, key, credential_id),
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
        auth_index=_compat_index(provider, key, credential_id),
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
