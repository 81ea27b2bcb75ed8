"""Tokens in use that their files do not have: they could not be written yet, or belong in no file."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from host.credentials.records import Credential
from host.credentials.takeover import carried, with_successor
from host.credentials.unwritten import Unwritten, token_of, with_unwritten


class NewerTokens:
    """By the id of the credential. Whoever reads a file again asks here what of it is still true."""

    def __init__(self) -> None:
        self.unwritten: Final[dict[str, Unwritten]] = {}
        self.has_unwritten: Final = asyncio.Event()
        """Set when there is something new in it."""
        self._outdated: Final[dict[str, str]] = {}
        """Of virtual credentials: the token in the file, which another one has replaced in memory only."""

    def pending(self, known: Credential, changes: Mapping[str, Any], removed: Sequence[str]) -> Unwritten:
        """These changes of a record's file, and those that could not be written before."""
        before = self.unwritten.get(known.id)
        if before is None:
            return Unwritten(changes=changes, removed=tuple(removed), token=token_of(known))
        gone = {*before.removed, *removed} - changes.keys()
        return Unwritten(changes={**before.changes, **changes}, removed=tuple(sorted(gone)), token=before.token)

    def note_unwritten(self, credential_id: str, pending: Unwritten) -> None:
        """To be written later."""
        self.unwritten[credential_id] = pending
        self.has_unwritten.set()

    def note_replaced(self, known: Credential) -> None:
        """This version of a record gets a successor that is not written."""
        if known.source_kind == "virtual":
            self._outdated.setdefault(known.id, token_of(known))

    def forget(self, credential_id: str) -> None:
        """Its file has the newest token, or is gone."""
        self.unwritten.pop(credential_id, None)
        self._outdated.pop(credential_id, None)

    def carried(self, record: Credential, known: Credential | None, *, same_content: bool) -> Credential:
        """The record that was made of a file, with what the host knows of its earlier version."""
        if known is None or known.path != record.path:
            return record
        record = carried(record, known, same_content=same_content)
        if not same_content and record.id in self._outdated:
            if self._outdated[record.id] == token_of(record):
                record = with_successor(record, known)
            else:
                del self._outdated[record.id]
        pending = self.unwritten.get(record.id)
        if pending is not None and pending.token == token_of(record):
            return with_unwritten(record, known, pending)
        if pending is not None and not same_content:
            del self.unwritten[record.id]
        return record
