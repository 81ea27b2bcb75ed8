"""`POST /vertex/import`: the key file of a Google service account becomes a credential file (spec credentials 8.2)."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from host.credentials.editor import CredentialEditor, CredentialError
from host.management.calls import Call, ManagementError, reply
from host.management.table import Endpoint
from host.management.uploads import form_of
from host.pipeline.executed import no_executor
from host.runtime.handle import PluginSnapshot

PROVIDER: Final = "vertex"
DEFAULT_LOCATION: Final = "us-central1"
_NEEDED: Final = ("project_id", "client_email", "private_key")
_PEM: Final = re.compile(r"-----BEGIN (?:RSA )?PRIVATE KEY-----\s.+\s-----END (?:RSA )?PRIVATE KEY-----\s*", re.DOTALL)
_LOCATION: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")


class ServiceAccountEndpoints:
    """The row of `/vertex/import`."""

    def __init__(self, editor: CredentialEditor, *, plugins: Callable[[], PluginSnapshot]) -> None:
        self._editor: Final = editor
        self._plugins: Final = plugins

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (Endpoint("POST", "/vertex/import", self._import),)

    async def _import(self, call: Call) -> web.Response:
        uploads, fields = await form_of(call)
        if unknown := fields.keys() - {"location"}:
            raise ManagementError(400, "invalid_body", f"{min(unknown)!r} cannot be set here")
        if len(uploads) != 1:
            raise ManagementError(400, "file is required" if not uploads else "one file at a time")
        location = fields.get("location", "").strip().lower() or DEFAULT_LOCATION
        if not _LOCATION.fullmatch(location):
            raise ManagementError(400, "invalid location")
        account = _account(uploads[0].data)
        name = _file_name(account)
        document = {
            "type": PROVIDER,
            "project_id": account["project_id"],
            "email": account["client_email"],
            "location": location,
            "service_account": account,
        }
        try:
            await self._editor.upload(name, msgspec.json.format(msgspec.json.encode(document), indent=2))
        except CredentialError as error:
            raise ManagementError(error.http_status, str(error)) from None
        shown = {member: document[member] for member in ("project_id", "email", "location")}
        view = self._plugins().executor_of_provider(PROVIDER)
        served = view is not None and view.executes
        return reply({"status": "ok", "name": name, **shown, **({} if served else {"warning": no_executor(PROVIDER)})})


def _account(data: bytes) -> Mapping[str, Any]:
    """What the file says. Raises ManagementError 400, without a word of what stands in it."""
    try:
        account = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ManagementError(400, "invalid service account", "the file is not valid JSON") from None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        raise ManagementError(400, "invalid service account", "the file is no key of a service account")
    for name in _NEEDED:
        if not isinstance(account.get(name), str) or not account[name].strip():
            raise ManagementError(400, "invalid service account", f"`{name}` is missing")
    if not _PEM.fullmatch(account["private_key"].strip() + "\n"):
        raise ManagementError(400, "invalid service account", "`private_key` is no private key in PEM")
    return account


def _file_name(account: Mapping[str, Any]) -> str:
    """One file per account of a project, whoever imports it how often."""
    parts = (account["project_id"], account["client_email"].partition("@")[0])
    return f"{PROVIDER}-{'-'.join(_NOT_IN_NAMES.sub('_', part.strip())[:100] for part in parts)}.json"
