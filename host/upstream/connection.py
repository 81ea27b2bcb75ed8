"""One connection to an origin: writes a request, turns bytes into an answer, goes back to the pool or dies."""

import asyncio
import math
from collections.abc import Callable
from typing import Final, Protocol, cast

from host.upstream.decompress import BodyDecoder, decoder_for
from host.upstream.errors import Phase, UpstreamDisconnected, UpstreamError, UpstreamProtocolError, UpstreamTimeout
from host.upstream.model import ClientLimits, UpstreamRequest
from host.upstream.origin import Origin
from host.upstream.parser import HeaderNames, ResponseParser
from host.upstream.response import UpstreamResponse
from host.upstream.stream import BodyStream

# Up to here copying the body behind the head is cheaper than a second write (a syscall, and a TLS record of its own).
_JOINED_BODY_BYTES: Final = 64 * 1024


class StaleConnection(UpstreamDisconnected):
    """A reused connection was lost before any byte of an answer; see the retry policy of `UpstreamClient`."""


class ConnectionOwner(Protocol):
    """The pool, as its connections see it."""

    limits: ClientLimits
    clock: Callable[[], float]
    header_names: HeaderNames

    def connected(self, connection: "Connection") -> None: ...

    def release(self, connection: "Connection") -> None: ...

    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """States: idle (neither waiter nor stream), waiting for a head (waiter), receiving a body (stream), closed.

    Time limits are a number (`_deadline`) compared by the pool's sweep, not timer objects. Progress of a body is a flag
    for the same reason: the sweep turns it into a new deadline.
    """

    __slots__ = (
        "_deadline",
        "_idle_timeout_s",
        "_loop",
        "_owner",
        "_parser",
        "_progressed",
        "_received",
        "_request",
        "_reused",
        "_stream",
        "_transport",
        "_waiter",
        "_written_at",
        "closed",
        "origin",
    )

    def __init__(self, owner: ConnectionOwner, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._parser = ResponseParser(owner.limits, owner.header_names)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[UpstreamResponse] | None = None
        self._stream: BodyStream | None = None
        self._request: UpstreamRequest | None = None
        self._reused = False
        self._received = False
        self._progressed = False
        self._written_at = 0.0
        self._deadline = math.inf
        self._idle_timeout_s = math.inf
        self.origin = origin
        self.closed = False

    # Side of the client.

    async def exchange(self, head: bytes, request: UpstreamRequest) -> UpstreamResponse:
        """Write a request and wait for the head of its answer. The connection must be idle.

        Raises StaleConnection, UpstreamDisconnected, UpstreamTimeout or UpstreamProtocolError. Cancelling it closes the
        connection at once.
        """
        transport = self._transport
        if self.closed or transport is None:
            raise UpstreamDisconnected(f"{self.origin.label}: closed before the request was written", phase="send")
        self._parser.begin(head_only=request.method == "HEAD")
        self._request = request
        self._received = False
        self._written_at = now = self._owner.clock()
        limit_s = request.first_byte_timeout_s
        self._deadline = math.inf if limit_s is None else now + limit_s
        waiter: asyncio.Future[UpstreamResponse] = self._loop.create_future()
        self._waiter = waiter
        body = request.body
        if len(body) <= _JOINED_BODY_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiter is waiter:
                self._waiter = None
                self.abort()
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # The head came in the same loop turn as the cancellation: nobody will ever read this body.
                waiter.result().close()
            raise

    def abort(self) -> None:
        """Close at once, without flushing. `connection_lost` follows in a later loop turn."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: UpstreamError) -> None:
        """End the exchange in progress with an error and close."""
        self.closed = True
        waiter, stream = self._waiter, self._stream
        self._waiter = self._stream = None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        if stream is not None:
            stream.end(error)
        self.abort()

    def check_deadline(self, now: float) -> None:
        """Called by the sweep. A body that moved since the last sweep, or waits for its reader, gets a new deadline."""
        stream = self._stream
        if stream is not None and (self._progressed or stream.paused):
            self._progressed = False
            self._deadline = now + self._idle_timeout_s
        elif now >= self._deadline:
            if stream is not None:
                self.fail(self._timeout(f"no data for {self._idle_timeout_s:g} s", phase="body"))
            elif self._waiter is not None:
                self._fail_late_head()
            else:
                self.abort()

    def keep_until(self, deadline: float) -> None:
        """The connection is idle now and expires at `deadline`."""
        self._deadline = deadline
        self._reused = True

    def announced_keep_alive_s(self) -> float | None:
        """`timeout` of the answer's Keep-Alive field, None when it has none."""
        announced = self._parser.deciding.get("keep-alive")
        if announced is None:
            return None
        for part in announced.split(","):
            name, _, value = part.partition("=")
            if name.strip().lower() == "timeout" and value.strip().isdecimal():
                return float(value)
        return None

    # Side of the body (BodySource).

    def pause_body(self) -> None:
        if self._transport is not None and not self.closed:
            self._transport.pause_reading()

    def resume_body(self) -> None:
        if self._transport is not None and not self.closed:
            self._progressed = True
            self._transport.resume_reading()

    def drop_body(self, stream: BodyStream) -> None:
        if self._stream is stream:
            self._stream = None
            self.abort()

    # Side of the event loop (asyncio.Protocol).

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._waiter is not None:
            self._received = True
            parser.feed(data)
            if parser.head_done:
                self._head_arrived()
            elif parser.violation:
                self.fail(self._malformed("head"))
        elif self._stream is not None:
            self._progressed = True
            parser.feed(data)
            self._body_arrived(self._stream)
        else:
            self.abort()  # an answer to nothing: whatever follows could be taken for the next request's answer

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._transport = None
        stream = self._stream
        if stream is not None and exc is None and self._parser.until_close and not self._parser.violation:
            self._stream = None
            stream.end()
        elif stream is not None or self._waiter is not None:
            self.fail(self._disconnected(exc))
        self._owner.lost(self)

    def _head_arrived(self) -> None:
        parser, request, waiter = self._parser, self._request, self._waiter
        assert request is not None and waiter is not None
        headers = parser.headers
        decoder: BodyDecoder | None = None
        if request.decompress and "content-encoding" in parser.deciding and not self._bodiless():
            try:
                decoder = decoder_for(
                    parser.deciding["content-encoding"], max_decoded_bytes=self._owner.limits.max_decoded_bytes
                )
            except UpstreamProtocolError as exc:
                self.fail(exc)
                return
            if decoder is not None:
                headers = [field for field in headers if field[0] not in ("content-encoding", "content-length")]
        pieces = parser.pieces
        stream: BodyStream | None = None
        ready = b""
        if parser.complete:
            if pieces:
                ready = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        else:
            stream = BodyStream(self, self._loop, high_water_bytes=self._owner.limits.high_water_bytes)
        response = UpstreamResponse(
            parser.status,
            parser.reason,
            headers=headers,
            ready=ready,
            stream=stream,
            decoder=decoder,
            max_body_bytes=self._owner.limits.max_body_bytes,
        )
        self._waiter = None
        if stream is None:
            self._finish()
        else:
            self._begin_body(stream, request)
        if waiter.done():
            response.close()
        else:
            waiter.set_result(response)

    def _begin_body(self, stream: BodyStream, request: UpstreamRequest) -> None:
        self._stream = stream
        limit_s = request.idle_timeout_s
        self._idle_timeout_s = math.inf if limit_s is None else limit_s
        # The sweep sets the deadline; until then the body must not be measured by the head's.
        self._deadline = math.inf
        self._progressed = True
        self._body_arrived(stream)

    def _body_arrived(self, stream: BodyStream) -> None:
        parser = self._parser
        if parser.pieces:
            pieces = parser.pieces
            parser.pieces = []
            stream.feed(pieces)
        if parser.violation:
            self.fail(self._malformed("body"))
        elif parser.complete:
            self._stream = None
            stream.end()
            if stream.paused:
                self.resume_body()  # the reader may be slow for long; the connection is free now
            self._finish()

    def _finish(self) -> None:
        """The answer is whole: back to the pool, unless the answer or the peer forbids it.

        An answer that came before the request was written out (a refusal of a long body, usually) leaves the rest of
        the request in our buffer, where the next answer would be taken for this request's.
        """
        self._request = None
        transport = self._transport
        if self.closed or transport is None:
            return
        if self._parser.reusable and transport.get_write_buffer_size() == 0 and not transport.is_closing():
            self._owner.release(self)
        else:
            self.abort()

    def _bodiless(self) -> bool:
        return self._parser.complete and not self._parser.pieces

    def _fail_late_head(self) -> None:
        transport = self._transport
        unsent = transport is not None and transport.get_write_buffer_size() > 0
        what = "the request could not be written in time" if unsent else "no response head in time"
        self.fail(self._timeout(what, phase="send" if unsent else "head"))

    def _timeout(self, what: str, *, phase: Phase) -> UpstreamTimeout:
        return UpstreamTimeout(
            f"{self.origin.label}: {what}", phase=phase, bytes_sent=True, response_started=self._received
        )

    def _malformed(self, phase: Phase) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self.origin.label}: {self._parser.violation}", phase=phase, bytes_sent=True, response_started=True
        )

    def _disconnected(self, exc: Exception | None) -> UpstreamDisconnected:
        within_window = self._owner.clock() - self._written_at <= self._owner.limits.stale_retry_window_s
        stale = self._reused and not self._received and within_window and self._stream is None
        kind = StaleConnection if stale else UpstreamDisconnected
        how = "closed the connection" if exc is None else f"connection lost ({type(exc).__name__})"
        error = kind(
            f"{self.origin.label}: {how} before the end of the response",
            phase="body" if self._stream is not None else "head",
            bytes_sent=True,
            response_started=self._received,
        )
        error.__cause__ = exc
        return error
