"""Writing responses: our own response head and body on aiohttp's transport.

aiohttp parses requests and owns connections. Its `StreamResponse` builds headers through several layers and costs more
than the rest of the server together, so a response here is bytes: one head, one write. An answer is written before
the handler returns it; aiohttp only reads `keep_alive` afterwards.
"""

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from host.web.headers import CORS

JSON_TYPE: Final = "application/json"
JSON_UTF8_TYPE: Final = "application/json; charset=utf-8"
EVENT_STREAM_TYPE: Final = "text/event-stream"

_FLUSH_BYTES: Final = 64 * 1024
"""After so much of a run of items that are ready at once other requests get a turn; larger bodies are not copied."""

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}


class Written(web.StreamResponse):
    """What aiohttp gets back from the handler: the response has been written already.

    The base class is not initialised on purpose: nothing of it is used, and it would cost as much as a whole request.
    """

    def __init__(self, request: web.BaseRequest, status: int, *, keep_alive: bool) -> None:
        self._request = request
        self._status = status
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Hold back the next request of this connection while its client does not read."""
        if self._request.protocol.writing_paused:
            await self._request.writer.drain()


class HeadBuilder:
    """Builds response heads; the parts that do not change are encoded once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._date = b""
        self._date_until_s = -1.0
        self._starts: dict[tuple[int, str], bytes] = {}

    def build(self, status: int, content_type: str, extra: bytes = b"") -> bytes:
        """Everything up to the framing headers; `extra` are complete header lines.

        `content_type` must be one of ours or checked: it is written as it is.
        """
        start = self._starts.get((status, content_type))
        if start is None:
            start = b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, "").encode())
            if content_type:
                start += b"Content-Type: %b\r\n" % content_type.encode()
            start += CORS
            if len(self._starts) < 256:
                self._starts[(status, content_type)] = start
        return b"%b%b%b" % (start, self._date_line(), extra)

    def _date_line(self) -> bytes:
        now_s = self._clock()
        if now_s >= self._date_until_s:
            self._date = f"Date: {formatdate(usegmt=True)}\r\n".encode()
            self._date_until_s = now_s + 1.0
        return self._date


def send_whole(request: web.BaseRequest, status: int, head: bytes, body: bytes, *, without_body: bool) -> Written:
    """Write one complete response. A client that is gone is not an error."""
    keep_alive = request.keep_alive
    framing = _connection_line(request, keep_alive=keep_alive)
    if status != 204:
        framing += b"Content-Length: %d\r\n" % len(body)
    transport = request.transport
    if transport is not None and not transport.is_closing():
        if without_body or status == 204:
            transport.write(b"%b%b\r\n" % (head, framing))
        elif len(body) <= _FLUSH_BYTES:
            transport.write(b"%b%b\r\n%b" % (head, framing, body))
        else:
            transport.write(b"%b%b\r\n" % (head, framing))
            transport.write(body)
    return Written(request, status, keep_alive=keep_alive)


def _connection_line(request: web.BaseRequest, *, keep_alive: bool) -> bytes:
    if not keep_alive:
        return b"Connection: close\r\n"
    return b"" if request.version >= (1, 1) else b"Connection: keep-alive\r\n"


class StreamedBody:
    """A response body that is written in pieces; the head goes out with the first piece.

    `write` never waits. Pieces of one turn of the event loop leave together, since uvloop writes at the end of a turn.
    `drain` waits for a slow client. Writing to a client that is gone does nothing: the server cancels the handler.
    """

    __slots__ = ("_chunked", "_closed", "_head", "_protocol", "_request", "_undrained_bytes", "sent")

    def __init__(self, request: web.BaseRequest, head: bytes) -> None:
        self._request = request
        self._protocol = request.protocol
        self._chunked = request.version >= (1, 1)
        # A body without length ends with the connection where chunks are unknown.
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        self._head = b"%b%b%b\r\n" % (head, _connection_line(request, keep_alive=self.keep_alive), framing)
        self._undrained_bytes = 0
        self._closed = False
        self.sent = 0
        """Body bytes handed to the transport so far."""

    @property
    def keep_alive(self) -> bool:
        return self._chunked and bool(self._request.keep_alive)

    @property
    def must_drain(self) -> bool:
        """Whether the producer has to `drain` before it goes on."""
        return self._undrained_bytes >= _FLUSH_BYTES or self._protocol.writing_paused

    def write(self, piece: bytes) -> None:
        """Hand a piece to the transport."""
        size = len(piece)
        if not size or self._closed:
            return
        self.sent += size
        self._undrained_bytes += size
        head = self._head
        if head:
            self._head = b""
        self._send(b"%b%x\r\n%b\r\n" % (head, size, piece) if self._chunked else head + piece)

    async def drain(self) -> None:
        """Wait until the client's buffer has room. Gives other requests a turn."""
        self._undrained_bytes = 0
        if self._protocol.writing_paused:
            await self._request.writer.drain()
        else:
            await asyncio.sleep(0)

    def finish(self) -> None:
        """Write the end of the body; nothing can be written afterwards."""
        if not self._closed:
            self._closed = True
            self._send(self._head + (b"0\r\n\r\n" if self._chunked else b""))
            self._head = b""

    def _send(self, data: bytes) -> None:
        transport: Any = self._request.transport
        if data and transport is not None and not transport.is_closing():
            transport.write(data)
