"""host.auth.*: what plugins may see and change of the credential files (spec plugin-abi 7.8).

`auth.read` lists and reads, with every secret masked; with `credential_secrets` as well, a file is read as it is.
`auth.write` stores files. A masked text that comes back means *unchanged*.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, Raw

from host.runtime.scope import CallScope
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.callbacks import (
    AuthGetRequest,
    AuthGetResponse,
    AuthGetRuntimeResponse,
    AuthListRequest,
    AuthListResponse,
    AuthSaveFileRequest,
    AuthSaveFileResponse,
)

SECRETS: Final = "credential_secrets"


class AuthRefused(Exception):
    """A request that cannot be served; for the plugin."""

    def __init__(self, http_status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.http_status: Final = http_status
        self.code: Final = code


class AuthFiles(Protocol):
    """Where the credentials are. Everything raises AuthRefused."""

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """One entry per credential, by lower-cased name, without secrets."""

    async def read(self, auth_index: str, *, secrets: bool) -> tuple[str, str, Mapping[str, Any]]:
        """Name, path and content of a credential's file; without `secrets` its secrets are masked."""

    async def runtime(self, auth_index: str) -> Mapping[str, Any]:
        """The entry of one credential."""

    async def save(self, name: str, members: Mapping[str, Any]) -> tuple[str, str]:
        """Store a file; its name and path."""


class AuthCallbacks:
    """Serves the methods. `files` may be set later; who admits the calls says what a scope is granted."""

    def __init__(self, files: AuthFiles | None = None) -> None:
        self.files = files
        self.granted_to: Callable[[CallScope], frozenset[str]] = lambda scope: scope.permissions

    async def list(self, scope: CallScope, params: AuthListRequest) -> AuthListResponse:
        try:
            return AuthListResponse(files=await self._files().list())
        except AuthRefused as refused:
            raise _error(refused) from None

    async def get(self, scope: CallScope, params: AuthGetRequest) -> AuthGetResponse:
        try:
            name, path, members = await self._files().read(_index(params), secrets=SECRETS in self.granted_to(scope))
        except AuthRefused as refused:
            raise _error(refused) from None
        content = Raw(msgspec.json.encode(members))
        return AuthGetResponse(auth_index=params.auth_index.strip(), name=name, path=path, file=content)

    async def get_runtime(self, scope: CallScope, params: AuthGetRequest) -> AuthGetRuntimeResponse:
        try:
            return AuthGetRuntimeResponse(auth=await self._files().runtime(_index(params)))
        except AuthRefused as refused:
            raise _error(refused) from None

    async def save(self, scope: CallScope, params: AuthSaveFileRequest) -> AuthSaveFileResponse:
        try:
            if params.file is UNSET or not bytes(params.file):
                raise AuthRefused(400, "auth_file_required", "json is required")
            try:
                members = msgspec.json.decode(params.file, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise AuthRefused(400, "auth_file_invalid", f"invalid auth json: {error}") from None
            name, path = await self._files().save(params.name, members)
        except AuthRefused as refused:
            raise _error(refused) from None
        return AuthSaveFileResponse(name=name, path=path)

    def _files(self) -> AuthFiles:
        if self.files is None:
            raise AuthRefused(503, "auth_unavailable", "core auth manager unavailable")
        return self.files


def _index(params: AuthGetRequest) -> str:
    auth_index = params.auth_index.strip()
    if not auth_index:
        raise AuthRefused(400, "auth_index_required", "auth_index is required")
    return auth_index


def _error(refused: AuthRefused) -> PluginError:
    return PluginError(
        ErrorBody(message=str(refused), code=refused.code, http_status=refused.http_status, origin="host")
    )
