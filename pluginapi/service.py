"""Serves the calls of one session with one plugin: frames on one side, the dispatcher on the other."""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from pluginabi.body import Body, StreamItem
from pluginabi.call import IncomingCall, IncomingStream
from pluginabi.codec import decode_params, decode_result
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, host_error
from pluginabi.frames import Log
from pluginabi.payloads.common import Payload
from pluginabi.session import Session
from pluginapi.context import Context
from pluginapi.dispatch import Dispatcher, DispatchReply
from pluginapi.freezing import frozen

ENCODE_ERRORS: Final = (TypeError, ValueError, msgspec.MsgspecError, RecursionError)
"""What encoding raises for values that JSON cannot carry (lone surrogates are a ValueError)."""


class PluginService:
    """Runs every call of the host in a task of its own, until it is answered or cancelled."""

    def __init__(self, dispatcher: Dispatcher, *, plugin_id: str, binary_bodies: bool = False) -> None:
        """`binary_bodies`: the carrier takes bytes as they are (gRPC), so that no body has to become text."""
        self._dispatcher: Final = dispatcher
        self._plugin_id: Final = plugin_id
        self._wire_item: Final[Callable[[StreamItem], StreamItem]] = _as_is if binary_bodies else text_item
        self.was_shut_down = False
        """Whether the host called `plugin.shutdown`."""
        self._session: Session | None = None
        self._tasks: Final[dict[IncomingCall, asyncio.Task[None]]] = {}
        self._thread_id: Final = threading.get_ident()
        self._loop: Final = asyncio.get_running_loop()

    def attach(self, session: Session) -> None:
        """The session whose handler `handle` is; before the first call."""
        self._session = session

    def handle(self, call: IncomingCall) -> None:
        """A `CallHandler`: starts a task and returns."""
        if call.method == "plugin.shutdown":
            self.was_shut_down = True
        # It takes itself out of `_tasks`: a callback on its end would cost every call one more turn of the loop.
        self._tasks[call] = self._loop.create_task(self._serve(call), name=call.method)
        call.on_cancel(functools.partial(self._cancel, call))

    def _cancel(self, call: IncomingCall, _: str = "") -> None:
        task = self._tasks.get(call)
        if task is None:
            return
        if inspect.getcoroutinestate(cast(Any, task.get_coro())) == inspect.CORO_CREATED:
            # A task that is cancelled before it began never runs, and nobody would close the call.
            del self._tasks[call]
            self._fail(call, _cancelled(call), None)
        task.cancel()

    async def stop(self) -> None:
        """Cancel what runs and wait until every call has its closing frame."""
        running = dict(self._tasks)
        for call in running:
            self._cancel(call)
        if running:
            await asyncio.wait(running.values())

    async def _serve(self, call: IncomingCall) -> None:
        reply: DispatchReply | None = None
        try:
            params = frozen(decode_params(call.method, call.params))
            reply = await self._dispatcher.dispatch(call.method, params, self._context(call, params))
            if reply.items is None:
                call.respond(reply.result, reply.usage)
            else:
                await self._stream(call, reply)
        except PluginError as error:
            self._fail(call, error.body, reply)
        except PluginTransportError as error:
            self._fail(call, error.to_error_body(), reply)
        except asyncio.CancelledError:
            self._fail(call, _cancelled(call), reply)
        except ENCODE_ERRORS as error:
            text = f"{call.method} answered what JSON cannot carry: {error}"
            self._fail(call, ErrorBody(message=text), reply)
        finally:
            self._tasks.pop(call, None)

    async def _stream(self, call: IncomingCall, reply: DispatchReply) -> None:
        try:
            if not call.stream:
                raise PluginError(f"the caller of {call.method} cannot take a stream")
            outgoing = await call.open_stream(reply.result)
            async for item in reply.items:
                await outgoing.send(self._wire_item(item))
            # The author's cleanup may still report usage.
            await reply.items.aclose()
            outgoing.end(None, reply.usage_of())
        finally:
            await reply.items.aclose()

    def _fail(self, call: IncomingCall, error: ErrorBody, reply: DispatchReply | None) -> None:
        usage = reply.usage_of() if reply is not None else None
        try:
            call.fail(error, usage)
        except ENCODE_ERRORS:
            # The author's details cannot be encoded; status and code matter more.
            call.fail(ErrorBody(message=error.message, code=error.code, http_status=error.http_status), usage)

    def _context(self, call: IncomingCall, params: Payload) -> Context:
        assert self._session is not None
        port = CallPort(self, self._session, call)
        return Context(
            plugin_id=self._plugin_id,
            request_id=getattr(params, "request_id", ""),
            port=port,
            log=port.log,
            permissions=self._dispatcher.permissions,
            deadline_s=call.deadline,
            cancelled=port.cancelled,
        )

    def detached_context(self) -> Context:
        """A context that belongs to no call."""
        assert self._session is not None
        port = CallPort(self, self._session, None)
        return Context(
            plugin_id=self._plugin_id,
            port=port,
            log=port.log,
            permissions=self._dispatcher.permissions,
            cancelled=port.cancelled,
        )

    def log(self, frame: Log) -> None:
        """Send a log line; from any thread."""
        if threading.get_ident() == self._thread_id:
            self._send_log(frame)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send_log, frame)

    def _send_log(self, frame: Log) -> None:
        if self._session is None:
            return
        try:
            self._session.log(frame)
        except ENCODE_ERRORS:
            self._session.log(replace(frame, fields={name: repr(value) for name, value in frame.fields.items()}))


