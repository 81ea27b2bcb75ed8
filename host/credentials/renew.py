"""One refresh of one credential: ask its plugin, and make the answer last (spec plugin-abi 7.3, 7.5)."""

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
from host.credentials.values import rfc3339, time_like
from host.credentials.virtual import plugin_record, renewed_members, renewed_record, storage_members
from pluginabi.errors import AbiError, ErrorBody, PluginError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import AuthRefreshRequest, AuthRefreshResponse, AuthSaveRequest

log = structlog.get_logger("host.credentials.renew")


class Renewer:
    """Renews credentials through their plugins."""

    def __init__(self, manager: CredentialManager, directory: AuthDirectory, plugins: AuthPlugins) -> None:
        self._manager: Final = manager
        self._directory: Final = directory
        self._plugins: Final = plugins

    def serves(self, record: Credential) -> bool:
        """Whether a plugin refreshes this credential."""
        return record.source_kind in ("file", "virtual") and self._plugins.refreshes(record.provider)

    async def renew(self, record: Credential) -> None:
        """Ask the plugin and take over what it answers, in memory and on disk. An empty answer means that there was
        nothing to do.

        Raises PluginError and PluginTransportError as the plugin's call does. A new token that cannot be written is
        used nevertheless, and reported: the old one is gone.
        """
        answer = await self._asked(record)
        known = self._manager.by_id.get(record.id)
        if known is None:
            return  # removed meanwhile; its file is gone too
        next_s = time_like(answer.next_refresh_after)
        if next_s is None and answer.record is not None:
            next_s = time_like(answer.record.next_refresh_after)
        if answer.record is None:
            self._manager.update(replace(known, next_refresh_at_s=next_s, refresh_error=None))
            return
        now_s = self._manager.clock()
        try:
            changes = {**renewed_members(known, answer.record), "last_refresh": rfc3339(now_s)}
            members = {**known.metadata.reveal(), **changes}
            renewed = renewed_record(known, answer.record, members, self._directory.settings, now_s=now_s)
        except InvalidCredential as error:
            body = ErrorBody(message=f"the refreshed record cannot be used: {error}", code="plugin_protocol_error")
            raise PluginError(body) from None
        renewed = replace(
            renewed,
            auth_index=known.auth_index,
            last_refreshed_at_s=now_s,
            next_refresh_at_s=next_s,
            refresh_error=None,
            status_message="" if known.refresh_error is not None else known.status_message,
        )
        await self._keep(renewed, changes)

    async def amend(self, credential_id: str, change: CredentialRecord) -> None:
        """Take over what a plugin found out about a credential on the way; empty fields keep what there is."""
        known = self._manager.by_id.get(credential_id)
        if known is None or known.source_kind not in ("file", "virtual"):
            return
        now_s = self._manager.clock()
        try:
            changes = renewed_members(known, change)
            members = {**known.metadata.reveal(), **changes}
            amended = renewed_record(known, change, members, self._directory.settings, now_s=now_s)
        except InvalidCredential as error:
            log.warning("credential.amendment_refused", credential=credential_id, reason=str(error))
            return
        if changes or not amended.routes_like(known):
            await self._keep(replace(amended, auth_index=known.auth_index), changes)

    async def _asked(self, record: Credential) -> AuthRefreshResponse:
        try:
            return await self._plugins.refresh(record.provider, AuthRefreshRequest(credential=plugin_record(record)))
        except KeyError:
            body = ErrorBody(
                message=f"no plugin refreshes {record.provider!r}", code="auth_unavailable", http_status=503
            )
            raise PluginError(body) from None

    async def _keep(self, renewed: Credential, changes: dict[str, Any]) -> None:
        """Use the renewed record from now on, and write what of it belongs on disk."""

        async def edit(present: bytes) -> bytes | None:
            wished = await self._wished(renewed, present)
            if wished is None and renewed.source_kind == "file":
                return files.with_members(present, changes)
            return wished

        try:
            await self._directory.renew(renewed, edit)
            return
        except FileNotFoundError:
            log.warning("credential.not_written", credential=renewed.id, reason="its file is gone")
        except (OSError, msgspec.DecodeError) as error:
            log.error("credential.not_written", credential=renewed.id, path=renewed.path, reason=str(error))
        self._manager.update(renewed, refreshed=True)

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
