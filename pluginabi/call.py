"""One call, seen from the side that made it and from the side that serves it, and the streams they open.

Everything here runs on the session's event loop; nothing here knows a carrier.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import UNSET, Raw, Struct, UnsetType

from pluginabi.body import StreamItem
from pluginabi.credit import Returns, Window
from pluginabi.errors import AbiError, ErrorBody, PluginTimeout, host_error
from pluginabi.frames import Call, Cancel, CancelReason, Credit, End, Item, Result, Usage
from pluginabi.limits import CANCEL_GRACE_S, STREAM_OVERFLOW_BYTES, STREAM_WINDOW_BYTES
from pluginabi.payloads.common import Payload

if TYPE_CHECKING:
    from pluginabi.incoming import IncomingCalls
    from pluginabi.outgoing import OutgoingCalls

_OVERFLOW_ITEMS: Final = 65_536
"""Bounds the objects behind `STREAM_OVERFLOW_BYTES` when items are tiny."""


class CallReply(Struct, frozen=True):
    """The `result` of a call that succeeded."""

    result: Raw | UnsetType = UNSET
    """Undecoded; `codec.decode_result` makes the method's struct of it."""
    usage: Usage | None = None
    """Of the closing frame; with `items` it is the stream's `usage`, once that has ended."""
    items: "IncomingStream | None" = None


class OutgoingCall:
    """A call this side made. Made by `Session.start_call`."""

    __slots__ = (
        "_closed_callbacks",
        "_future",
        "_table",
        "cancelled",
        "children",
        "id",
        "method",
        "stream",
        "takes_stream",
        "timeout_ms",
        "usage",
    )

    def __init__(self, table: "OutgoingCalls", frame: Call) -> None:
        self.id: Final = frame.id
        self.method: Final = frame.method
        self.takes_stream: Final = frame.stream
        self.timeout_ms: Final = frame.timeout_ms
        self.usage: Usage | None = None
        """Of the closing frame, a cancelled call's included; None until then."""
        self.stream: IncomingStream | None = None
        self.cancelled = False
        self.children: dict[int, IncomingCall] | None = None
        """Callbacks made on behalf of this call that still run; they end with it."""
        self._table = table
        self._closed_callbacks: list[Callable[[], None]] | None = None
        # Holds an answer or an exception as its result: nobody has to fetch it.
        self._future: asyncio.Future[CallReply | AbiError] = table.loop.create_future()

    async def reply(self) -> CallReply:
        """Wait for the `result`.

        Raises PluginError (normalised, origin set), PluginTransportError, PluginTimeout at `timeout_ms`. Cancelling
        the awaiting task cancels the call with reason `client_gone`.
        """
        try:
            answer = await self._future
        except asyncio.CancelledError:
            self.cancel("client_gone")
            raise
        if isinstance(answer, AbiError):
            raise answer
        return answer

    def cancel(self, reason: CancelReason = "client_gone") -> None:
        """The answer is no longer wanted: whoever waits gets PluginError `cancelled`. No effect on a closed call."""
        self.abandon(reason, host_error("cancelled", f"the call was cancelled: {reason}"))

    def on_closed(self, callback: Callable[[], None]) -> None:
        """Call back once, when the callee is done with this call: its closing frame came, or the session ended.

        That may be long after a timeout or a cancellation: a plugin's slot is free only then.
        """
        if self._table.knows(self):
            self._closed_callbacks = [*(self._closed_callbacks or ()), callback]
        else:
            callback()

    # -- for the session

    def abandon(self, reason: CancelReason, outcome: AbiError | None) -> None:
        """Cancel, and let waiters see `outcome` (None: a stream that its consumer closed)."""
        if self.cancelled or not self._table.knows(self):
            return
        self.cancelled = True
        self._settle(outcome)
        self._table.send_cancel(self, Cancel(id=self.id, reason=reason))

    def opened(self, frame: Result, stream: "IncomingStream") -> None:
        """The `result` that opens a stream."""
        self.stream = stream
        if not self._future.done():
            self._future.set_result(CallReply(frame.result, frame.usage, stream))

    def answered(self, frame: Result) -> None:
        """The `result` that closes the call, and its success."""
        self.usage = frame.usage
        if not self._future.done():
            self._future.set_result(CallReply(frame.result, frame.usage))
        if self.children is not None or self._closed_callbacks is not None:
            self.release()

    def ended(self, outcome: AbiError | None, usage: Usage | None) -> None:
        """The call is closed: by an error, by the end of its stream, or by the end of the session."""
        self.usage = usage
        self._settle(outcome, usage)
        self.release()

    def release(self) -> None:
        """Tell those who wait for the callee to be done, and end the callbacks made on behalf of this call."""
        self.end_children()
        callbacks, self._closed_callbacks = self._closed_callbacks, None
        for callback in callbacks or ():
            callback()

    def end_children(self) -> None:
        """Cancel the callbacks that still run."""
        children, self.children = self.children, None
        for child in [*children.values()] if children is not None else ():
            child.cancel_from_caller("parent_closed")

    def _settle(self, outcome: AbiError | None, usage: Usage | None = None) -> None:
        if not self._future.done():
            self._future.set_result(outcome if outcome is not None else CallReply())
        if self.stream is not None:
            self.stream.finish(outcome, usage)

    def time_is_up(self) -> None:
        """The deadline passed; only a call without a `result` cares."""
        if not self._future.done():
            timeout_ms = cast(int, self.timeout_ms)
            self.abandon("deadline", PluginTimeout(self._table.link.peer, self.method, timeout_ms=timeout_ms))


