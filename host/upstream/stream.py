"""Body bytes on their way from a connection to one reader, with back-pressure.

`BodyStream` is shared by the connection (which feeds it) and the response (which drains it). It exists only for bodies
that did not arrive together with their head.
"""

import asyncio
from typing import Protocol

from host.upstream.errors import UpstreamDisconnected, UpstreamError


class BodySource(Protocol):
    """What a stream needs from the connection that feeds it. All three are safe to call at any time."""

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...

    def drop_body(self, stream: "BodyStream") -> None: ...


class BodyStream:
    """An unbounded-looking queue that stops its source above the high-water mark. One reader at a time."""

    __slots__ = ("_buffered_bytes", "_error", "_high_water_bytes", "_loop", "_paused", "_pieces", "_source", "_waiter")

    def __init__(self, source: BodySource, loop: asyncio.AbstractEventLoop, *, high_water_bytes: int) -> None:
        self._source: BodySource | None = source
        self._loop = loop
        self._high_water_bytes = high_water_bytes
        self._pieces: list[bytes] = []
        self._buffered_bytes = 0
        self._paused = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def open(self) -> bool:
        """False once the source has delivered everything, failed or was dropped."""
        return self._source is not None

    @property
    def paused(self) -> bool:
        return self._paused

    # Side of the connection.

    def feed(self, pieces: list[bytes]) -> None:
        """Queue pieces (the list is taken over); pauses the source when the reader is too far behind."""
        if self._pieces:
            self._pieces += pieces
        else:
            self._pieces = pieces
        for piece in pieces:
            self._buffered_bytes += len(piece)
        if self._buffered_bytes > self._high_water_bytes and not self._paused and self._source is not None:
            self._paused = True
            self._source.pause_body()
        self._wake()

    def end(self, error: UpstreamError | None = None) -> None:
        """The body is whole, or failed. What was fed before is still delivered first."""
        if self._source is None:
            return
        self._source = None
        self._error = error
        self._wake()

    # Side of the response.

    async def next_pieces(self) -> bytes:
        """Everything that has arrived since the last call, at least one byte; b"" at the end of the body.

        Raises the error the body ended with. Cancelling it closes the connection at once, so that the upstream stops
        producing.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._source is None:
                return b""
            if self._waiter is not None:
                raise RuntimeError("two tasks read the same response")
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self._waiter = None
        pieces = self._pieces
        self._pieces = []
        self._buffered_bytes = 0
        if self._paused:
            self._paused = False
            if self._source is not None:
                self._source.resume_body()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Give up the rest of the body: unread pieces are dropped, an unfinished connection is closed at once."""
        self._pieces = []
        source = self._source
        if source is not None:
            error = UpstreamDisconnected(
                "the response was closed before its end", phase="body", bytes_sent=True, response_started=True
            )
            self.end(error)
            source.drop_body(self)

    def close_threadsafe(self) -> None:
        """`close()` for finalizers, which may run in any thread and after the loop has ended."""
        if self._source is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
