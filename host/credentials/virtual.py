"""Records that plugins make: of a file, one or several; of a refresh or a login (spec plugin-abi 7.2, 7.3, 7.5)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from host.credentials.ids import file_id, file_index, seeded_index, virtual_seed
from host.credentials.parse import Identity, InvalidCredential, ParseSettings, record_of_document
from host.credentials.records import Credential, HandleMint
from host.credentials.values import bool_like, canonical, rfc3339, time_like
from pluginabi.payloads.common import CredentialRecord

OPERATOR_MEMBERS: Final = frozenset(
    {
        *("prefix", "proxy_url", "priority", "weight", "note", "headers", "excluded_models", "model_aliases", "models"),
        *("disable_cooling", "request_retry", "disabled", "websockets", "request_scoped_errors"),
    }
)
"""Members of a file that are the operator's: they hold for every record of it, and a new login keeps them."""
KEPT_MEMBERS: Final = OPERATOR_MEMBERS | {
    *("label", "refresh_interval", "refresh_interval_seconds", "refreshInterval", "refreshIntervalSeconds"),
    "refresh_lead_seconds",
}
"""Members that a new login leaves as they are in the file."""
_MEMBER_ATTRIBUTES: Final = frozenset(
    {
        *("api_key", "access_token", "refresh_token", "id_token", "client_secret", "secret"),
        *("base_url", "responses", "email", "project_id", "websockets", "priority", "note", "excluded_models"),
        *("refresh_interval_seconds", "refresh_interval", "refreshIntervalSeconds", "refreshInterval"),
    }
)
"""Attributes that mean the same as the file's member of that name; the secret ones would be shown otherwise."""
_DECIDED_ATTRIBUTES: Final = frozenset(
    {
        "auth_kind",
        "compat_name",
        "provider_key",
        "path",
        "source",
        "excluded_models_hash",
        "plugin_virtual",
        "virtual_source",
    }
)
"""Attributes that the host makes, whatever a plugin says."""
_TOLD_FIELDS: Final = ("label", "prefix", "proxy_url")
_HEADER_ATTRIBUTE: Final = "header:"


def records_of_plugin(
    records: Sequence[CredentialRecord],
    *,
    plugin_id: str,
    provider: str,
    document: Mapping[str, Any],
    path: str,
    settings: ParseSettings,
    mint: HandleMint,
    now_s: float,
) -> tuple[Credential, ...]:
    """The records of a file that a plugin claimed: an ordinary one, or several virtual ones.

    `provider` is whom a record without a provider belongs to. Raises InvalidCredential when one of them cannot be used:
    then none is.
    """
    document = canonical(document)
    several = len(records) > 1
    found = []
    for ordinal, record in enumerate(records):
        identity = _identity(record, ordinal if several else None, plugin_id, provider, path, settings, mint)
        operators = {name: value for name, value in document.items() if name in OPERATOR_MEMBERS}
        base = {} if several else document
        members = {**base, **given_members(record), **operators, "type": identity.provider}
        if bool_like(document.get("disabled")) or record.disabled:
            members["disabled"] = True
        made = record_of_document(members, settings, identity=identity, now_s=now_s)
        found.append(replace(made, next_refresh_at_s=time_like(record.next_refresh_after)))
    ids = [made.id for made in found]
    if len(set(ids)) != len(ids):
        raise InvalidCredential(f"plugin {plugin_id!r} gave two records of the file the same id")
    return tuple(found)


def _identity(
    record: CredentialRecord,
    ordinal: int | None,
    plugin_id: str,
    provider: str,
    path: str,
    settings: ParseSettings,
    mint: HandleMint,
) -> Identity:
    belongs_to = record.provider.strip().lower() or provider.strip().lower()
    if not belongs_to:
        raise InvalidCredential(f"plugin {plugin_id!r} named no provider for a record of the file")
    inside = file_id(path, settings.auth_dir)
    given = record.id.strip()
    if ordinal is None:
        credential_id, index, attributes = given or inside, file_index(belongs_to, path), own_attributes(record)
    else:
        seed = virtual_seed(belongs_to, path, given or record.file_name.strip(), ordinal)
        credential_id, index = given or f"{inside}#{ordinal}", seeded_index(seed)
        attributes = {**own_attributes(record), "plugin_virtual": "true", "virtual_source": path}
    return Identity(
        id=credential_id,
        provider=belongs_to,
        handle=mint.handle(credential_id),
        auth_index=index,
        path=path,
        source_kind="file" if ordinal is None else "virtual",
        auth_plugin=plugin_id,
        attributes=attributes,
    )


def given_members(record: CredentialRecord) -> dict[str, Any]:
    """Everything a record says, as the members of a file. Raises InvalidCredential."""
    members = storage_members(record)
    members.update({name: value for name, value in record.attributes.items() if name in _MEMBER_ATTRIBUTES})
    headers = {
        name.removeprefix(_HEADER_ATTRIBUTE): value
        for name, value in record.attributes.items()
        if name.startswith(_HEADER_ATTRIBUTE)
    }
    if headers:
        known = members.get("headers")
        members["headers"] = {**(known if isinstance(known, Mapping) else {}), **headers}
    fields = {"label": record.label.strip(), "prefix": record.prefix.strip(), "proxy_url": record.proxy_url.strip()}
    members.update({name: value for name, value in fields.items() if value})
    return members


