"""Credential records: what the host knows of every upstream credential. Secrets stay in `Secret`."""

import hashlib
import hmac
import secrets as entropy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, ProviderKey
from host.credentials.ids import COMPAT_FAMILY, IdGenerator, auth_index, compat_provider_key
from host.credentials.secret import Secret
from pluginabi.immutable import FrozenDict

SecretPlace: TypeAlias = Literal["none", "bearer", "header", "query"]

DEFAULT_BASE_URL: Final[Mapping[str, str]] = {
    "claude": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
DEFAULT_MODELS: Final[Mapping[str, tuple[str, ...]]] = {
    "claude": ("claude-*",),
    "gemini": ("gemini-*", "gemma-*", "learnlm-*"),
}
"""A key without a list of models serves its vendor's names, new ones included."""
_SECRET_HEADER: Final[Mapping[str, str]] = {"claude": "x-api-key", "gemini": "x-goog-api-key"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialModel:
    """A model of one credential: the name clients use and the upstream's."""

    client: str
    upstream: str
    image: bool = False
    thinking: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credential:
    """One upstream credential. `attributes` may be shown to its provider plugin and never hold a secret."""

    id: str
    provider: str
    label: str
    source_kind: Literal["config", "plugin"] = "config"
    """`plugin`: models that a plugin's executor serves on its own; there is nothing to attach."""
    handle: str = ""
    """What plugins name it by in `host.http.*`: not guessable, valid for the life of this host process."""
    auth_index: str = ""
    attributes: Mapping[str, str] = FrozenDict()
    secret: Secret | None = None
    secret_place: SecretPlace = "none"
    secret_name: str = ""
    """Header or query parameter that takes the secret."""
    headers: tuple[tuple[str, str], ...] = ()
    """Configured headers, lower-cased names; attached together with the secret, never shown to plugins."""
    proxy_url: str = ""
    base_url: str = ""
    priority: int = 0
    weight: int = 1
    prefix: str = ""
    models: tuple[CredentialModel, ...] = ()
    """Empty: what the provider's plugin says it serves."""
    model_patterns: tuple[str, ...] = ()
    """Names it serves when neither its models nor its provider's are listed anywhere (lower case, `*` is any run)."""
    excluded_models: tuple[str, ...] = ()
    owned_by: str = ""
    disable_cooling: bool = False
    disabled: bool = False
    unsupported_formats: frozenset[str] = frozenset()
    """Protocols that the provider's plugin speaks but this upstream does not."""

    def upstream_names(self, base: str, suffix: str | None = None) -> tuple[str, ...]:
        """The upstream's names for a client model without prefix: several when its alias is a pool (in config order).

        A suffix written into the configured name wins over the client's; a name nobody mapped stays as it is.
        """
        folded = base.strip().lower()
        found = [model.upstream for model in self.models if model.client.lower() == folded]
        if self.attributes.get("compat_name") is None:
            found = found[:1]
        names = tuple(dict.fromkeys(found)) or (base,)
        return tuple(with_suffix(name, suffix) for name in names)


def with_suffix(name: str, suffix: str | None) -> str:
    """`name(suffix)` unless `name` brings its own suffix or there is none to add."""
    return name if not suffix or name.endswith(")") else f"{name}({suffix})"


class HandleMint:
    """Makes credential handles: stable while the host runs, meaningless to anybody else."""

    def __init__(self) -> None:
        self._key = entropy.token_bytes(32)

    def handle(self, credential_id: str) -> str:
        """The handle of a credential."""
        return "cred-" + hmac.new(self._key, credential_id.encode(), hashlib.sha256).hexdigest()[:32]


def credentials_of_config(config: Config, mint: HandleMint) -> tuple[Credential, ...]:
    """Every credential of the configuration, in the order gemini, claude, OpenAI-compatible."""
    ids = IdGenerator()
    return (
        *_keys("gemini", config.gemini_api_key, ids, mint),
        *_keys("claude", config.claude_api_key, ids, mint),
        *(found for provider in config.openai_compatibility for found in _compat(provider, ids, mint)),
    )


def _keys(provider: str, keys: Sequence[ProviderKey], ids: IdGenerator, mint: HandleMint) -> Iterator[Credential]:
    for key in keys:
        api_key, base_url = key.api_key.strip(), key.base_url.strip()
        if not api_key:
            continue
        credential_id, short = ids.next(f"{provider}:apikey", api_key, base_url)
        reached = base_url or DEFAULT_BASE_URL[provider]
        yield Credential(
            id=credential_id,
            provider=provider,
            label=f"{provider}-apikey",
            handle=mint.handle(credential_id),
            auth_index=auth_index(
                f"{provider}-api-key", base_url=base_url, api_key=api_key, credential_id=credential_id
            ),
            attributes=_attributes(
                base_url=reached, auth_kind="apikey", source=f"config:{provider}[{short}]", priority=key.priority
            ),
            secret=Secret(api_key),
            secret_place="header",
            secret_name=_SECRET_HEADER[provider],
            headers=_headers(key.headers),
            proxy_url=key.proxy_url.strip(),
            base_url=reached,
            priority=key.priority,
            weight=1 if key.weight is None else key.weight,
            prefix=_prefix(key.prefix),
            models=_models(key.models),
            model_patterns=DEFAULT_MODELS[provider],
            excluded_models=_patterns(key.excluded_models),
            owned_by=provider,
            disable_cooling=key.disable_cooling,
        )


def _compat(provider: CompatProvider, ids: IdGenerator, mint: HandleMint) -> Iterator[Credential]:
    if provider.disabled:
        return
    name = provider.name.strip() or COMPAT_FAMILY
    base_url = provider.base_url.strip()
    kind = f"{COMPAT_FAMILY}:{name.lower()}"
    for key in provider.api_key_entries or (None,):
        parts = (key.api_key, base_url, key.proxy_url) if key is not None else (base_url,)
        credential_id, short = ids.next(kind, *parts)
        yield _compat_key(provider, name, key or CompatKey(), credential_id, short, mint)


def _compat_key(
    provider: CompatProvider, name: str, key: CompatKey, credential_id: str, short: str, mint: HandleMint
) -> Credential:
    api_key, base_url = key.api_key.strip(), provider.base_url.strip()
    extra = {"responses": "true"} if provider.responses else {}
    return Credential(
        id=credential_id,
        provider=compat_provider_key(name),
        label=name,
        handle=mint.handle(credential_id),
        auth_index=auth_index(COMPAT_FAMILY, base_url=base_url, api_key=api_key, credential_id=credential_id),
        attributes=_attributes(
            base_url=base_url,
            compat_name=name,
            source=f"config:{name.lower()}[{short}]",
            priority=provider.priority,
            **extra,
        ),
        secret=Secret(api_key) if api_key else None,
        secret_place="bearer" if api_key else "none",
        secret_name="authorization" if api_key else "",
        headers=_headers(provider.headers),
        proxy_url=key.proxy_url.strip(),
        base_url=base_url,
        priority=provider.priority,
        weight=1 if key.weight is None else key.weight,
        prefix=_prefix(provider.prefix),
        models=_models(provider.models),
        owned_by=name,
        disable_cooling=provider.disable_cooling,
        unsupported_formats=frozenset() if provider.responses else frozenset({"openai-response"}),
    )


def _attributes(*, priority: int, **fields: str) -> Mapping[str, str]:
    found = {name: value for name, value in fields.items() if value}
    if priority:
        found["priority"] = str(priority)
    return FrozenDict(found)


def _headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.strip().lower(), value) for name, value in headers.items() if name.strip() and value)


def _prefix(prefix: str) -> str:
    """One path segment; anything else is no prefix."""
    trimmed = prefix.strip().strip("/")
    return "" if "/" in trimmed else trimmed


def _models(entries: Sequence[ModelEntry]) -> tuple[CredentialModel, ...]:
    return tuple(
        CredentialModel(
            client=entry.alias.strip() or entry.name.strip(),
            upstream=entry.name.strip(),
            image=entry.image,
            thinking=entry.thinking,
        )
        for entry in entries
        if entry.name.strip()
    )


def _patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({pattern.strip().lower() for pattern in patterns if pattern.strip()}))
