"""A host that answers callbacks from a script and remembers what it was asked."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from pluginabi.body import StreamItem
from pluginabi.call import IncomingCall
from pluginabi.codec import decode_params
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, host_error
from pluginabi.frames import Usage
from pluginabi.methods import HOST_METHODS, PERMISSION_OF_CALLBACK
from pluginabi.payloads import callbacks as abi
from pluginabi.payloads.common import Payload
from pluginapi.answers import to_item

Answer: TypeAlias = Payload | PluginError | Callable[[Any], Payload | Awaitable[Payload]]
"""A response, an error, or a function of the request."""


@dataclass(frozen=True, slots=True)
class Callback:
    """One callback a plugin made."""

    method: str
    params: Any
    """The method's request struct."""
    parent: int | None = None


@dataclass(slots=True)
class Script:
    """What a callback answers."""

    answers: list[Answer] = field(default_factory=list)
    items: Sequence[Any] = ()
    error: PluginError | None = None
    usage: Usage | None = None
    hold: asyncio.Event | None = None

    def next_answer(self) -> Answer:
        """The answers in turn; the last one stays."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class FakeHost:
    """Answers `host.*`: what was scripted with `on` and `on_stream`, and `host.kv.*` from a dictionary.

    A callback without its permission is refused as by a real host. Times to live are recorded, nothing expires.
    """

    def __init__(self) -> None:
        self.calls: Final[list[Callback]] = []
        """Every callback, in order, refused ones included."""
        self.kv: Final[dict[str, Any]] = {}
        self.kv_ttl_ms: Final[dict[str, int | None]] = {}
        self.permissions: frozenset[str] = frozenset()
        """Set by the harness."""
        self.closed_streams = 0
        """Streams that ended, cancelled ones included."""
        self.stream_closed: Final = asyncio.Event()
        """Set when the first stream has ended."""
        self._scripts: Final[dict[str, Script]] = {}

    def on(self, method: str, *answers: Answer) -> None:
        """Answer `method` with each of `answers` in turn; the last one stays. Raises KeyError for no host method."""
        self._scripts[_known(method)] = Script(list(answers))

    def on_stream(
        self,
        method: str,
        answer: Answer,
        items: Iterable[Any] = (),
        *,
        error: PluginError | None = None,
        usage: Usage | None = None,
        hold: asyncio.Event | None = None,
    ) -> None:
        """Answer `method` with a stream: `items` as an executor would yield them, then `error` or a clean end.

        With `hold` the stream stays open after its items until the event is set or the plugin closes it.
        """
        self._scripts[_known(method)] = Script([answer], list(items), error, usage, hold)

    def asked(self, method: str) -> list[Any]:
        """The requests of all callbacks to `method`, in order."""
        return [callback.params for callback in self.calls if callback.method == method]

    def script(self, method: str) -> "Script":
        """What `on` or `on_stream` was told. Raises KeyError when that was nothing."""
        return self._scripts[method]

    async def serve(self, call: IncomingCall) -> None:
        """Answer one callback of a session; used by the harness."""
        try:
            params = decode_params(call.method, call.params)
            self.calls.append(Callback(call.method, params, call.parent))
            result = await self.answer(call.method, params)
            if HOST_METHODS[call.method].stream:
                await self._stream(call, result)
            else:
                call.respond(result)
        except PluginError as error:
            call.fail(error.body)
        except PluginTransportError as error:
            call.fail(error.to_error_body())
        except asyncio.CancelledError:
            call.fail(ErrorBody(message="the call was cancelled", code="cancelled", http_status=499))

    async def answer(self, method: str, params: Payload) -> Payload:
        """The scripted result of one callback. Raises `PluginError`."""
        permission = PERMISSION_OF_CALLBACK.get(method)
        if permission is not None and permission not in self.permissions:
            raise host_error("permission_denied", f"{method} needs the permission {permission!r}")
        if method not in self._scripts:
            if method.startswith("host.kv."):
                return self._kv(params)
            raise host_error("method_not_found", f"{method} is not scripted: use FakeHost.on or on_stream")
        answer = self._scripts[method].next_answer()
        if isinstance(answer, PluginError):
            raise answer
        if isinstance(answer, Payload):
            return answer
        result = answer(params)
        return await result if inspect.isawaitable(result) else result

    async def _stream(self, call: IncomingCall, result: Payload) -> None:
        script = self._scripts[call.method]
        stream = await call.open_stream(result)
        try:
            for value in script.items:
                await stream.send(value if isinstance(value, StreamItem) else to_item(value))
            if script.hold is not None:
                await script.hold.wait()
        finally:
            self.closed_streams += 1
            self.stream_closed.set()
        stream.end(script.error.body if script.error is not None else None, script.usage)

    def _kv(self, params: Payload) -> Payload:
        match params:
            case abi.KvGetRequest(key=key):
                found = key in self.kv
                value = Raw(msgspec.json.encode(self.kv[key])) if found else UNSET
                return abi.KvGetResponse(found=found, value=value)
            case abi.KvSetRequest(key=key):
                stored = not (params.only_if_absent and key in self.kv)
                if stored:
                    self.kv[key], self.kv_ttl_ms[key] = msgspec.json.decode(params.value), params.ttl_ms
                return abi.KvSetResponse(stored=stored)
            case abi.KvDeleteRequest(key=key):
                self.kv_ttl_ms.pop(key, None)
                return abi.KvDeleteResponse(deleted=self.kv.pop(key, _MISSING) is not _MISSING)
            case abi.KvExpireRequest(key=key):
                if key in self.kv:
                    self.kv_ttl_ms[key] = params.ttl_ms
                return abi.KvExpireResponse(found=key in self.kv)
            case abi.KvIncrementRequest(key=key):
                if key not in self.kv:
                    self.kv_ttl_ms[key] = params.ttl_ms
                self.kv[key] = self.kv.get(key, 0) + params.by
                return abi.KvIncrementResponse(value=self.kv[key])
        raise host_error("method_not_found", f"{type(params).__name__} is no request of host.kv")


_MISSING: Final = object()


def _known(method: str) -> str:
    """Raises KeyError, so that a typo in a script is found at once."""
    return HOST_METHODS[method].name