class IncomingStream:
    """The items of an open stream, in order. Credit goes back when an item is done with: at the next `anext`.

    Iterating raises what the `end` frame carried, or PluginTransportError when the session ended; what arrived before
    is delivered first. Cancelling an iterating task leaves the stream open: whoever iterates calls `aclose`.
    """

    def __init__(self, table: "OutgoingCalls", call: OutgoingCall) -> None:
        self.usage: Usage | None = None
        """Of the closing frame; set once the stream has ended."""
        self._table = table
        self._call = call
        self._buffer: deque[tuple[StreamItem, int]] = deque()
        self.buffered_bytes = 0
        self._window: Window | None = Window() if "credit" in table.link.features else None
        self._returns = Returns()
        self._in_use = -1
        self._over = False
        self._error: AbiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> "IncomingStream":
        return self

    async def __anext__(self) -> StreamItem:
        if self._in_use >= 0:
            self._give_back()
        while not self._buffer:
            if self._over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = self._table.loop.create_future()
            await self._waiter
        item, self._in_use = self._buffer.popleft()
        self.buffered_bytes -= self._in_use
        return item

    async def aclose(self, reason: str = "client_gone") -> None:
        """Cancel what still runs; idempotent, does not wait."""
        self._drop_buffer()
        self._call.abandon(cast(CancelReason, reason), None)

    async def wait_usage(self) -> Usage | None:
        """The closing frame's usage, also after `aclose`; None when it does not come within the grace of 2 s."""
        closed = asyncio.Event()
        self._call.on_closed(closed.set)
        try:
            async with asyncio.timeout(CANCEL_GRACE_S):
                await closed.wait()
        except TimeoutError:
            pass
        return self._call.usage

    # -- for the session

    def push(self, frame: Item, size: int) -> bool:
        """Take in one item; False when the producer sent more than it may."""
        if self._over:
            return True
        if self._window is not None:
            if not self._window.is_open:
                return False
            self._window.spend(size)
        elif self._would_overflow(size) and not self._table.is_only_call:
            return False
        self._buffer.append((StreamItem(event=frame.event, body=frame.body, raw=frame.raw), size))
        self.buffered_bytes += size
        if self._window is None and self.buffered_bytes >= STREAM_WINDOW_BYTES:
            self._table.stream_is_full()
        self._wake()
        return True

    def finish(self, error: AbiError | None, usage: Usage | None) -> None:
        """No more items. A cancelled stream forgets what it holds, and of its closing frame keeps the usage only."""
        self.usage = usage
        if self._over:
            return
        self._over, self._error = True, error
        if self._call.cancelled:
            self._drop_buffer()
        self._wake()

    @property
    def is_full(self) -> bool:
        return not self._over and self.buffered_bytes >= STREAM_WINDOW_BYTES // 2

    def _would_overflow(self, size: int) -> bool:
        return self.buffered_bytes + size > STREAM_OVERFLOW_BYTES or len(self._buffer) >= _OVERFLOW_ITEMS

    def _give_back(self) -> None:
        size, self._in_use = self._in_use, -1
        if self._window is None:
            self._table.stream_was_read()
        elif not self._over and (due := self._returns.took(size)) is not None:
            self._window.grant(*due)
            self._table.link.send_control(Credit(id=self._call.id, items=due[0], bytes=due[1]))

    def _drop_buffer(self) -> None:
        self._buffer.clear()
        self.buffered_bytes = 0
        self._in_use = -1
        self._table.stream_was_read()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class IncomingCall:
    """A call of the peer, to be closed by exactly one of `respond`, `fail`, or the end of an opened stream.

    What is sent after the closing frame, or after the session ended, goes nowhere.
    """

    __slots__ = (
        "_cancel_callbacks",
        "_cancelled",
        "_table",
        "cancel_reason",
        "closed",
        "deadline",
        "id",
        "method",
        "outgoing",
        "params",
        "parent",
        "parent_call",
        "stream",
        "timeout_ms",
    )

    def __init__(self, table: "IncomingCalls", frame: Call, parent: OutgoingCall | None = None) -> None:
        self.id: Final = frame.id
        self.method: Final = frame.method
        self.params: Final = frame.params
        self.stream: Final = frame.stream and table.may_stream
        """Whether the caller can take a stream."""
        self.timeout_ms: Final = frame.timeout_ms
        self.parent: Final = frame.parent
        self.deadline: Final = None if frame.timeout_ms is None else table.loop.time() + frame.timeout_ms / 1000
        """On the clock of the event loop; None without a timeout."""
        self.cancel_reason: CancelReason | None = None
        self.closed = False
        self.parent_call: Final = parent
        self._table = table
        self._cancelled: asyncio.Event | None = None
        self._cancel_callbacks: list[Callable[[CancelReason], None]] | None = None
        self.outgoing: OutgoingStream | None = None

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the caller cancelled, the parent closed, or the session ended."""
        if self._cancelled is None:
            self._cancelled = asyncio.Event()
            if self.cancel_reason is not None:
                self._cancelled.set()
        return self._cancelled

    def on_cancel(self, callback: Callable[[CancelReason], None]) -> None:
        """Call back when `cancelled` gets set (at once when it is)."""
        if self.cancel_reason is not None:
            callback(self.cancel_reason)
        else:
            self._cancel_callbacks = [*(self._cancel_callbacks or ()), callback]

    def respond(self, result: Payload | bytes | None = None, usage: Usage | None = None) -> None:
        """Close the call with success. An answer too large for the peer becomes the error `plugin_body_too_large`.

        Raises TypeError or ValueError for what JSON cannot carry; the call is then still open, for `fail`.
        """
        if not self.closed:
            frame = Result(id=self.id, ok=True, result=_as_raw(result), usage=usage)
            self._table.send_result(self, frame, result)

    def fail(self, error: ErrorBody, usage: Usage | None = None) -> None:
        """Close the call, or its open stream, with `error`."""
        if self.outgoing is not None:
            self.outgoing.end(error, usage)
        elif not self.closed:
            self._table.send_result(self, Result(id=self.id, ok=False, error=error, usage=usage), None)

    async def open_stream(self, result: Payload | bytes | None = None) -> "OutgoingStream":
        """Answer with a stream. Raises ValueError when the caller cannot take one, PluginTransportError when the
        result is too large or the session ended."""
        if not self.stream:
            raise ValueError(f"the caller of {self.method} (call {self.id}) cannot take a stream")
        if self.closed or self.outgoing is not None:
            raise ValueError(f"call {self.id} is answered already")
        self._table.send_opening(self, Result(id=self.id, ok=True, result=_as_raw(result), stream=True), result)
        self.outgoing = OutgoingStream(self._table, self)
        return self.outgoing

    # -- for the session

    def close(self) -> None:
        """The closing frame was sent. Callbacks usually refer to their call: kept, they would leave it to the garbage
        collector."""
        self.closed = True
        self._cancel_callbacks = None

    def cancel_from_caller(self, reason: CancelReason) -> None:
        if self.cancel_reason is not None or self.closed:
            return
        self.cancel_reason = reason
        if self._cancelled is not None:
            self._cancelled.set()
        if self.outgoing is not None:
            self.outgoing.wake()
        callbacks, self._cancel_callbacks = self._cancel_callbacks, None
        for callback in callbacks or ():
            callback(reason)


class OutgoingStream:
    """The producing side of an open stream."""

    def __init__(self, table: "IncomingCalls", call: IncomingCall) -> None:
        self._table = table
        self._call = call
        self._window: Final = Window() if "credit" in table.link.features else None
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def send(self, item: StreamItem) -> None:
        """Send one item; waits for credit and for a peer that keeps up.

        Raises PluginError `cancelled` when the stream is no longer wanted, PluginTransportError when the item is too
        large for the peer or the session ended, ValueError after `end`.
        """
        table, window, call = self._table, self._window, self._call
        while (window is not None and not window.is_open) or not table.link.writable:
            self._check(call)
            if window is not None and not window.is_open:
                waiter = table.loop.create_future()
                self._waiters.append(waiter)
                await waiter
            else:
                await table.link.drained(call.method)
        self._check(call)
        size = table.send_item(call, Item(id=call.id, event=item.event, body=item.body, raw=item.raw))
        if window is not None:
            window.spend(size)

    def end(self, error: ErrorBody | None = None, usage: Usage | None = None) -> None:
        """Send the last frame; costs no credit. No effect on a stream that is closed."""
        if not self._call.closed:
            frame = End(id=self._call.id, ok=error is None, error=UNSET if error is None else error, usage=usage)
            self._table.send_end(self._call, frame)

    def grant(self, items: int, size: int) -> None:
        """The consumer took that much."""
        if self._window is not None:
            self._window.grant(items, size)
            self.wake()

    def wake(self) -> None:
        """Credit came, or there is no point in waiting for it."""
        while self._waiters:
            if not (waiter := self._waiters.popleft()).done():
                waiter.set_result(None)

    def _check(self, call: IncomingCall) -> None:
        if call.cancel_reason is not None:
            self._table.link.check_open(call.method)
            raise host_error("cancelled", f"the stream was cancelled: {call.cancel_reason}")
        if call.closed:
            raise ValueError(f"the stream of call {call.id} has ended")


def _as_raw(result: Payload | bytes | None) -> Any:
    """Structs are encoded together with their frame, in one pass."""
    if result is None:
        return UNSET
    return Raw(result) if isinstance(result, bytes) else result
