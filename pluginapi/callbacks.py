"""Typed wrappers of the host's methods. Every one raises `PluginError` with the status and fields the host gave."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw

from pluginabi.body import StreamItem
from pluginabi.frames import Usage
from pluginabi.immutable import Headers
from pluginabi.payloads import callbacks as abi
from pluginabi.payloads.common import CredentialHandle
from pluginapi.answers import BodyLike, HeadersLike, to_body, to_headers

if TYPE_CHECKING:
    from pluginapi.context import CallbackPort, ItemSource


class _Closable(Protocol):
    async def aclose(self) -> None: ...


S = TypeVar("S", bound=_Closable)


class _ResultStream:
    """An opened stream: the result that opened it, then its items. An async context manager that closes it."""

    def __init__(self, status: int, headers: Headers, items: "ItemSource") -> None:
        self.status: Final = status
        self.headers: Final = headers
        self._items: Final = items

    @property
    def usage(self) -> Usage | None:
        """Set once the stream has ended, if the other side knew it."""
        return self._items.usage

    @property
    def items(self) -> "ItemSource":
        """What iterating takes its values from; for whoever passes the stream on as it is."""
        return self._items

    async def aclose(self) -> None:
        """Stop the transfer; idempotent."""
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class HttpStream(_ResultStream):
    """The answer of an upstream whose body arrives piece by piece; iterating yields non-empty `bytes`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for item in self._items:
            part = item.raw if item.raw is not UNSET else item.body
            if part is not UNSET and (data := part.to_bytes()):
                yield data

    async def read(self) -> bytes:
        """All that is left, as one value."""
        return b"".join([part async for part in self])


class ModelStream(_ResultStream):
    """The stream a client would have got; iterating yields `StreamItem`, never progress."""

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        async for item in self._items:
            if not item.is_progress:
                yield item


class Opening(Generic[S]):
    """A stream about to be opened: `async with ctx.http.stream(…) as response`, or `await` it and close it yourself."""

    __slots__ = ("_open", "_stream")

    def __init__(self, open_stream: Callable[[], Awaitable[S]]) -> None:
        self._open = open_stream
        self._stream: S | None = None

    def __await__(self) -> Generator[Any, Any, S]:
        return self._open().__await__()

    async def __aenter__(self) -> S:
        self._stream = await self._open()
        return self._stream

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.aclose()


class _Api:
    """Holds the way to the host."""

    __slots__ = ("_port",)

    def __init__(self, port: "CallbackPort") -> None:
        self._port = port


class Http(_Api):
    """host.http.*: any status is an answer, only a failed transfer raises. Redirects are not followed."""

    def send(self, request: abi.HttpRequest, *, timeout_ms: int | None = None) -> Coroutine[Any, Any, abi.HttpResponse]:
        """`do` for a request in the contract's own form: header names in lower case, values in lists."""
        answer = self._port.call("host.http.do", request, timeout_ms=timeout_ms)
        return cast(Coroutine[Any, Any, abi.HttpResponse], answer)

    def do(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersLike | None = None,
        body: BodyLike = None,
        credential: CredentialHandle | str | None = None,
        decompress: bool = True,
        timeout_ms: int | None = None,
    ) -> Coroutine[Any, Any, abi.HttpResponse]:
        """Send a request and wait for the whole answer. With `credential` (a handle) the host attaches its secret,
        its configured headers and its proxy, but only towards hosts bound to that credential."""
        request = _http_request(method, url, headers, body, credential, decompress)
        return self.send(request, timeout_ms=timeout_ms)

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersLike | None = None,
        body: BodyLike = None,
        credential: CredentialHandle | str | None = None,
        decompress: bool = True,
        timeout_ms: int | None = None,
    ) -> Opening[HttpStream]:
        """Send a request; the stream opens when status and headers are there (`timeout_ms` counts until then)."""
        request = _http_request(method, url, headers, body, credential, decompress)
        return self.open(request, timeout_ms=timeout_ms)

    def open(self, request: abi.HttpRequest, *, timeout_ms: int | None = None) -> Opening[HttpStream]:
        """`stream` for a request in the contract's own form, as for `send`."""

        async def opened() -> HttpStream:
            result, items = await self._port.stream("host.http.do_stream", request, timeout_ms=timeout_ms)
            response = cast(abi.HttpResponse, result)
            return HttpStream(response.status, response.headers, items)

        return Opening(opened)


