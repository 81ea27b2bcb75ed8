"""Changes of credentials that somebody asks for: upload, patch, switch off, delete, save a login (spec 7.3, 8.3)."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import structlog
from msgspec import UNSET, Raw

from host.credentials import files
from host.credentials.auth_dir import AuthDirectory
from host.credentials.files import InvalidName
from host.credentials.finish import uninterrupted
from host.credentials.listing import changes_hidden, unmasked
from host.credentials.manager import CredentialManager
from host.credentials.parse import InvalidCredential, PluginAway, provider_of_document
from host.credentials.plugin_port import AuthPlugins
from host.credentials.records import Credential
from host.credentials.secret import MASK
from host.credentials.values import canonical, canonical_name, superseded_expiry
from host.credentials.virtual import KEPT_MEMBERS, storage_members, stored_document, stored_name
from pluginabi.errors import AbiError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import AuthSaveRequest

log = structlog.get_logger("host.credentials.editor")

VIRTUAL_TEXT: Final = "plugin virtual auth cannot be modified directly; edit or delete the source auth file"
DISABLED_TEXT: Final = "disabled via management API"
SetExcluded = Callable[[str, bool], Awaitable[None]]
"""`set_excluded(credential_id, excluded)`: edit the configuration and apply it. Raises KeyError for no such key."""


class CredentialError(Exception):
    """A change that cannot be made; `http_status` and the message are for whoever asked for it."""

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(message)
        self.http_status: Final = http_status


@dataclass(frozen=True, slots=True)
class Toggled:
    """A credential was switched on or off; `via_config`: by its excluded models in the configuration."""

    disabled: bool
    via_config: bool = False


@dataclass(frozen=True, slots=True)
class _Stored:
    """A file of a login that is being stored."""

    path: str
    before: bytes | None
    written: bytes


class CredentialEditor:
    """What management, plugins and logins may do with credentials. Everything raises CredentialError."""

    def __init__(
        self,
        manager: CredentialManager,
        directory: AuthDirectory,
        plugins: AuthPlugins,
        *,
        set_excluded: SetExcluded | None = None,
    ) -> None:
        self._manager: Final = manager
        self._directory: Final = directory
        self._plugins: Final = plugins
        self._set_excluded: Final = set_excluded

    async def upload(self, name: str, data: bytes) -> tuple[Credential, ...]:
        """Store a file of the operator, as written; its records take effect at once. 400 when it cannot be used."""
        path = self._path(name)
        return await self._stored(path, self._directory.store(path, data))

    async def save_for_plugin(self, name: str, members: Mapping[str, Any]) -> tuple[str, tuple[Credential, ...]]:
        """Store a file for a plugin; returns its path. A masked text means what stands there now (400 when nothing
        does).

        Whoever does not see a secret does not say either where it is sent: beside a mask only what is known to be
        harmless may change (403).
        """
        path = self._path(name)

        def edit(present: bytes | None) -> bytes:
            # As the file is by then: a refresh may have brought another token meanwhile.
            known = files.content_of(path, present).members if present is not None else None
            try:
                document = unmasked(members, known)
            except KeyError:
                raise CredentialError(400, f"invalid auth json: {MASK} stands for a secret that is not there") from None
            if document != members and _leads_elsewhere(document, known or {}):
                raise CredentialError(403, "only harmless members of an auth file can change while others are masked")
            return files.render(document)

        return path, await self._stored(path, self._directory.put(path, edit))

    async def delete(self, name: str) -> None:
        """Delete a file and everything made of it. 404 when there is none, 409 for one credential of several."""
        plain = name.strip()
        known = self._manager.by_id.get(plain)
        if known is not None and known.source_kind == "virtual" and known.file_name.lower() != plain.lower():
            raise CredentialError(409, VIRTUAL_TEXT)
        if known is None or not known.path:
            known = self.by_file_name(plain)
        path = known.path if known is not None else self._path(plain)
        try:
            existed = await self._directory.discard(path)
        except OSError as error:
            raise CredentialError(500, f"cannot delete the auth file: {error.strerror}") from None
        if not existed and known is None:
            raise CredentialError(404, "auth file not found")

    async def delete_all(self) -> int:
        """Delete every file of the auth directory; how many there were. 500 at the first that cannot be."""
        deleted = 0
        for path in await asyncio.to_thread(self._directory.paths):
            try:
                deleted += await self._directory.discard(path)
            except OSError as error:
                raise CredentialError(500, f"cannot delete {os.path.basename(path)}: {error.strerror}") from None
        return deleted

    async def set_disabled(self, name: str, disabled: bool, *, auth_index: str = "") -> Toggled:
        """Switch a credential off or on. `auth_index` guards against another one of the same name (409)."""
        known = self._find(name, auth_index)
        if known.source_kind == "config":
            return await self._toggle_key(known, disabled)

        def edit(data: bytes) -> bytes:
            return files.with_members(data, {"disabled": disabled})

        def note(record: Credential) -> Credential:
            return replace(record, status_message=DISABLED_TEXT if record.disabled else record.status_message)

        await self._change(known, edit, note)
        return Toggled(disabled)

    async def patch(self, name: str, fields: Mapping[str, Any], *, auth_index: str = "") -> tuple[Credential, ...]:
        """Set members of a file; a dotted name is a place inside. Values may be `msgspec.Raw`, which keeps them as
        written.

        `headers` is merged (an empty text removes one), `priority` 0 and an empty `note` remove the member.
        """
        if not fields:
            raise CredentialError(400, "no fields to update")
        for field in fields:
            if not all(part.strip() for part in field.split(".")):
                raise CredentialError(400, f"invalid field path: {field}")
        known = self._find(name, auth_index)
        if known.source_kind == "config":
            raise CredentialError(404, "auth file not found")

        def edit(data: bytes) -> bytes:
            for field, value in fields.items():
                data = _patched(data, field, value)
            return data

        return await self._change(known, edit)

    async def save_login(
        self, provider: str, records: Sequence[CredentialRecord], *, admit: Callable[[], bool] = lambda: True
    ) -> tuple[Credential, ...]:
        """Store what a login brought, all of it or nothing: what was stored before a failure is deleted again.

        A file that is there already keeps what the operator wrote into it. `admit` is asked once everything is ready to
        be written; when it says no, nothing is (409). Raises CredentialError 500. Cancelling it stores nothing before
        that, and everything afterwards: a refresh may have used up the tokens that stood there.
        """
        try:
            documents = await self._login_documents(provider, records)
            if not admit():
                raise CredentialError(409, "the login was cancelled")
            return await uninterrupted(self._store_logins(documents))
        except (InvalidCredential, InvalidName, OSError) as error:
            log.warning("credential.login_not_saved", provider=provider, reason=str(error))
            raise CredentialError(500, "Failed to save authentication tokens") from None

    async def _login_documents(self, provider: str, records: Sequence[CredentialRecord]) -> dict[str, dict[str, Any]]:
        """Path -> what is to be stored there. Raises InvalidCredential, InvalidName."""
        found: dict[str, dict[str, Any]] = {}
        for record in records:
            path = self._directory.path_of(stored_name(record, provider=provider))
            if path in found:
                raise InvalidCredential(f"two records of the login have the file name {os.path.basename(path)!r}")
            found[path] = await self.wished(record, provider, stored_document(record, provider=provider))
        return found

    async def _store_logins(self, documents: Mapping[str, Mapping[str, Any]]) -> tuple[Credential, ...]:
        """All of them, or none when it raises."""
        stored: list[_Stored] = []
        found: list[Credential] = []
        try:
            for path, document in documents.items():
                found += await self._store_login(path, document, stored)
        except (InvalidCredential, OSError):
            await self._roll_back(stored)
            raise
        return tuple(found)

    async def _store_login(
        self, path: str, document: Mapping[str, Any], stored: list[_Stored]
    ) -> tuple[Credential, ...]:
        """Store one record, and remember what stood there before."""

        def edit(present: bytes | None) -> bytes:
            known = files.content_of(path, present).members if present is not None else None
            data = files.render(document)
            if present is not None and known is not None:
                data = _logged_in_again(present, known, document)
            stored.append(_Stored(path, present, data))
            return data

        return await self._directory.put(path, edit)

    async def wished(self, record: CredentialRecord, provider: str, document: dict[str, Any]) -> dict[str, Any]:
        """The document to store: `auth.save` lets the provider's plugin put another one in its place."""
        shown = msgspec.structs.replace(record, storage=Raw(msgspec.json.encode(document)))
        try:
            answer = await self._plugins.save(provider, AuthSaveRequest(record=shown))
        except AbiError as error:
            log.warning("credential.save_hook_failed", provider=provider, error=str(error))
            return document
        if answer is None or answer.record is None or answer.record.storage is UNSET:
            return document
        return {**storage_members(answer.record), "type": document["type"]}

    async def _roll_back(self, stored: Sequence[_Stored]) -> None:
        for it in reversed(stored):
            try:
                await self._directory.undo(it.path, it.written, it.before)
            except OSError as error:
                log.error("credential.rollback_failed", path=it.path, reason=str(error))

    async def _toggle_key(self, known: Credential, disabled: bool) -> Toggled:
        if self._set_excluded is None:
            raise CredentialError(404, "config api key entry not found")
        try:
            await self._set_excluded(known.id, disabled)
        except KeyError:
            raise CredentialError(404, "config api key entry not found") from None
        return Toggled(disabled, via_config=True)

    def _find(self, name: str, auth_index: str) -> Credential:
        plain = name.strip()
        if not plain:
            raise CredentialError(400, "name is required")
        known = self._manager.by_id.get(plain) or self.by_file_name(plain)
        if known is None:
            raise CredentialError(404, "auth file not found")
        if auth_index and known.auth_index != auth_index.strip():
            raise CredentialError(409, "auth_index belongs to another credential")
        if known.source_kind == "virtual":
            raise CredentialError(409, VIRTUAL_TEXT)
        return known

    def by_file_name(self, name: str) -> Credential | None:
        """A credential of the file with this name; in another case only when no file has exactly this one."""
        exact = self._directory.path_known_as(name)
        if exact is not None:
            return next(iter(self._manager.records_of(exact)), None)
        folded = name.lower()
        return next((it for it in self._manager.credentials if it.path and it.file_name.lower() == folded), None)

    def _path(self, name: str) -> str:
        """The path of a file of this name, which may not be there yet; below a folder only of one that is."""
        if "/" in name and (known := self._directory.path_known_as(name.strip())) is not None:
            return known
        try:
            return self._directory.path_of(name)
        except InvalidName as error:
            raise CredentialError(400, str(error)) from None

    async def _stored(self, path: str, storing: Awaitable[tuple[Credential, ...]]) -> tuple[Credential, ...]:
        try:
            return await storing
        except InvalidCredential as error:
            prefix = "" if isinstance(error, PluginAway) else "invalid auth json: "
            raise CredentialError(error.http_status, f"{prefix}{error}") from None
        except OSError as error:
            raise CredentialError(500, f"cannot write {os.path.basename(path)}: {error.strerror}") from None

    async def _change(
        self, known: Credential, edit: Callable[[bytes], bytes], note: Callable[[Credential], Credential] | None = None
    ) -> tuple[Credential, ...]:
        try:
            return await self._directory.change(known.path, edit, note=note)
        except FileNotFoundError:
            raise CredentialError(404, "auth file not found") from None
        except InvalidCredential as error:
            raise CredentialError(error.http_status, str(error)) from None
        except OSError as error:
            raise CredentialError(500, f"cannot write {known.file_name}: {error.strerror}") from None


