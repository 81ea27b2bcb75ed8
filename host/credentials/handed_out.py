"""Credentials that a plugin hands out for single attempts: never listed, never stored, known by their handle only."""

import hashlib
from collections import OrderedDict
from typing import Final

import msgspec

from host.credentials.parse import Identity, InvalidCredential, ParseSettings, record_of_document
from host.credentials.records import Credential, HandleMint
from host.credentials.virtual import given_members, own_attributes
from pluginabi.payloads.common import CredentialRecord

MAX_KEPT: Final = 10_000
"""The ones that were not handed out for longest make room."""


class HandedOut:
    """What plugins handed out lately, for whoever attaches secrets. One per process."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max: Final = max_kept
        self._by_handle: Final[OrderedDict[str, Credential]] = OrderedDict()

    def get(self, handle: str) -> Credential | None:
        """The credential behind a handle."""
        return self._by_handle.get(handle)

    def take(
        self, record: CredentialRecord, *, plugin_id: str, settings: ParseSettings, mint: HandleMint, now_s: float
    ) -> Credential:
        """A record as a credential, the same object as long as it says the same. Raises InvalidCredential."""
        members = given_members(record)
        provider = record.provider.strip().lower() or str(members.get("type") or "").strip().lower()
        if not provider:
            raise InvalidCredential("it names no provider")
        if record.disabled:
            raise InvalidCredential("it is disabled")
        document = {**members, "type": provider}
        attributes = own_attributes(record)
        said = msgspec.json.encode((document, attributes), order="deterministic")
        name = record.id.strip() or hashlib.sha256(said).hexdigest()[:16]
        # Local ids never begin so: what is known of one of them must not be taken for this one.
        credential_id = f"remote:{plugin_id}:{name}"
        handle = mint.handle(f"{credential_id}\0{hashlib.sha256(said).hexdigest()}")
        known = self._by_handle.get(handle)
        if known is not None:
            self._by_handle.move_to_end(handle)
            return known
        identity = Identity(
            id=credential_id,
            provider=provider,
            handle=handle,
            auth_index=hashlib.sha256(credential_id.encode()).hexdigest()[:16],
            path="",
            source_kind="virtual",
            auth_plugin=plugin_id,
            attributes=attributes,
        )
        made = record_of_document(document, settings, identity=identity, now_s=now_s)
        self._by_handle[handle] = made
        if len(self._by_handle) > self._max:
            self._by_handle.popitem(last=False)
        return made
