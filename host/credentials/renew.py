"""One refresh of one credential: ask its plugin, and make the answer last (spec plugin-abi 7.3, 7.5)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import structlog
from msgspec import UNSET, Raw

from host.credentials import files
from host.credentials.auth_dir import AuthDirectory
from host.credentials.manager import CredentialManager
from host.credentials.parse import InvalidCredential
from host.credentials.plugin_port import AuthPlugins
from host.credentials.records import Credential
from host.credentials.unwritten import token_of
from host.credentials.values import refresh_token_of, rfc3339, superseded_expiry, time_like
from host.credentials.virtual import plugin_record, renewed_members, renewed_record, storage_members
from pluginabi.errors import AbiError, ErrorBody, PluginError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import AuthRefreshRequest, AuthRefreshResponse, AuthSaveRequest

log = structlog.get_logger("host.credentials.renew")

Make = Callable[[Credential], Credential]
WRITE_AGAIN_S: Final = 60.0
"""After a new token that could not be written."""


class Renewer:
    """Renews credentials through their plugins."""

    def __init__(
        self,
        manager: CredentialManager,
        directory: AuthDirectory,
        plugins: AuthPlugins,
        *,
        retry_s: float = WRITE_AGAIN_S,
    ) -> None:
        self._retry_s: Final = retry_s
        self._manager: Final = manager
        self._directory: Final = directory
        self._plugins: Final = plugins

    def serves(self, record: Credential) -> bool:
        """Whether a plugin refreshes this credential."""
        return record.source_kind in ("file", "virtual") and self._plugins.refreshes(record.provider)

    async def renew(self, record: Credential) -> None:
        """Ask the plugin and take over what it answers, in memory and on disk. An empty answer means that there was
        nothing to do.

        What else has changed while the plugin was at work stays; when the account itself was replaced, the answer
        belongs to nobody and is dropped. Raises PluginError and PluginTransportError as the plugin's call does. A new
        token that cannot be written is used nevertheless, reported, and written later: the old one is gone.
        """
        answer = await self._asked(record)
        known = self._manager.by_id.get(record.id)
        if known is None:
            return  # removed meanwhile; its file is gone too
        if token_of(known) != token_of(record):
            log.info("credential.refresh_superseded", credential=record.id, provider=record.provider)
            return
        next_s = time_like(answer.next_refresh_after)
        if next_s is None and answer.record is not None:
            next_s = time_like(answer.record.next_refresh_after)
        if answer.record is None:
            self._manager.update(replace(known, next_refresh_at_s=next_s, refresh_error=None))
            return
        now_s = self._manager.clock()
        given = answer.record
        try:
            changes = {**renewed_members(record, given), "last_refresh": rfc3339(now_s)}
        except InvalidCredential as error:
            raise _unusable(error) from None
        stale = superseded_expiry(record.metadata.reveal(), changes)

        def renewed(current: Credential) -> Credential:
            made = self._made(current, given, changes, stale, now_s)
            return replace(
                made,
                last_refreshed_at_s=now_s,
                next_refresh_at_s=next_s,
                refresh_error=None,
                status_message="" if current.refresh_error is not None else current.status_message,
            )

        try:
            renewed(known)
        except InvalidCredential as error:
            raise _unusable(error) from None
        await self._keep(known, renewed, changes, stale, of_token=token_of(record))

    async def write_again(self) -> None:
        """Write the new tokens that could not be written before."""
        for credential_id in list(self._directory.newer.unwritten):
            known = self._manager.by_id.get(credential_id)
            if known is None:
                self._directory.newer.unwritten.pop(credential_id, None)
            else:
                await self._keep(known, lambda current: current, {}, ())

    async def run(self) -> None:
        """Write again and again what could not be written, until cancelled."""
        while True:
            await self._directory.newer.has_unwritten.wait()
            await asyncio.sleep(self._retry_s)
            self._directory.newer.has_unwritten.clear()
            await self.write_again()

    async def amend(self, credential_id: str, change: CredentialRecord) -> None:
        """Take over what a plugin found out about a credential on the way; empty fields keep what there is."""
        known = self._manager.by_id.get(credential_id)
        if known is None or known.source_kind not in ("file", "virtual"):
            return
        now_s = self._manager.clock()
        try:
            changes = renewed_members(known, change)
            amended = self._made(known, change, changes, (), now_s)
        except InvalidCredential as error:
            log.warning("credential.amendment_refused", credential=credential_id, reason=str(error))
            return
        if changes or not amended.routes_like(known):
            await self._keep(known, lambda current: self._made(current, change, changes, (), now_s), changes, ())

    def _made(
        self,
        current: Credential,
        given: CredentialRecord,
        changes: Mapping[str, Any],
        removed: Sequence[str],
        now_s: float,
    ) -> Credential:
        """The next version of a record. Raises InvalidCredential."""
        members = {name: value for name, value in current.metadata.reveal().items() if name not in removed}
        settings = self._directory.settings
        return renewed_record(current, given, {**members, **changes}, settings, now_s=now_s)

    async def _asked(self, record: Credential) -> AuthRefreshResponse:
        try:
            return await self._plugins.refresh(record.provider, AuthRefreshRequest(credential=plugin_record(record)))
        except KeyError:
            body = ErrorBody(
                message=f"no plugin refreshes {record.provider!r}", code="auth_unavailable", http_status=503
            )
            raise PluginError(body) from None

    async def _keep(
        self, known: Credential, make: Make, changes: Mapping[str, Any], removed: Sequence[str], *, of_token: str = ""
    ) -> None:
        """Use the next version of a record from now on, and write what of it belongs on disk.

        `make` makes it of the record as it is at that moment: others change it too. `of_token`: whose successor is in
        the changes; with another token in the record by then, they are another account's.
        """

        async def edit(present: bytes) -> bytes | None:
            # Only now: whoever had the file before may have written what was pending, and newer tokens too.
            pending = self._directory.newer.pending(known, changes, removed)
            if not pending.changes:
                return None
            current, is_file = self._manager.by_id.get(known.id, known), known.source_kind == "file"
            if self._has_other(known, of_token) or (is_file and self._is_replaced(known.path, present)):
                raise _Replaced
            wished = await self._wished(make(current), present)
            if wished is None and is_file:
                return files.with_members(present, pending.changes, removed=pending.removed)
            return wished

        try:
            await self._directory.renew(known, edit, make)
            return
        except _Replaced:
            log.info("credential.refresh_superseded", credential=known.id, provider=known.provider)
            await self._directory.refresh([known.path])
            return
        except FileNotFoundError:
            log.warning("credential.not_written", credential=known.id, reason="its file is gone")
        except (OSError, msgspec.DecodeError) as error:
            log.error("credential.not_written", credential=known.id, path=known.path, reason=str(error))
            pending = self._directory.newer.pending(known, changes, removed)
            if pending.changes and not self._has_other(known, of_token):
                self._directory.newer.note_unwritten(known.id, pending)
        current = self._manager.by_id.get(known.id)
        if current is not None and not self._has_other(known, of_token):
            self._manager.update(make(current), refreshed=True)

    def _has_other(self, known: Credential, of_token: str) -> bool:
        """Whether the record has another token by now than the one that was renewed."""
        return of_token not in ("", token_of(self._manager.by_id.get(known.id, known)))

    def _is_replaced(self, path: str, present: bytes) -> bool:
        """Whether somebody put another account's tokens into the file, which nobody has read yet."""
        content = self._directory.content(path)
        now = files.content_of(path, present).members
        if content is None or content.members is None or now is None:
            return False
        return refresh_token_of(content.members) != refresh_token_of(now)

    async def _wished(self, renewed: Credential, present: bytes) -> bytes | None:
        """The whole content that the plugin wants the file to have; None when it leaves that to the host."""
        members = files.content_of(renewed.path, present).members
        file = Raw(msgspec.json.encode(members)) if members is not None else UNSET
        try:
            request = AuthSaveRequest(record=plugin_record(renewed), file=file)
            answer = await self._plugins.save(renewed.provider, request)
            if answer is None or answer.record is None or answer.record.storage is UNSET:
                return None
            return files.render(storage_members(answer.record))
        except (AbiError, InvalidCredential) as error:
            log.warning("credential.save_hook_failed", credential=renewed.id, error=str(error))
            return None


class _Replaced(Exception):
    """The file belongs to another account now."""


def _unusable(error: InvalidCredential) -> PluginError:
    return PluginError(ErrorBody(message=f"the refreshed record cannot be used: {error}", code="plugin_protocol_error"))
