"""One refresh of a credential at a time over all processes that use the same credential files.

A provider that hands out a new refresh token takes the old one back: of two that refresh at once one is locked out for
good. Processes of one machine take turns through a lock file, which works whatever else is away; nodes of several
machines through a key on the state server, best effort. Whoever gets its turn reads the credential's file first: the
one before it may have left a new token there, and then there is nothing to do.
"""

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Final, Protocol

import msgspec
import structlog
from msgspec import Struct

from host.credentials.auth_dir import AuthDirectory
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.credentials.virtual import KEPT_MEMBERS
from host.state.store import UNREADABLE, SharedState, StateError
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError

if sys.platform != "win32":
    import fcntl

log = structlog.get_logger("host.credentials.refresh")

NAMESPACE: Final = "refresh"
FAILURES: Final = "refresh-failed"
LOCK_S: Final = 60.0
"""Above what a refresh may take: a lock is still ours when we let go of it."""
FAILURE_S: Final = 30.0
"""How long a failure counts for those who waited for it."""
POLL_S: Final = 0.1
WAIT_S: Final = 2 * LOCK_S
FOLDER: Final = ".locks"


class _Failure(Struct, frozen=True, omit_defaults=True):
    token: str
    """Digest of the document that could not be refreshed."""
    message: str
    code: str = ""
    http_status: int = 0


class Turns(Protocol):
    """Whose turn it is to refresh a credential."""

    def taken(self, record: Credential) -> contextlib.AbstractAsyncContextManager[Credential | None]:
        """Wait for the turn, and hold it for the block. The record as it is to be refreshed now; None when somebody
        else has renewed it meanwhile and its new token is in use. Raises PluginError when somebody else has just tried
        and failed."""


class NoTurns:
    """For a process that is alone with its credentials."""

    @contextlib.asynccontextmanager
    async def taken(self, record: Credential) -> AsyncIterator[Credential | None]:
        yield record


class SharedTurns:
    """`Turns` over the auth directory and the state server."""

    def __init__(self, manager: CredentialManager, directory: AuthDirectory, shared: SharedState) -> None:
        self._manager: Final = manager
        self._directory: Final = directory
        self._shared: Final = shared

    @contextlib.asynccontextmanager
    async def taken(self, record: Credential) -> AsyncIterator[Credential | None]:
        async with contextlib.AsyncExitStack() as held:
            waited = await self._lock_file(record, held)
            waited |= await self._lock_key(record, held)
            if record.path:
                await self._directory.refresh([record.path])
            known = self._manager.by_id.get(record.id)
            if known is None or _digest(known) != _digest(record):
                log.info("credential.taken_over", credential=record.id, provider=record.provider)
                yield None
                return
            if waited:
                await self._raise_failure(record)
            try:
                yield known
            except (PluginError, PluginTransportError) as error:
                await self._note_failure(record, error)
                raise

    async def _lock_file(self, record: Credential, held: contextlib.AsyncExitStack) -> bool:
        """Hold the lock file; whether somebody else held it before. Without one (no such folder) nobody is waited
        for."""
        if not record.path:
            return False
        path = os.path.join(self._directory.directory, FOLDER, f"{_name_digest(record.id)}.lock")
        try:
            handle = await asyncio.to_thread(_open, path)
        except OSError as error:
            log.warning("credential.refresh_not_locked", credential=record.id, reason=str(error))
            return False
        held.callback(os.close, handle)
        waited = False
        async with _bounded(record):
            while not _lock(handle):
                waited = True
                await asyncio.sleep(POLL_S)
        return waited

    async def _lock_key(self, record: Credential, held: contextlib.AsyncExitStack) -> bool:
        """Hold the key on the state server; a server that is away does not stop a refresh."""
        store, mine, waited = self._shared.store, self._shared.node.encode(), False
        try:
            async with _bounded(record):
                while not await store.set(NAMESPACE, record.id, mine, ttl_s=LOCK_S, only_if_absent=True):
                    waited = True
                    await asyncio.sleep(POLL_S)
        except StateError as error:
            log.warning("credential.refresh_not_shared", credential=record.id, reason=str(error))
            return waited
        held.push_async_callback(self._unlock_key, record.id)
        return waited

    async def _unlock_key(self, credential_id: str) -> None:
        with contextlib.suppress(StateError):
            if await self._shared.store.get(NAMESPACE, credential_id) == self._shared.node.encode():
                await self._shared.store.delete(NAMESPACE, credential_id)

    async def _note_failure(self, record: Credential, error: PluginError | PluginTransportError) -> None:
        body = error.body if isinstance(error, PluginError) else error.to_error_body()
        failure = _Failure(_digest(record), body.message, body.code, body.http_status)
        with contextlib.suppress(StateError):
            await self._shared.store.set(FAILURES, record.id, msgspec.msgpack.encode(failure), ttl_s=FAILURE_S)

    async def _raise_failure(self, record: Credential) -> None:
        """Those who waited for an attempt that failed do not all try again."""
        try:
            data = await self._shared.store.get(FAILURES, record.id)
            failure = msgspec.msgpack.decode(data, type=_Failure) if data is not None else None
        except (StateError, *UNREADABLE):
            return
        if failure is not None and failure.token == _digest(record):
            body = ErrorBody(message=failure.message, code=failure.code, http_status=failure.http_status)
            raise PluginError(body)


@contextlib.asynccontextmanager
async def _bounded(record: Credential) -> AsyncIterator[None]:
    """Somebody who never lets go: reported as a refresh that failed, which is tried again later."""
    try:
        async with asyncio.timeout(WAIT_S):
            yield
    except TimeoutError:
        message = f"another process has been refreshing {record.id!r} for more than {WAIT_S:g} s"
        raise PluginError(ErrorBody(message=message, code="refresh_locked", http_status=503)) from None


def _digest(record: Credential) -> str:
    """Of what a refresh changes; never stored in clear. An operator who writes a note has renewed nothing."""
    members = {name: value for name, value in record.metadata.reveal().items() if name not in KEPT_MEMBERS}
    document = msgspec.json.encode(members, order="sorted")
    secret = record.secret.reveal() if record.secret is not None else ""
    return hashlib.sha256(secret.encode() + b"\0" + document).hexdigest()


def _name_digest(credential_id: str) -> str:
    return hashlib.sha256(credential_id.encode()).hexdigest()[:24]


def _open(path: str) -> int:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(handle: int) -> bool:
    if sys.platform == "win32":
        return True  # several workers need SO_REUSEPORT, which is not there either
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