class Model(_Api):
    """host.model.*: the answer a client of this gateway would have got; this plugin's own hooks are skipped."""

    async def execute(
        self,
        model: str,
        body: BodyLike,
        *,
        entry_protocol: str = "openai",
        exit_protocol: str = "",
        headers: HeadersLike | None = None,
        query: HeadersLike | None = None,
        alt: str = "",
        timeout_ms: int | None = None,
    ) -> abi.ModelCallResponse:
        """`exit_protocol` empty means `entry_protocol`; given headers or query replace the inherited ones."""
        request = _model_request(model, body, entry_protocol, exit_protocol, headers, query, alt)
        result = await self._port.call("host.model.execute", request, timeout_ms=timeout_ms)
        return cast(abi.ModelCallResponse, result)

    def stream(
        self,
        model: str,
        body: BodyLike,
        *,
        entry_protocol: str = "openai",
        exit_protocol: str = "",
        headers: HeadersLike | None = None,
        query: HeadersLike | None = None,
        alt: str = "",
        timeout_ms: int | None = None,
    ) -> Opening[ModelStream]:
        """The same as a stream of items."""
        request = _model_request(model, body, entry_protocol, exit_protocol, headers, query, alt)

        async def opened() -> ModelStream:
            result, items = await self._port.stream("host.model.execute_stream", request, timeout_ms=timeout_ms)
            response = cast(abi.ModelCallResponse, result)
            return ModelStream(response.status, response.headers, items)

        return Opening(opened)


class Kv(_Api):
    """host.kv.*: JSON values under keys of this plugin. A failure of the store raises and is never a miss."""

    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` when there is none (a stored null is None, so pass a default to tell them apart)."""
        result = cast(abi.KvGetResponse, await self._port.call("host.kv.get", abi.KvGetRequest(key=key)))
        if not result.found:
            return default
        return None if result.value is UNSET else msgspec.json.decode(result.value)

    async def set(self, key: str, value: Any, *, ttl_ms: int | None = None, only_if_absent: bool = False) -> bool:
        """Whether the value was stored: false only when asked for `only_if_absent` and there was one."""
        encoded = Raw(msgspec.json.encode(value))
        request = abi.KvSetRequest(key=key, value=encoded, ttl_ms=ttl_ms, only_if_absent=only_if_absent)
        return cast(abi.KvSetResponse, await self._port.call("host.kv.set", request)).stored

    async def delete(self, key: str) -> bool:
        """Whether there was something to delete."""
        result = await self._port.call("host.kv.delete", abi.KvDeleteRequest(key=key))
        return cast(abi.KvDeleteResponse, result).deleted

    async def expire(self, key: str, ttl_ms: int | None) -> bool:
        """Set the remaining life (None: no limit); whether the key exists."""
        result = await self._port.call("host.kv.expire", abi.KvExpireRequest(key=key, ttl_ms=ttl_ms))
        return cast(abi.KvExpireResponse, result).found

    async def increment(self, key: str, by: int = 1, *, ttl_ms: int | None = None) -> int:
        """The value after adding `by` to an integer (0 when absent); `ttl_ms` counts only on creation."""
        request = abi.KvIncrementRequest(key=key, by=by, ttl_ms=ttl_ms)
        return cast(abi.KvIncrementResponse, await self._port.call("host.kv.increment", request)).value


class Auth(_Api):
    """host.auth.*: the credential files of the host."""

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """One object per credential, secrets masked."""
        result = await self._port.call("host.auth.list", abi.AuthListRequest())
        return cast(abi.AuthListResponse, result).files

    async def get(self, auth_index: str) -> abi.AuthGetResponse:
        """The file of one credential."""
        result = await self._port.call("host.auth.get", abi.AuthGetRequest(auth_index=auth_index))
        return cast(abi.AuthGetResponse, result)

    async def get_runtime(self, auth_index: str) -> Mapping[str, Any]:
        """The list entry of one credential."""
        result = await self._port.call("host.auth.get_runtime", abi.AuthGetRequest(auth_index=auth_index))
        return cast(abi.AuthGetRuntimeResponse, result).auth

    async def save(self, name: str, file: Any) -> abi.AuthSaveFileResponse:
        """Store a credential file (a JSON-like value) under `name`."""
        request = abi.AuthSaveFileRequest(name=name, file=Raw(msgspec.json.encode(file)))
        return cast(abi.AuthSaveFileResponse, await self._port.call("host.auth.save", request))


def _http_request(
    method: str,
    url: str,
    headers: HeadersLike | None,
    body: BodyLike,
    credential: CredentialHandle | str | None,
    decompress: bool,
) -> abi.HttpRequest:
    return abi.HttpRequest(
        method=method,
        url=url,
        headers=to_headers(headers or {}),
        body=to_body(body),
        credential=credential.handle if isinstance(credential, CredentialHandle) else credential,
        decompress=decompress,
    )


def _model_request(
    model: str,
    body: BodyLike,
    entry_protocol: str,
    exit_protocol: str,
    headers: HeadersLike | None,
    query: HeadersLike | None,
    alt: str,
) -> abi.ModelCallRequest:
    return abi.ModelCallRequest(
        model=model,
        body=to_body(body),
        entry_protocol=entry_protocol,
        exit_protocol=exit_protocol,
        headers=to_headers(headers or {}),
        query=to_headers(query or {}),
        alt=alt,
    )
