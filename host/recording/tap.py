"""Listens to the calls of one plugin while a recording runs; when none does, nothing of this is in the way."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Self

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from host.errors import to_error_body
from host.recording.format import MAX_ITEMS, MAX_LINE_BYTES, Callback, CallLine, Head, Tail
from host.recording.redact import Redactor
from host.runtime.callbacks import Opening, Unary
from host.runtime.handle import Binding, ItemStream, PluginHandle, PluginState, Reply
from host.runtime.scope import CallScope
from pluginabi.body import StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.common import Payload

SECRET_METHODS: Final = ("auth.", "frontend_auth.")
"""Their params are secrets and little else, so they are counted only."""
SECRET_CALLBACKS: Final = ("host.auth.",)
QUEUE_LINES: Final = 4096
QUEUE_BYTES: Final = 16 * 1024 * 1024


class Note(Struct, kw_only=True):
    """A call, or a callback, that is going on. `told` is what it came to, as plain values."""

    number: int
    method: str
    params: bytes
    request_id: str = ""
    began_s: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)
    callbacks: list["Note"] = field(default_factory=list)

    def answered(self, result: Any, usage: Usage | None) -> None:
        """A result arrived."""
        self.told["answer"] = msgspec.json.encode(result)
        if usage is not None:
            self.told["usage"] = msgspec.to_builtins(usage)

    def failed(self, error: BaseException) -> None:
        """It ended with an error, or was cancelled."""
        if isinstance(error, PluginError | PluginTransportError):
            body = to_error_body(error)
        elif isinstance(error, asyncio.CancelledError):
            body = ErrorBody(message="cancelled", code="cancelled", http_status=499)
        else:
            body = ErrorBody(message=type(error).__name__)
        self.told["error"] = msgspec.json.encode(body)

    def streamed(self, item: StreamItem) -> None:
        """An item passed."""
        if item.is_progress:
            return
        items = self.told.setdefault("items", [])
        if len(items) < MAX_ITEMS:
            items.append(msgspec.json.encode(item))
        else:
            self.told["items_cut"] = True


class Recorder:
    """One recording: the `CallTap` of the invoker and of the callbacks while it runs.

    `lines()` yields the file's lines until `stop` is called, the time is up or `max_bytes` is reached.
    """

    def __init__(self, head: Head, redactor: Redactor, *, max_bytes: int) -> None:
        self._head: Final = head
        self._redactor: Final = redactor
        self._max_bytes: Final = max_bytes
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queued_bytes = 0
        self._written_bytes = 0
        self._began_s: Final = time.monotonic()
        self._numbers = self._calls = self._lost = self._not_recorded = 0
        self._open: dict[int, Note] = {}
        """By the identity of the call's scope, which lives as long as the call."""
        self._reason = ""
        self._put(redactor.line(head))

    def handle(self, binding: Binding) -> PluginHandle:
        """What to call instead of the binding's own handle."""
        if binding.plugin_id != self._head.plugin or self._reason:
            return binding.handle
        if binding.method.startswith(SECRET_METHODS):
            self._not_recorded += 1
            return binding.handle
        return _TappedHandle(self, binding.handle)

    def unary(self, scope: CallScope, method: str, serve: Unary) -> Unary:
        """What to serve a callback with instead."""
        call = self._open.get(id(scope))
        return serve if call is None else _tapped_unary(call, method, serve)

    def opening(self, scope: CallScope, method: str, serve: Opening) -> Opening:
        """The same for a callback that opens a stream."""
        call = self._open.get(id(scope))
        return serve if call is None else _tapped_opening(call, method, serve)

    def began(self, method: str, params: Payload, scope: CallScope) -> Note:
        """A call begins."""
        self._numbers += 1
        note = Note(
            number=self._numbers,
            method=method,
            params=msgspec.json.encode(params),
            request_id=scope.request.request_id if scope.request is not None else "",
            began_s=time.monotonic(),
        )
        self._open[id(scope)] = note
        return note

    def ended(self, note: Note, scope: CallScope) -> None:
        """A call is over: what it came to becomes a line."""
        if self._open.pop(id(scope), None) is None or self._reason:
            return
        now_s = time.monotonic()
        line = self._line(note, now_s)
        if len(line) > MAX_LINE_BYTES:
            bare = Note(number=note.number, method=note.method, params=b"null", began_s=note.began_s)
            line = self._line(bare, now_s, omitted=f"{len(line)} bytes are more than a line holds")
        if self._written_bytes + len(line) > self._max_bytes:
            self.stop("size")
        elif self._queued_bytes + len(line) > QUEUE_BYTES or self._queue.qsize() >= QUEUE_LINES:
            self._lost += 1
        else:
            self._calls += 1
            self._put(line)

    def stop(self, reason: str) -> None:
        """End the recording; later calls pass by. Idempotent."""
        if self._reason:
            return
        self._reason = reason
        tail = Tail(
            reason=reason,
            calls=self._calls,
            unfinished=len(self._open),
            lost=self._lost,
            not_recorded=self._not_recorded,
        )
        self._put(msgspec.json.encode(tail))
        self._queue.put_nowait(None)

    async def lines(self, *, heartbeat_s: float) -> AsyncIterator[bytes]:
        """The lines, each with its LF, as they are made; an empty one when there was none for `heartbeat_s`."""
        while True:
            try:
                async with asyncio.timeout(heartbeat_s):
                    line = await self._queue.get()
            except TimeoutError:
                yield b"\n"
                continue
            if line is None:
                return
            self._queued_bytes -= len(line)
            yield line + b"\n"

    def _put(self, line: bytes) -> None:
        self._queued_bytes += len(line)
        self._written_bytes += len(line) + 1
        self._queue.put_nowait(line)

    def _line(self, note: Note, now_s: float, *, omitted: str = "") -> bytes:
        before = self._redactor.masked
        line = CallLine(
            number=note.number,
            method=note.method,
            request_id=note.request_id,
            at_ms=round((note.began_s - self._began_s) * 1000, 3),
            duration_ms=round((now_s - note.began_s) * 1000, 3),
            params=self._redactor.plain(note.params),
            callbacks=[self._callback(callback) for callback in note.callbacks],
            omitted=omitted,
            **self._told(note),
        )
        return self._redactor.line(replace(line, masked=self._redactor.masked - before))

    def _callback(self, note: Note) -> Callback:
        if note.method.startswith(SECRET_CALLBACKS):
            return Callback(method=note.method)
        return Callback(method=note.method, params=self._redactor.plain(note.params), **self._told(note))

    def _told(self, note: Note) -> dict[str, Any]:
        told = dict(note.told)
        for name in ("answer", "error"):
            if name in told:
                told[name] = self._redactor.plain(told[name])
        if "items" in told:
            told["items"] = [self._redactor.plain(item) for item in told["items"]]
        return told


