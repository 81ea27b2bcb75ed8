"""When files were read again: which of them may have which ids, and what is still true of earlier records."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeAlias

from host.credentials.records import Credential
from host.credentials.secret import SecretDocument
from host.credentials.unwritten import with_token_of
from host.credentials.virtual import KEPT_MEMBERS

Claim: TypeAlias = tuple[str, Sequence[Credential]]
"""The path of a file, and the records that it is about to have."""


def refused_claims(
    claims: Sequence[Claim], *, removed: Collection[str], holder_of: Callable[[str], str | None]
) -> dict[str, str]:
    """Path -> the id that belongs to another credential, of the files whose records cannot be taken over.

    `removed`: paths whose records go. `holder_of`: the path of the record that has an id now, empty for one that stands
    in no file, None when nobody has it. Whoever has an id keeps it, unless it gives it up in the same moment: a file
    that was renamed, a directory of which a copy is used from now on. Who is refused keeps the records it had.
    """
    refused: dict[str, str] = {}
    while True:
        wanted = {path: {record.id for record in records} for path, records in claims if path not in refused}
        taken: dict[str, str] = {}
        found: dict[str, str] = {}
        for path, ids in wanted.items():
            for credential_id in ids:
                holder = holder_of(credential_id)
                gives_up = holder in removed or (holder in wanted and credential_id not in wanted[holder])
                is_kept = holder not in (None, path) and not gives_up
                if is_kept or taken.setdefault(credential_id, path) != path:
                    found[path] = credential_id
        if not found:
            return refused
        refused |= found


def carried(new: Credential, known: Credential, *, same_content: bool) -> Credential:
    """The next version of a record: the host still knows when it was made and refreshed.

    With the same content it also keeps the token that a refresh has changed in memory only, and why it failed.
    """
    last_s = max(new.last_refreshed_at_s or 0.0, known.last_refreshed_at_s or 0.0) or None
    new = replace(new, created_at_s=known.created_at_s, last_refreshed_at_s=last_s)
    if not same_content:
        return new
    new = replace(
        new,
        next_refresh_at_s=known.next_refresh_at_s or new.next_refresh_at_s,
        refresh_error=known.refresh_error,
        status_message=new.status_message or known.status_message,
    )
    if new.source_kind != "virtual" or known.last_refreshed_at_s is None:
        return new
    return with_token_of(replace(new, metadata=known.metadata), known)


def with_successor(new: Credential, known: Credential) -> Credential:
    """A virtual record whose file still has the token before: with the one that took its place in memory, beside what
    the operator has written."""
    tokens = {name: value for name, value in known.metadata.reveal().items() if name not in KEPT_MEMBERS}
    own = {name: value for name, value in new.metadata.reveal().items() if name in KEPT_MEMBERS}
    return with_token_of(replace(new, metadata=SecretDocument({**tokens, **own})), known)
