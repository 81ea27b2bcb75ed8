"""host.kv.*: a plugin's own small store. A miss is an answer, a failure is an error."""

from collections.abc import Callable
from typing import Final

from msgspec import Raw

from host.runtime.scope import CallScope
from host.state.store import NotAnInteger, StateError, StateFull, StateStore
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.callbacks import (
    KvDeleteRequest,
    KvDeleteResponse,
    KvExpireRequest,
    KvExpireResponse,
    KvGetRequest,
    KvGetResponse,
    KvIncrementRequest,
    KvIncrementResponse,
    KvSetRequest,
    KvSetResponse,
)

MAX_KEY_CHARACTERS: Final = 512
MAX_VALUE_BYTES: Final = 1024 * 1024


class KvCallbacks:
    """Serves the methods from one store; every plugin has a namespace of its own.

    `nodes` says how many hosts share it: while a shared store cannot be reached, the error `kv_unavailable` carries the
    number, so that a plugin which counts for all of them can go on with its share.
    """

    def __init__(self, store: StateStore, *, nodes: Callable[[], int] = lambda: 1) -> None:
        self._store: Final = store
        self._nodes: Final = nodes

    async def get(self, scope: CallScope, params: KvGetRequest) -> KvGetResponse:
        try:
            value = await self._store.get(_namespace(scope), _key(params.key))
        except StateError as error:
            raise self._failed(error) from error
        return KvGetResponse() if value is None else KvGetResponse(found=True, value=Raw(value))

    async def set(self, scope: CallScope, params: KvSetRequest) -> KvSetResponse:
        value = bytes(params.value)
        if len(value) > MAX_VALUE_BYTES:
            raise _refused(413, "kv_value_too_large", f"a value is at most {MAX_VALUE_BYTES} bytes, not {len(value)}")
        try:
            stored = await self._store.set(
                _namespace(scope),
                _key(params.key),
                # It is sent inside a frame some day: JSON needs no line breaks, frames allow none.
                value.replace(b"\n", b" ").replace(b"\r", b" "),
                ttl_s=_seconds(params.ttl_ms),
                only_if_absent=params.only_if_absent,
            )
        except StateError as error:
            raise self._failed(error) from error
        return KvSetResponse(stored=stored)

    async def delete(self, scope: CallScope, params: KvDeleteRequest) -> KvDeleteResponse:
        try:
            return KvDeleteResponse(deleted=await self._store.delete(_namespace(scope), _key(params.key)))
        except StateError as error:
            raise self._failed(error) from error

    async def expire(self, scope: CallScope, params: KvExpireRequest) -> KvExpireResponse:
        try:
            found = await self._store.expire(_namespace(scope), _key(params.key), _seconds(params.ttl_ms))
        except StateError as error:
            raise self._failed(error) from error
        return KvExpireResponse(found=found)

    async def increment(self, scope: CallScope, params: KvIncrementRequest) -> KvIncrementResponse:
        try:
            value = await self._store.increment(
                _namespace(scope), _key(params.key), params.by, ttl_s=_seconds(params.ttl_ms)
            )
        except StateError as error:
            raise self._failed(error) from error
        return KvIncrementResponse(value=value)

    def _failed(self, error: StateError) -> PluginError:
        if isinstance(error, NotAnInteger):
            return _refused(409, "kv_not_an_integer", str(error))
        if isinstance(error, StateFull):
            return _refused(507, "kv_full", str(error))
        # Away, or there and not able to do it: others may have the same trouble and count on.
        return _refused(503, "kv_unavailable", str(error), nodes=self._nodes())


def _namespace(scope: CallScope) -> str:
    return f"plugin:{scope.plugin_id}"


def _key(key: str) -> str:
    if not key or len(key) > MAX_KEY_CHARACTERS:
        raise _refused(400, "kv_key_invalid", f"a key has 1 to {MAX_KEY_CHARACTERS} characters")
    return key


def _seconds(ttl_ms: int | None) -> float | None:
    if ttl_ms is None:
        return None
    if ttl_ms <= 0:
        raise _refused(400, "kv_ttl_invalid", "ttl_ms is at least 1")
    return ttl_ms / 1000


def _refused(http_status: int, code: str, message: str, **details: int) -> PluginError:
    return PluginError(ErrorBody(message=message, code=code, http_status=http_status, origin="host", details=details))
