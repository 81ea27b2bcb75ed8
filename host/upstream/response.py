"""One answer: its head, and its body as bytes or as an iteration of pieces."""

from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any

from host.upstream.decompress import BodyDecoder
from host.upstream.errors import BodyTooLarge, UpstreamProtocolError
from host.upstream.stream import BodyStream


class _AbandonGuard:
    """Closes the connection when a response is garbage-collected half read.

    A class of its own because only unfinished responses need a finalizer: one on UpstreamResponse would cost every
    request. The connection never refers to it, so it dies with the response.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: BodyStream) -> None:
        self._stream = stream

    def __del__(self) -> None:
        self._stream.close_threadsafe()


class UpstreamResponse(AsyncIterator[bytes]):
    """What `UpstreamClient.send` returns, as soon as the head has arrived. For one task at a time.

    `headers`: lower-cased names in the order received. Where the body is decoded, `content-encoding` and
    `content-length` are left out, because they describe bytes the caller never sees; `decoded` says so.

    Read it with `read()`, or iterate over it, or close it; a response read to its end needs no `aclose()`. Cancelling a
    read or an iteration step closes the connection at once: whoever wants to wake up in between (to send a keep-alive,
    say) must keep the step in a task of its own instead of cancelling it with a time limit.
    Reading to the end is also what makes the connection reusable: after an event stream's own last event, iterate on
    until the end instead of closing.
    """

    __slots__ = (
        "_decoder",
        "_guard",
        "_max_body_bytes",
        "_pending",
        "_ready",
        "_stream",
        "decoded",
        "headers",
        "reason",
        "status",
    )

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        headers: list[tuple[str, str]],
        ready: bytes,
        stream: BodyStream | None,
        decoder: BodyDecoder | None,
        max_body_bytes: int,
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.decoded = decoder is not None
        self._ready = ready
        self._stream = stream
        self._decoder = decoder
        self._max_body_bytes = max_body_bytes
        self._pending: Iterator[bytes] | None = None
        self._guard = None if stream is None else _AbandonGuard(stream)

    async def read(self, max_bytes: int | None = None) -> bytes:
        """The rest of the body, whole; b"" when it was read before.

        `max_bytes` bounds the decoded size and defaults to `ClientLimits.max_body_bytes`. Raises BodyTooLarge (the
        connection is closed), UpstreamDisconnected, UpstreamTimeout or UpstreamProtocolError. Cancelling it closes the
        connection.
        """
        limit_bytes = self._max_body_bytes if max_bytes is None else max_bytes
        if self._stream is None and self._decoder is None:
            body = self._ready
            self._ready = b""
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
            return body
        return await self._read_pieces(limit_bytes)

    def __aiter__(self) -> "UpstreamResponse":
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        """The next non-empty piece: all that has arrived, in decoded bodies at most a few hundred kilobytes.

        Raises and does under cancellation what `read()` does.
        """
        # Not `async`: each coroutine in between costs every event of every stream.
        return self._next_raw() if self._decoder is None else self._next_decoded(self._decoder)

    async def aclose(self) -> None:
        """`close()` in the form that `contextlib.aclosing` and async generators expect. Never waits."""
        self.close()

    def close(self) -> None:
        """Let go of the response: an unfinished one closes its connection at once. May be repeated."""
        self._ready = b""
        self._pending = None
        if self._stream is not None:
            self._stream.close()

    async def __aenter__(self) -> "UpstreamResponse":
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _read_pieces(self, limit_bytes: int) -> bytes:
        if not self.decoded and self._announced_bytes() > limit_bytes:
            self.close()
            raise _too_large(limit_bytes)
        pieces: list[bytes] = []
        total_bytes = 0
        async for piece in self:
            total_bytes += len(piece)
            if total_bytes > limit_bytes:
                self.close()
                raise _too_large(limit_bytes)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _announced_bytes(self) -> int:
        return next((int(value) for name, value in self.headers if name == "content-length"), 0)

    async def _next_raw(self) -> bytes:
        piece = self._ready
        if piece:
            self._ready = b""
        elif self._stream is not None:
            piece = await self._stream.next_pieces()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def _next_decoded(self, decoder: BodyDecoder) -> bytes:
        try:
            while True:
                if self._pending is not None:
                    piece = next(self._pending, b"")
                    if piece:
                        return piece
                    self._pending = None
                self._pending = decoder.decode(await self._next_raw())
        except StopAsyncIteration:
            decoder.finish()
            raise
        except UpstreamProtocolError:
            self.close()  # a body that cannot be decoded is not worth receiving further
            raise


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit_bytes} bytes", limit_bytes=limit_bytes)
