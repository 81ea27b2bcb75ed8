"""New tokens that could not be written: the disk was full, say. They are in use, and must not get lost for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from host.credentials.records import Credential
from host.credentials.secret import SecretDocument
from host.credentials.values import refresh_token_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwritten:
    """What a file does not say yet."""

    changes: Mapping[str, Any]
    removed: tuple[str, ...]
    token: str
    """What the file says instead: with another token in it, these changes are another account's."""

    def __repr__(self) -> str:
        return "Unwritten(***)"


def token_of(record: Credential) -> str:
    """What tells one account of a record from another, or one login from the next."""
    found = refresh_token_of(record.metadata.reveal())
    return found or (record.secret.reveal() if record.secret is not None else "")


def with_unwritten(record: Credential, known: Credential, pending: Unwritten) -> Credential:
    """The record that was made of a file, with the token that the file does not have yet."""
    members = {name: value for name, value in record.metadata.reveal().items() if name not in pending.removed}
    return with_token_of(replace(record, metadata=SecretDocument({**members, **pending.changes})), known)


def with_token_of(record: Credential, known: Credential) -> Credential:
    """The record with the token, and its expiry, of an earlier version."""
    return replace(
        record,
        secret=known.secret,
        secret_place=known.secret_place,
        secret_name=known.secret_name,
        expires_at_s=known.expires_at_s,
    )