class CallPort:
    """The way to the host on behalf of one of its calls: callbacks as `call` frames, log lines, its cancellation."""

    __slots__ = ("_call", "_service", "_session")

    def __init__(self, service: PluginService, session: Session, call: IncomingCall | None) -> None:
        """`call` None: on behalf of the plugin itself."""
        self._service = service
        self._session = session
        self._call = call

    def log(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """A `LogSink`."""
        self._service.log(Log(level=level, event=event, fields=fields, parent=self._parent))

    def cancelled(self) -> asyncio.Event:
        """The signal for `Context.cancelled`."""
        return self._call.cancelled if self._call is not None else asyncio.Event()

    def detached(self) -> Context:
        """See `CallbackPort`."""
        return self._service.detached_context()

    @property
    def _parent(self) -> int | None:
        return self._call.id if self._call is not None else None

    async def call(self, method: str, params: Payload, *, timeout_ms: int | None = None) -> Payload:
        """See `CallbackPort`."""
        result, _ = await self._ask(method, params, timeout_ms, stream=False)
        return cast(Payload, result)

    async def stream(
        self, method: str, params: Payload, *, timeout_ms: int | None = None
    ) -> tuple[Payload, "CallbackItems"]:
        """See `CallbackPort`."""
        if "callback_streams" not in self._session.features:
            raise host_error("method_not_found", f"{method}: this host offers no streams for callbacks")
        result, items = await self._ask(method, params, timeout_ms, stream=True)
        if items is None:
            raise host_error("plugin_protocol_error", f"{method}: the host answered without a stream")
        return result, CallbackItems(items)

    async def _ask(
        self, method: str, params: Payload, timeout_ms: int | None, *, stream: bool
    ) -> tuple[Any, IncomingStream | None]:
        try:
            outgoing = self._session.start_call(
                method, params, timeout_ms=timeout_ms, parent=self._parent, stream=stream
            )
            reply = await outgoing.reply()
            return frozen(decode_result(method, reply.result, plugin_id="host")), reply.items
        except PluginTransportError as error:
            raise PluginError(error.to_error_body()) from error


class CallbackItems:
    """The items of a callback's stream; like in-process, nothing but `PluginError` is raised."""

    def __init__(self, items: IncomingStream) -> None:
        self._items: Final = items

    @property
    def usage(self) -> Any:
        return self._items.usage

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        try:
            async for item in self._items:
                yield item
        except PluginTransportError as error:
            raise PluginError(error.to_error_body()) from error

    async def aclose(self, reason: str = "client_gone") -> None:
        await self._items.aclose(reason)


def text_item(item: StreamItem) -> StreamItem:
    """The item as JSON carries it best: raw bytes as text when they are UTF-8, else as base64."""
    if item.raw is not UNSET and item.raw.base64 is not UNSET:
        # Never as JSON: raw data must arrive byte by byte, and JSON may be spelt anew on its way.
        try:
            return StreamItem(event=item.event, raw=Body(text=str(item.raw.base64, "utf-8")))
        except UnicodeDecodeError:
            return item
    return item


def _as_is(item: StreamItem) -> StreamItem:
    return item


def _cancelled(call: IncomingCall) -> ErrorBody:
    return host_error("cancelled", f"the call was cancelled: {call.cancel_reason or 'shutdown'}").body
