"""The one reader of credential files: a JSON document becomes a record, or says why not (spec credentials 1.4, 1.7)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from host.config.model import CompatProvider, Config
from host.credentials.classify import ErrorRule
from host.credentials.configured import (
    compat_models,
    folded_headers,
    folded_patterns,
    modalities,
    path_segment,
    positive,
)
from host.credentials.ids import compat_provider_key, file_id, file_index
from host.credentials.records import (
    DEFAULT_BASE_URL,
    DEFAULT_MODELS,
    NEEDS_SECRET,
    SECRET_HEADER,
    AliasRule,
    Credential,
    CredentialModel,
    HandleMint,
    SecretPlace,
    exclusion_attributes,
    visible_attributes,
)
from host.credentials.rules import error_rules, rules_by_provider, rules_of_document
from host.credentials.secret import Secret, SecretDocument
from host.credentials.values import (
    access_token_of,
    at_path,
    bool_like,
    canonical,
    expiry_of,
    int_like,
    last_refresh_of,
    refresh_interval_of,
    refresh_token_of,
    text,
)
from host.upstream import InvalidRequest, check_base_url, parse_proxy

MAX_WEIGHT: Final = 1_000_000
UNKNOWN_PROVIDER: Final = "unknown"
_PLACES: Final = ("none", "bearer", "header", "query")


class InvalidCredential(Exception):
    """A credential file cannot be used; the message says which member and why, and holds no secret."""

    http_status = 400
    """For whoever has sent it."""


class PluginAway(InvalidCredential):
    """Whether a file can be used is not known: the plugin that knows cannot be asked."""

    def __init__(self, message: str, *, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseSettings:
    """What of the configuration concerns credential files."""

    auth_dir: str
    subfolders: bool = False
    """Whether files below it count too."""
    excluded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """`oauth-excluded-models`: provider -> patterns."""
    compat: Mapping[str, CompatProvider] = field(default_factory=dict)
    """Provider key -> the OpenAI-compatible provider of the configuration with that key."""
    rules: Mapping[str, Sequence[ErrorRule]] = field(default_factory=dict)
    """`oauth-request-scoped-errors`: provider -> rules."""

    def name_of(self, path: str) -> str:
        """What a file is called: its name, or below the directory its path in it."""
        return file_id(path, self.auth_dir) if self.subfolders else os.path.basename(path)


def parse_settings(config: Config, auth_dir: str) -> ParseSettings:
    """The settings of one configuration."""
    compat: dict[str, CompatProvider] = {}
    for provider in config.openai_compatibility:
        compat.setdefault(compat_provider_key(provider.name), provider)
    excluded = {name.strip().lower(): folded_patterns(found) for name, found in config.oauth_excluded_models.items()}
    return ParseSettings(
        auth_dir=auth_dir,
        subfolders=config.auth_dir_subfolders,
        excluded=excluded,
        compat=compat,
        rules=rules_by_provider(config),
    )


def provider_of_document(document: Mapping[str, Any]) -> str:
    """The provider that a document names itself; empty when it does not."""
    return text(document.get("type")).lower()


def record_of_file(
    document: Mapping[str, Any], path: str, settings: ParseSettings, mint: HandleMint, *, now_s: float
) -> Credential:
    """The record of a file that no plugin claims. Raises InvalidCredential."""
    provider = provider_of_document(document)
    credential_id = file_id(path, settings.auth_dir)
    return record_of_document(
        document,
        settings,
        identity=Identity(
            id=credential_id,
            provider=provider,
            handle=mint.handle(credential_id),
            auth_index=file_index(provider, path),
            path=path,
        ),
        now_s=now_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a record is, apart from what its document says."""

    id: str
    provider: str
    handle: str
    auth_index: str
    path: str
    source_kind: Literal["file", "virtual"] = "file"
    auth_plugin: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What a plugin added and the document does not say; without secrets."""


def record_of_document(
    document: Mapping[str, Any], settings: ParseSettings, *, identity: Identity, now_s: float
) -> Credential:
    """The record of a document. Raises InvalidCredential."""
    document = canonical(document)
    provider = identity.provider
    compat = settings.compat.get(provider)
    base_url = _base_url(document, provider, compat)
    secret, place, name, kind = _secret(document, identity.attributes, provider)
    excluded = folded_patterns([*texts(document.get("excluded_models")), *settings.excluded.get(provider, ())])
    email, project = text(document.get("email")), text(document.get("project_id"))
    responses = bool_like(document.get("responses", compat.responses if compat else False)) is True
    headers = _headers(document, compat)
    is_disabled = bool_like(document.get("disabled")) is True
    problem = _problem(document, identity, secret, base_url=base_url, headers=headers)
    return Credential(
        id=identity.id,
        provider=provider or UNKNOWN_PROVIDER,
        label=text(document.get("label")) or email or project or provider or os.path.basename(identity.path),
        source_kind=identity.source_kind,
        handle=identity.handle,
        auth_index=identity.auth_index,
        attributes=_attributes(document, identity, kind, base_url, compat, responses, excluded),
        auth_kind=kind,
        secret=secret,
        secret_place=place,
        secret_name=name,
        headers=headers,
        proxy_url=_proxy(document),
        base_url=base_url,
        priority=_priority(document),
        weight=_weight(document),
        prefix=path_segment(text(document.get("prefix"))),
        models=_models(document) or (compat_models(compat) if compat else ()),
        model_patterns=DEFAULT_MODELS.get(provider, ()),
        model_aliases=_aliases(document),
        excluded_models=excluded,
        owned_by=compat.name if compat else provider,
        disable_cooling=bool_like(document.get("disable_cooling")),
        request_retry=_retry(document),
        error_rules=_error_rules(document, settings, provider),
        websockets=bool_like(document.get("websockets")),
        disabled=is_disabled,
        status="disabled" if is_disabled else "error" if problem else "active",
        status_message=problem,
        unsupported_formats=frozenset({"openai-response"}) if compat and not responses else frozenset(),
        path=identity.path,
        file_name=settings.name_of(identity.path),
        auth_plugin=identity.auth_plugin,
        metadata=SecretDocument(document),
        note=text(document.get("note")),
        email=email,
        project_id=project,
        refresh_interval_s=refresh_interval_of(document),
        expires_at_s=expiry_of(document),
        created_at_s=now_s,
        updated_at_s=now_s,
        last_refreshed_at_s=last_refresh_of(document),
    )


def _problem(
    document: Mapping[str, Any],
    identity: Identity,
    secret: Secret | None,
    *,
    base_url: str,
    headers: Sequence[tuple[str, str]],
) -> str:
    """What is missing for the record to be of any use; empty when nothing is, as far as the host can tell.

    A plugin knows better what is in the files that it parses, and so does whoever runs an upstream of his own.
    """
    provider = identity.provider
    if not provider:
        return "the file has no `type`"
    if provider not in NEEDS_SECRET or identity.auth_plugin or base_url != DEFAULT_BASE_URL[provider]:
        return ""
    if secret is not None or refresh_token_of(document):
        return ""
    if not {name.lower() for name, _ in headers}.isdisjoint({"authorization", "cookie", SECRET_HEADER[provider]}):
        return ""
    return "the file has neither an `api_key` nor an `access_token` nor a `refresh_token`"


def _attributes(
    document: Mapping[str, Any],
    identity: Identity,
    kind: str,
    base_url: str,
    compat: CompatProvider | None,
    responses: bool,
    excluded: Sequence[str],
) -> Mapping[str, str]:
    """What plugins may see: what a plugin added itself, and what the host has decided."""
    websockets = bool_like(document.get("websockets"))
    decided = {
        "base_url": base_url,
        "auth_kind": kind,
        "compat_name": compat.name if compat else "",
        "provider_key": identity.provider if compat else "",
        "responses": "true" if responses and identity.provider.startswith("openai-compat") else "",
        "path": identity.path,
        "source": identity.path,
        "email": text(document.get("email")),
        "project_id": text(document.get("project_id")),
        "websockets": "" if websockets is None else str(websockets).lower(),
        "plan_type": text(document.get("plan_type")) or identity.attributes.get("plan_type", ""),
        **exclusion_attributes(excluded),
    }
    return visible_attributes(priority=_priority(document), **{**identity.attributes, **decided})


def texts(value: Any) -> tuple[str, ...]:
    """The texts of a list; of one text with commas its parts."""
    if isinstance(value, str):
        value = value.split(",")
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, (list, tuple)) else ()


def _base_url(document: Mapping[str, Any], provider: str, compat: CompatProvider | None) -> str:
    own = text(document.get("base_url"))
    try:
        if own:
            check_base_url(own)
    except InvalidRequest as error:
        raise InvalidCredential(f"`base_url`: {error}; write it like https://api.example.com/v1") from None
    return (own or (compat.base_url if compat else "") or DEFAULT_BASE_URL.get(provider, "")).rstrip("/")


def _secret(
    document: Mapping[str, Any], given: Mapping[str, str], provider: str
) -> tuple[Secret | None, SecretPlace, str, Literal["", "apikey", "oauth"]]:
    """The secret, where it goes, under which name, and what kind it is.

    A plugin's attributes say it best (`secret_field`, `secret_place`, `secret_name`). Otherwise `api_key` goes where
    the provider's keys go, and an access token is a bearer (RFC 6750 section 2.1), whoever the provider is.
    """
    header = SECRET_HEADER.get(provider)
    place: SecretPlace
    kind: Literal["", "apikey", "oauth"]
    if field_path := text(given.get("secret_field")):
        found = text(at_path(document, field_path))
        place, name, kind = "bearer", "authorization", "oauth"
    elif found := text(document.get("api_key")):
        place, name, kind = ("header", header, "apikey") if header else ("bearer", "authorization", "apikey")
    else:
        found, place, name, kind = access_token_of(document), "bearer", "authorization", "oauth"
    if wanted := text(given.get("secret_place")).lower():
        if wanted not in _PLACES:
            raise InvalidCredential(f"`secret_place` is one of {', '.join(_PLACES)}, not {wanted!r}")
        place = cast(SecretPlace, wanted)
        name = "authorization" if place == "bearer" else ""
    if place in ("header", "query"):
        name = text(given.get("secret_name")) or name
        if not name:
            raise InvalidCredential(f"`secret_place` {place} needs a `secret_name`")
        name = name.lower() if place == "header" else name
    if not found or place == "none":
        return None, "none", "", kind if found else ""
    return Secret(found), place, name, kind


def _headers(document: Mapping[str, Any], compat: CompatProvider | None) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = dict(folded_headers(compat.headers)) if compat else {}
    own = document.get("headers")
    if isinstance(own, Mapping):
        found.update(folded_headers({name: value for name, value in own.items() if isinstance(value, str)}))
    return tuple(found.items())


def _proxy(document: Mapping[str, Any]) -> str:
    """The proxy as written. An unknown kind is an error: it must never become a direct connection."""
    written = text(document.get("proxy_url"))
    try:
        parse_proxy(written or None)
    except InvalidRequest as error:
        raise InvalidCredential(f"`proxy_url`: {error}") from None
    return written


def _priority(document: Mapping[str, Any]) -> int:
    return int_like(document.get("priority")) or 0


def _weight(document: Mapping[str, Any]) -> int:
    value = document.get("weight")
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value > MAX_WEIGHT:
        raise InvalidCredential(f"`weight` is a whole number up to {MAX_WEIGHT}")
    return value


def _retry(document: Mapping[str, Any]) -> int | None:
    value = int_like(document.get("request_retry"))
    return value if value is not None and value >= 0 else None


def _error_rules(document: Mapping[str, Any], settings: ParseSettings, provider: str) -> tuple[ErrorRule, ...]:
    """The file's own rules, then those of its provider: the first that matches counts."""
    try:
        own = rules_of_document(document.get("request_scoped_errors"))
    except ValueError as error:
        raise InvalidCredential(str(error)) from None
    compat = settings.compat.get(provider)
    common = error_rules(compat.request_scoped_errors) if compat is not None else ()
    return (*own, *settings.rules.get(provider, ()), *common)


