"""The credential record: what the host knows of an upstream credential, wherever it comes from.

Configured keys, credential files and what a plugin made of a file all become the same immutable record. How well one
does (cooldowns, counters) is kept apart from it, by id.
"""

import hashlib
import hmac
import secrets as entropy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias

import msgspec

from host.credentials.classify import ErrorRule
from host.credentials.secret import EMPTY_DOCUMENT, Secret, SecretDocument
from pluginabi.immutable import FrozenDict

SecretPlace: TypeAlias = Literal["none", "bearer", "header", "query"]
SourceKind: TypeAlias = Literal["config", "file", "virtual", "plugin"]
AuthKind: TypeAlias = Literal["", "apikey", "oauth"]
Status: TypeAlias = Literal["active", "disabled", "error"]

DEFAULT_BASE_URL: Final[Mapping[str, str]] = {
    "claude": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "vertex": "https://aiplatform.googleapis.com",
}
DEFAULT_MODELS: Final[Mapping[str, tuple[str, ...]]] = {
    "claude": ("claude-*",),
    "gemini": ("gemini-*", "gemma-*", "learnlm-*"),
}
"""A credential without a list of models serves its vendor's names, new ones included."""
SECRET_HEADER: Final[Mapping[str, str]] = {
    "claude": "x-api-key",
    "gemini": "x-goog-api-key",
    "vertex": "x-goog-api-key",
}
"""Where a provider's API key goes; a bearer token everywhere else, and every access token everywhere."""

NEEDS_SECRET: Final = frozenset({"claude", "gemini"})
"""Providers whose own address answers nobody without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialModel:
    """A model of one credential: the name clients use and the upstream's."""

    client: str
    upstream: str
    display_name: str = ""
    image: bool = False
    thinking: Mapping[str, object] | None = None
    max_context_length: int | None = None
    """Tokens."""
    input_modalities: tuple[str, ...] = ()
    output_modalities: tuple[str, ...] = ()
    force_mapping: bool = False
    """Answers name the model as the client did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRule:
    """An item of a credential file's `model_aliases`: the upstream's `name` under an `alias`; `fork` offers both."""

    name: str
    alias: str
    fork: bool = False
    display_name: str = ""
    force_mapping: bool = False
    """Answers name the model as the client did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshError:
    """Why the last token refresh failed. Kept apart from errors of requests, which say nothing about the next refresh.

    With `http_status` 401 there is no further attempt until the record changes.
    """

    message: str
    code: str = ""
    http_status: int = 0
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credential:
    """One upstream credential. `attributes` may be shown to its provider plugin and never hold a secret.

    Times are seconds of the wall clock (Unix), None when unknown.
    """

    id: str
    provider: str
    label: str
    source_kind: SourceKind = "config"
    """`config`: a key of the configuration. `file`: a credential file. `virtual`: one of several that a plugin made of
    one file. `plugin`: models that a plugin's executor serves on its own; there is nothing to attach."""
    handle: str = ""
    """What plugins name it by in `host.http.*`: not guessable, valid for the life of this host process."""
    auth_index: str = ""
    """What operators name it by: 16 hex digits, the same after a restart."""
    attributes: Mapping[str, str] = FrozenDict()
    auth_kind: AuthKind = ""
    secret: Secret | None = None
    secret_place: SecretPlace = "none"
    secret_name: str = ""
    """Header or query parameter that takes the secret."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Configured headers, lower-cased names; attached together with the secret, never shown to plugins."""
    proxy_url: str = ""
    base_url: str = ""
    priority: int = 0
    weight: int = 1
    """0 or less: left out while the strategy goes by weight."""
    prefix: str = ""
    models: tuple[CredentialModel, ...] = ()
    """Empty: what the provider's plugin says it serves."""
    model_patterns: tuple[str, ...] = ()
    """Names it serves when neither its models nor its provider's are listed anywhere (lower case, `*` is any run)."""
    model_aliases: tuple[AliasRule, ...] = ()
    """Of a credential file."""
    excluded_models: tuple[str, ...] = ()
    owned_by: str = ""
    disable_cooling: bool | None = None
    """None: as the configuration says; False: cools down even when the configuration says that nobody does."""
    request_retry: int | None = None
    """None: as the configuration says."""
    error_rules: tuple[ErrorRule, ...] = ()
    """What the operator says about errors of its upstream."""
    websockets: bool | None = None
    disabled: bool = False
    status: Status = "active"
    status_message: str = ""
    unsupported_formats: frozenset[str] = frozenset()
    """Protocols that the provider's plugin speaks but this upstream does not."""

    path: str = ""
    """Absolute path of the file it comes from."""
    file_name: str = ""
    auth_plugin: str = ""
    """The plugin that made this record of the file."""
    metadata: SecretDocument = EMPTY_DOCUMENT
    """The whole content of the file as it is in effect, refreshed tokens included."""
    note: str = ""
    email: str = ""
    project_id: str = ""
    refresh_interval_s: float | None = None
    expires_at_s: float | None = None
    created_at_s: float | None = None
    updated_at_s: float | None = None
    last_refreshed_at_s: float | None = None
    next_refresh_at_s: float | None = None
    """Not to be refreshed before."""
    refresh_error: RefreshError | None = None

    @property
    def is_off(self) -> bool:
        """Whether an operator has switched it off: a configured key has no such member and excludes every model."""
        return self.disabled or "*" in self.excluded_models

    @property
    def is_unusable(self) -> bool:
        """Whether its file lacks what nothing works without; `status_message` says what. It is never picked."""
        return self.status == "error"

    @property
    def is_free_plan(self) -> bool:
        """Whether its account pays nothing, and therefore may not do everything that the provider offers."""
        return self.attributes.get("plan_type", "").strip().lower() == "free"

    @property
    def account(self) -> tuple[str, str]:
        """Kind and name of the account: `oauth` and its e-mail, `api_key` and nothing (it is secret), or nothing."""
        if self.email:
            return "oauth", self.email
        return ("api_key", "") if self.auth_kind == "apikey" and self.secret is not None else ("", "")

    def routes_like(self, other: "Credential") -> bool:
        """Whether nothing that selection or the model lists look at differs: only secrets, times and notes may."""
        return bool(_ROUTING(self) == _ROUTING(other))

    def same_as(self, other: "Credential") -> bool:
        """Whether nothing differs but when it was noticed."""
        return bool(_COMPARED(self) == _COMPARED(other))