def _logged_in_again(present: bytes, known: Mapping[str, Any], document: Mapping[str, Any]) -> bytes:
    """A file with the tokens of a new login, and everything else as the operator left it. Raises InvalidCredential."""
    old = canonical(known)
    if provider_of_document(old) not in ("", document["type"]):
        raise InvalidCredential(f"there is a credential of {provider_of_document(old)!r} under this name")
    own = {name: value for name, value in document.items() if name not in KEPT_MEMBERS or name not in old}
    return files.with_members(present, own, removed=superseded_expiry(old, own))


_STEERING: Final = ("type", "base_url")
"""Members that are no secrets and say where a secret is sent."""


def _leads_elsewhere(document: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether a file's secrets could be sent to somebody else than before."""
    new, old = canonical(document), canonical(known)
    return any(new.get(name) != old.get(name) for name in _STEERING) or changes_hidden(new, old)


def _patched(data: bytes, field: str, value: Any) -> bytes:
    first, *rest = field.split(".")
    name = canonical_name(first)
    data = _without_dashes(data, name)
    if name == "headers" and not rest:
        return _with_headers(data, value)
    plain = msgspec.json.decode(value) if isinstance(value, Raw) else value
    is_empty = (name == "priority" and plain == 0) or (name == "note" and isinstance(plain, str) and not plain.strip())
    if is_empty and not rest:
        return files.with_members(data, {}, removed=[name])
    return files.with_value(data, [name, *rest], value)


def _without_dashes(data: bytes, name: str) -> bytes:
    """The file with a member under its canonical name: the other one would lose against it, or win over nothing."""
    members = msgspec.json.decode(data, type=dict[str, Raw])
    dashed = [found for found in members if found != name and canonical_name(found) == name]
    if not dashed:
        return data
    kept = {} if name in members else {name: members[dashed[0]]}
    return files.with_members(data, kept, removed=dashed)


def _with_headers(data: bytes, value: Any) -> bytes:
    wanted = msgspec.json.decode(value) if isinstance(value, Raw) else value
    if not isinstance(wanted, Mapping):
        raise InvalidCredential("`headers` is an object of texts")
    present = msgspec.json.decode(data, type=dict[str, Any]).get("headers")
    merged = dict(present) if isinstance(present, Mapping) else {}
    for name, text in wanted.items():
        if text == "":
            merged.pop(name, None)
        else:
            merged[name] = text
    return files.with_members(data, {"headers": merged}) if wanted else data