def _models(document: Mapping[str, Any]) -> tuple[CredentialModel, ...]:
    """`models`: names, or `{name, alias}` as in the configuration."""
    found = []
    listed = document.get("models")
    for item in listed if isinstance(listed, (list, tuple)) else ():
        entry = item if isinstance(item, Mapping) else {"name": item}
        if name := text(entry.get("name")):
            found.append(_model(name, entry))
    return tuple(found)


def _model(name: str, entry: Mapping[Any, Any]) -> CredentialModel:
    """One item of `models`, its members spelled with underscores or dashes."""
    given = {str(key).replace("-", "_"): value for key, value in entry.items()}
    thinking = given.get("thinking")
    return CredentialModel(
        client=text(given.get("alias")) or name,
        upstream=name,
        display_name=text(given.get("display_name")),
        image=bool_like(given.get("image")) is True,
        thinking=thinking if isinstance(thinking, Mapping) else None,
        max_context_length=positive(int_like(given.get("max_context_length"))),
        input_modalities=_words(given.get("input_modalities")),
        output_modalities=_words(given.get("output_modalities")),
        force_mapping=bool_like(given.get("force_mapping")) is True,
    )


def _words(value: Any) -> tuple[str, ...]:
    return modalities(value) if isinstance(value, (list, tuple)) else ()


def _aliases(document: Mapping[str, Any]) -> tuple[AliasRule, ...]:
    """The file's own aliases, each alias once; an alias that is its own name says nothing."""
    found: dict[str, AliasRule] = {}
    listed = document.get("model_aliases")
    for item in listed if isinstance(listed, (list, tuple)) else ():
        if not isinstance(item, Mapping):
            continue
        name, alias = text(item.get("name")), text(item.get("alias"))
        if name and alias and name.lower() != alias.lower():
            rule = AliasRule(
                name=name,
                alias=alias,
                fork=bool_like(item.get("fork")) is True,
                display_name=text(item.get("display_name", item.get("display-name"))),
                force_mapping=bool_like(item.get("force_mapping", item.get("force-mapping"))) is True,
            )
            found.setdefault(alias.lower(), rule)
    return tuple(found.values())
