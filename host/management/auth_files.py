"""Endpoints for credential files (spec credentials 8.3, 5.11). No answer but a download holds a secret."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from msgspec import Raw

from host.config.secret_names import sounds_secret
from host.credentials import files
from host.credentials.auth_dir import AuthDirectory
from host.credentials.editor import CredentialEditor, CredentialError
from host.credentials.files import InvalidName
from host.credentials.listing import listing
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.management.calls import Call, ManagementError, only, reply
from host.management.table import Endpoint
from host.management.uploads import Upload, uploads_of
from host.observe.logs import redact
from host.pipeline.state import GatewayState
from pluginabi.payloads.common import ModelInfo

log = structlog.get_logger("host.management.auth_files")

EXCLUDE_PATTERN: Final = "*"
WRITABLE: Final = frozenset(
    {
        *("prefix", "proxy_url", "headers", "priority", "weight", "note", "label", "websockets", "disabled"),
        *("excluded_models", "models", "model_aliases", "disable_cooling", "request_retry", "request_scoped_errors"),
        *("email", "project_id", "refresh_interval", "refresh_lead_seconds"),
    }
)
"""Members of a file that PATCH may introduce; beside them it may change those that the file has already."""
FIXED: Final = frozenset(
    {
        *(
            "type",
            "provider",
            "id",
            "api_key",
            "access_token",
            "refresh_token",
            "id_token",
            "token",
            "tokens",
            "cookie",
        ),
        *("base_url", "secret", "client_secret", "client_id", "private_key", "private_key_id", "service_account"),
        *("session", "session_key", "token_uri", "credentials", "token_endpoint", "accessToken", "refreshToken"),
    }
)
"""Whose credential it is, its secrets, and where they are sent: only a whole new file says these."""

_NAMING: Final = ("name", "auth_index")
AT_A_TIME: Final = 100
"""Credentials that are shown before others have their turn."""
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])


class AuthFileEndpoints:
    """The rows of `/auth-files` and `/reset-quota`."""

    def __init__(
        self,
        manager: CredentialManager,
        directory: AuthDirectory,
        editor: CredentialEditor,
        *,
        state: Callable[[], GatewayState],
    ) -> None:
        self._manager: Final = manager
        self._directory: Final = directory
        self._editor: Final = editor
        self._state: Final = state

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (
            Endpoint("GET", "/auth-files", self._list),
            Endpoint("POST", "/auth-files", self._upload),
            Endpoint("DELETE", "/auth-files", self._delete),
            Endpoint("GET", "/auth-files/models", self._models),
            Endpoint("GET", "/auth-files/download", self._download),
            Endpoint("PATCH", "/auth-files/status", self._set_status),
            Endpoint("PATCH", "/auth-files/fields", self._set_fields),
            Endpoint("POST", "/reset-quota", self._reset_quota),
        )

    async def _list(self, call: Call) -> web.Response:
        name, index = call.argument("name").strip().lower(), call.argument("auth_index").strip()
        shown: list[Raw] = []
        for number, entry in enumerate(await listing(self._manager, self._directory)):
            if number % AT_A_TIME == AT_A_TIME - 1:
                # The JSON of thousands is not made at one go: requests go on.
                await asyncio.sleep(0)
            is_named = not name or name in (entry["name"].lower(), entry["id"].lower())
            if is_named and (not index or entry["auth_index"] == index):
                shown.append(Raw(msgspec.json.encode(entry)))
        return reply({"files": shown})

    async def _models(self, call: Call) -> web.Response:
        record = self._named(call.argument("name"))
        groups = (group for group in self._state().groups.values() if record.id in group.ids)
        found = {offer.info.id: _shown_model(offer.info) for group in groups for offer in group.source.offers}
        return reply({"models": list(found.values())})

    async def _download(self, call: Call) -> web.Response:
        """The file as it is, secrets included: the one answer that has them, and every such call is logged."""
        name = call.argument("name").strip()
        known = self._editor.by_file_name(name)
        path = known.path if known is not None else self._directory.path_of(_plain_name(name))
        try:
            content = await asyncio.to_thread(files.read_bytes, path)
        except OSError as error:
            raise ManagementError(500, f"cannot read the auth file: {error.strerror}") from None
        if content is None:
            raise ManagementError(404, "auth file not found")
        if len(content) > files.MAX_FILE_BYTES:
            raise ManagementError(500, f"the auth file is larger than {files.MAX_FILE_BYTES} bytes")
        log.warning("management.secrets_read", caller=call.caller, client=call.address, name=name)
        shown = "".join("_" if letter == '"' or not letter.isprintable() else letter for letter in name)
        headers = {
            "Content-Type": "application/json",
            "Content-Disposition": f'attachment; filename="{os.path.basename(shown)}"',
        }
        return web.Response(body=content, headers=headers)

    async def _upload(self, call: Call) -> web.Response:
        sent = await uploads_of(call)
        if len(sent) == 1:
            with _as_answers():
                await self._store(sent[0])
            return reply({"status": "ok"})
        stored: list[str] = []
        failed: list[dict[str, str]] = []
        for upload in sent:
            try:
                with _as_answers():
                    await self._store(upload)
            except ManagementError as error:
                failed.append({"name": upload.name, "error": str(error.document["error"])})
            else:
                stored.append(upload.name)
        if failed:
            answer = {"status": "partial", "uploaded": len(stored), "files": stored, "failed": failed}
            return reply(answer, status=207)
        return reply({"status": "ok", "uploaded": len(stored), "files": stored})

    async def _store(self, upload: Upload) -> None:
        if upload.from_form and not upload.name.lower().endswith(files.SUFFIX):
            raise ManagementError(400, "file must be .json")
        await self._editor.upload(_plain_name(upload.name), upload.data)

    async def _delete(self, call: Call) -> web.Response:
        if call.argument("all").strip().lower() in ("true", "1", "*"):
            with _as_answers():
                return reply({"status": "ok", "deleted": await self._editor.delete_all()})
        names = await _names(call)
        if len(names) == 1:
            await self._delete_one(names[0])
            return reply({"status": "ok"})
        deleted: list[str] = []
        failed: list[dict[str, str]] = []
        for name in names:
            try:
                await self._delete_one(name)
            except ManagementError as error:
                failed.append({"name": name, "error": str(error.document["error"])})
            else:
                deleted.append(name)
        answer = {"status": "partial" if failed else "ok", "deleted": len(deleted), "files": deleted}
        return reply({**answer, "failed": failed}, status=207) if failed else reply(answer)

    async def _delete_one(self, name: str) -> None:
        if name not in self._manager.by_id and self._editor.by_file_name(name) is None:
            _plain_name(name)
        with _as_answers():
            await self._editor.delete(name)

    async def _set_status(self, call: Call) -> web.Response:
        fields = await _json_of(call)
        only(fields, ("name", "disabled", "auth_index"), refusal="invalid request body")
        name = self._name_in(fields)
        if "disabled" not in fields:
            raise ManagementError(400, "disabled is required")
        disabled = fields["disabled"]
        if not isinstance(disabled, bool):
            raise ManagementError(400, "invalid request body")
        with _as_answers():
            done = await self._editor.set_disabled(name, disabled, auth_index=str(fields.get("auth_index") or ""))
        answer: dict[str, Any] = {"status": "ok", "disabled": done.disabled}
        if done.via_config:
            answer |= {"via": "config:excluded-models", "excluded_pattern": EXCLUDE_PATTERN}
        return reply(answer)

    async def _set_fields(self, call: Call) -> web.Response:
        try:
            raw = _MEMBERS.decode(await call.body())
            plain: dict[str, Any] = {name: msgspec.json.decode(raw[name]) for name in _NAMING if name in raw}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ManagementError(400, "invalid request body") from None
        name = self._name_in(plain)
        fields = {field: value for field, value in raw.items() if field not in _NAMING}
        self._check_writable(name, fields)
        with _as_answers():
            await self._editor.patch(name, fields, auth_index=str(plain.get("auth_index") or ""))
        return reply({"status": "ok"})

    def _check_writable(self, name: str, fields: Mapping[str, Raw]) -> None:
        """What PATCH may set: what the operator says in a file, and what a plugin put there that is no secret."""
        known = self._manager.by_id.get(name) or self._editor.by_file_name(name)
        content = self._directory.content(known.path) if known is not None and known.path else None
        present = content.members if content is not None and content.members is not None else {}
        for field in fields:
            parts = [part.strip() for part in field.split(".")]
            first = parts[0].replace("-", "_")
            if not all(parts) or first in WRITABLE:
                continue  # a malformed path is the editor's to refuse
            is_fixed = first in FIXED or any(sounds_secret(part) for part in parts)
            if is_fixed or parts[0] not in present:
                raise ManagementError(400, "field cannot be set here", f"upload the file with a new `{field}` instead")

    async def _reset_quota(self, call: Call) -> web.Response:
        fields = await _json_of(call)
        only(fields, ("auth_index",), refusal="invalid request body")
        index = fields.get("auth_index", "")
        if not isinstance(index, str) or not index.strip():
            raise ManagementError(400, "auth_index is required")
        models = self._state().reset_quota(index.strip())
        if models is None:
            raise ManagementError(404, "auth not found")
        return reply({"status": "ok", "auth_index": index.strip(), "models": models})

    def _name_in(self, fields: Mapping[str, Any]) -> str:
        """The name in a body; `auth_index` alone names a credential too."""
        name, index = fields.get("name") or "", fields.get("auth_index") or ""
        if not isinstance(name, str) or not isinstance(index, str):
            raise ManagementError(400, "invalid request body")
        if not name.strip() and index.strip():
            found = self._manager.by_index(index.strip())
            if found is None:
                raise ManagementError(404, "auth file not found")
            return found.id
        if not name.strip():
            raise ManagementError(400, "name is required")
        return name.strip()

    def _named(self, name: str) -> Credential:
        """A credential by its id, the name of its file, or its index."""
        plain = name.strip()
        if not plain:
            raise ManagementError(400, "name is required")
        known = self._manager.by_id.get(plain) or self._editor.by_file_name(plain) or self._manager.by_index(plain)
        if known is None:
            raise ManagementError(404, "auth file not found")
        return known


def _shown_model(info: ModelInfo) -> dict[str, str]:
    shown = {"id": info.id, "display_name": info.display_name, "type": info.type, "owned_by": info.owned_by}
    return {name: text for name, text in shown.items() if text or name != "display_name"}


async def _json_of(call: Call) -> dict[str, Any]:
    try:
        return await call.json_object()
    except ManagementError as error:
        if error.status != 400:
            raise
        raise ManagementError(400, "invalid request body") from None


async def _names(call: Call) -> list[str]:
    """The names to delete, from the query or the body, each once."""
    given: Any = list(call.query.get("name", ()))
    if not given and (body := await call.body()):
        try:
            given = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ManagementError(400, "invalid request body") from None
        if isinstance(given, dict):
            only(given, ("name", "names"), refusal="invalid request body")
            one, several = given.get("name"), given.get("names", [])
            given = [*([one] if one is not None else []), *(several if isinstance(several, list) else [several])]
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ManagementError(400, "invalid request body")
    names = list(dict.fromkeys(name.strip() for name in given))
    if not names:
        raise ManagementError(400, "invalid name")
    return names


def _plain_name(name: str) -> str:
    try:
        return files.checked_name(name)
    except InvalidName:
        raise ManagementError(400, "invalid name") from None


@contextmanager
def _as_answers() -> Iterator[None]:
    try:
        yield
    except CredentialError as error:
        raise ManagementError(error.http_status, redact(str(error))) from None