_UNCOMPARED: Final = frozenset({"created_at_s", "updated_at_s"})
_UNROUTED: Final = _UNCOMPARED | {
    *("secret", "metadata", "note", "headers", "proxy_url", "auth_plugin", "status_message"),
    *("refresh_interval_s", "expires_at_s", "last_refreshed_at_s", "next_refresh_at_s", "refresh_error"),
}
_COMPARED: Final = attrgetter(*(it.name for it in fields(Credential) if it.name not in _UNCOMPARED))
_ROUTING: Final = attrgetter(*(it.name for it in fields(Credential) if it.name not in _UNROUTED))


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialChange:
    """What one change of the records did, by id. An id stands in exactly one of the first four."""

    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    """Something that selection or the model lists look at differs."""
    touched: frozenset[str] = frozenset()
    """Only secrets, times or notes differ: no list of models and no plan has to be made anew."""
    reset: frozenset[str] = frozenset()
    """Of all these: whose health starts from scratch (switched off or on, removed, come back, another API key)."""
    refreshed: frozenset[str] = frozenset()
    """Of all these: whose token is another one, which lifts what a 401 has blocked."""

    @property
    def ids(self) -> frozenset[str]:
        return self.added | self.removed | self.changed | self.touched

    @property
    def routing(self) -> bool:
        """Whether anything has to be rebuilt at all."""
        return bool(self.added or self.removed or self.changed)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.touched)


def with_suffix(name: str, suffix: str | None) -> str:
    """`name(suffix)` unless `name` brings its own suffix or there is none to add."""
    return name if not suffix or name.endswith(")") else f"{name}({suffix})"


def visible_attributes(*, priority: int = 0, **values: str) -> Mapping[str, str]:
    """Attributes without the empty ones; the priority only when there is one."""
    found: dict[str, Any] = {name: value for name, value in values.items() if value}
    if priority:
        found["priority"] = str(priority)
    return FrozenDict(found)


def exclusion_attributes(patterns: Sequence[str]) -> dict[str, str]:
    """How plugins see which models are excluded: the patterns, and a digest of them; nothing when there are none."""
    if not patterns:
        return {}
    digest = hashlib.sha256(msgspec.json.encode(patterns)).hexdigest()
    return {"excluded_models": ",".join(patterns), "excluded_models_hash": digest}


@dataclass(slots=True)
class HandleMint:
    """Makes credential handles: stable while the host runs, meaningless to anybody else."""

    _key: bytes = field(default_factory=lambda: entropy.token_bytes(32), repr=False)

    def handle(self, credential_id: str) -> str:
        """The handle of a credential."""
        return "cred-" + hmac.digest(self._key, credential_id.encode(), hashlib.sha256).hex()[:32]