def own_attributes(record: CredentialRecord) -> dict[str, str]:
    """The attributes that are the plugin's own."""
    return {
        name: value
        for name, value in record.attributes.items()
        if name not in _MEMBER_ATTRIBUTES and name not in _DECIDED_ATTRIBUTES and not name.startswith(_HEADER_ATTRIBUTE)
    }


def storage_members(record: CredentialRecord) -> dict[str, Any]:
    """Storage overlaid with metadata. Raises InvalidCredential when storage is no JSON object."""
    members: dict[str, Any] = {}
    if record.storage is not UNSET and bytes(record.storage) not in (b"", b"null"):
        try:
            members = msgspec.json.decode(record.storage, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidCredential(f"the storage of a record is no JSON object: {error}") from None
    return {**members, **record.metadata}


def stored_document(record: CredentialRecord, *, provider: str = "") -> dict[str, Any]:
    """What is stored for a new record of a plugin (vector B6). Raises InvalidCredential when there is nothing to store
    (B8)."""
    belongs_to = record.provider.strip().lower() or provider.strip().lower()
    members = given_members(record)
    if not members and not belongs_to:
        raise InvalidCredential("there is nothing to store: no storage, no metadata, no provider")
    if not belongs_to:
        raise InvalidCredential("the record names no provider")
    if record.disabled:
        members["disabled"] = True
    return {**members, "type": belongs_to}


def stored_name(record: CredentialRecord, *, provider: str) -> str:
    """The file name for a new record: its own, else `<provider>-<e-mail, label or id>.json`."""
    given = os.path.basename(record.file_name.strip())
    if not given:
        account = str(record.metadata.get("email") or "") or record.label or record.id or "account"
        given = f"{record.provider.strip().lower() or provider}-{account}"
    safe = "".join(letter if letter.isalnum() or letter in "._@+-" else "_" for letter in given).lstrip(".")
    return safe if safe.lower().endswith(".json") else f"{safe}.json"


def plugin_record(credential: Credential) -> CredentialRecord:
    """A record as `auth.refresh` and `auth.save` get it, secrets included."""
    members = credential.metadata.reveal()
    next_s = credential.next_refresh_at_s
    return CredentialRecord(
        provider=credential.provider,
        id=credential.id,
        file_name=credential.file_name,
        label=credential.label,
        prefix=credential.prefix,
        proxy_url=credential.proxy_url,
        disabled=credential.disabled,
        storage=Raw(msgspec.json.encode(members)),
        attributes=credential.attributes,
        next_refresh_after=rfc3339(next_s) if next_s is not None else None,
    )


def renewed_members(credential: Credential, record: CredentialRecord) -> dict[str, Any]:
    """The members of a credential's file that a plugin's answer changes; empty fields keep what there is.

    Fields and attributes that say what the plugin was told say nothing: they are how the host reads the file, its
    configuration included, and not what stands there.
    """
    known, told = credential.metadata.reveal(), plugin_record(credential)
    attributes = {name: value for name, value in record.attributes.items() if told.attributes.get(name) != value}
    fields = {name: "" for name in _TOLD_FIELDS if getattr(record, name) == getattr(told, name)}
    given = given_members(msgspec.structs.replace(record, attributes=attributes, **fields))
    return {name: value for name, value in given.items() if name != "type" and known.get(name) != value}


def renewed_record(
    credential: Credential,
    record: CredentialRecord,
    members: Mapping[str, Any],
    settings: ParseSettings,
    *,
    now_s: float,
) -> Credential:
    """The credential after its plugin renewed it: `members` is its whole document as it is now.

    Its id, handle and index never change. Raises InvalidCredential.
    """
    provider = record.provider.strip().lower() or credential.provider
    identity = Identity(
        id=credential.id,
        provider=provider,
        handle=credential.handle,
        auth_index=credential.auth_index,
        path=credential.path,
        source_kind="virtual" if credential.source_kind == "virtual" else "file",
        auth_plugin=credential.auth_plugin,
        attributes={**_kept_attributes(credential), **own_attributes(record)},
    )
    made = record_of_document(members, settings, identity=identity, now_s=now_s)
    return replace(
        made,
        created_at_s=credential.created_at_s,
        last_refreshed_at_s=credential.last_refreshed_at_s,
        next_refresh_at_s=credential.next_refresh_at_s,
        refresh_error=credential.refresh_error,
    )


def _kept_attributes(credential: Credential) -> dict[str, str]:
    """A credential's attributes that its document does not say."""
    virtual = ("plugin_virtual", "virtual_source")
    return {
        name: value
        for name, value in credential.attributes.items()
        if name in virtual or (name not in _MEMBER_ATTRIBUTES and name not in _DECIDED_ATTRIBUTES)
    }