class _TappedHandle:
    """A plugin's handle that writes down what passes."""

    def __init__(self, recorder: Recorder, inner: PluginHandle) -> None:
        self._recorder: Final = recorder
        self._inner: Final = inner

    @property
    def plugin_id(self) -> str:
        return self._inner.plugin_id

    @property
    def state(self) -> PluginState:
        return self._inner.state

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        """As `PluginHandle.call`."""
        note = self._recorder.began(method, params, scope)
        try:
            reply = await self._inner.call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)
        except BaseException as error:
            note.failed(error)
            self._recorder.ended(note, scope)
            raise
        note.answered(reply.result, reply.usage)
        if reply.items is None:
            self._recorder.ended(note, scope)
            return reply
        items = _TappedItems(reply.items, note, ended=lambda: self._recorder.ended(note, scope))
        return Reply(result=reply.result, usage=reply.usage, items=items)


class _TappedItems:
    """A stream's items on their way through; `ended` is told once."""

    def __init__(self, inner: ItemStream, note: Note, *, ended: Callable[[], None]) -> None:
        self.usage: Usage | None = None
        self._inner: Final = inner
        self._iterator: Final = aiter(inner)
        self._note: Final = note
        self._ended: Callable[[], None] | None = ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        try:
            item: StreamItem = await self._iterator.__anext__()
        except StopAsyncIteration:
            self._end()
            raise
        except BaseException as error:
            self._note.failed(error)
            self._end()
            raise
        self._note.streamed(item)
        return item

    async def aclose(self, reason: str = "client_gone") -> None:
        """As `ItemStream.aclose`."""
        if self._ended is not None:
            self._note.told["items_cut"] = True
        try:
            await self._inner.aclose(reason)
        finally:
            self._end()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        self.usage = self._inner.usage
        if self.usage is not None:
            self._note.told["usage"] = msgspec.to_builtins(self.usage)
        ended()


def _tapped_unary(call: Note, method: str, serve: Unary) -> Unary:
    async def tapped(scope: CallScope, params: Any) -> Payload:
        note = _asked(call, method, params)
        try:
            result = await serve(scope, params)
        except BaseException as error:
            note.failed(error)
            raise
        note.answered(result, None)
        return result

    return tapped


def _tapped_opening(call: Note, method: str, serve: Opening) -> Opening:
    async def tapped(scope: CallScope, params: Any) -> tuple[Payload, ItemStream]:
        note = _asked(call, method, params)
        try:
            result, items = await serve(scope, params)
        except BaseException as error:
            note.failed(error)
            raise
        note.answered(result, None)
        return result, _TappedItems(items, note, ended=lambda: None)

    return tapped


def _asked(call: Note, method: str, params: Any) -> Note:
    note = Note(number=0, method=method, params=msgspec.json.encode(params))
    call.callbacks.append(note)
    return note
