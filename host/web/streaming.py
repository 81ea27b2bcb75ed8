"""From an opened stream to the client: nothing is sent before the first deliverable bytes, and one end is always."""

import asyncio
from collections.abc import Callable

import structlog
from msgspec import UNSET

from host.errors import to_error_body
from host.pipeline.request import ClientStream
from host.web.answer import StreamedBody, Written
from host.web.exchange import STATUS_CLIENT_GONE, Exchange
from host.web.frames import FrameWriter
from host.web.keepalive import KeepAlive
from pluginabi.errors import AbiError, ErrorBody

log = structlog.get_logger("host.web")

DRAIN_S = 1.0
DRAIN_ITEMS = 100
"""How long, and how many items, are read behind the terminal event, so that the upstream connection can be reused."""

STOPPING = ErrorBody(
    message="the server is stopping", code="shutdown", http_status=503, retry_after_ms=1000, origin="host"
)


class Relay:
    """Writes one stream to one client. `head` builds the response head for a content type."""

    __slots__ = ("_exchange", "_head", "_keep_alive", "_out", "_stream", "_writer", "close_reason")

    def __init__(
        self, exchange: Exchange, stream: ClientStream, writer: FrameWriter, head: Callable[[str], bytes]
    ) -> None:
        self._exchange = exchange
        self._stream = stream
        self._writer = writer
        self._head = head
        self._out: StreamedBody | None = None
        self._keep_alive: KeepAlive | None = None
        self.close_reason = "client_gone"
        """For `close_stream`, once `run` has returned or raised."""

    async def run(self) -> Written | ErrorBody:
        """Forward until the end. Answers the error instead when nothing has been written: it becomes a status.

        Cancelled when the client is gone. A server that stops while the client is still there ends the stream with
        an error event.
        """
        try:
            failure = await self._forward()
        except asyncio.CancelledError:
            self._abandon()
            raise
        except Exception as error:
            failure = explained(error)
        finally:
            if self._keep_alive is not None:
                self._keep_alive.stop()
        self.close_reason = "finished" if failure is None else "failed"
        if failure is not None:
            self._exchange.failed_code = failure.code
            if self._out is None:
                return failure
            self._out.write(self._writer.error(failure))
        return self._finish()

    async def _forward(self) -> ErrorBody | None:
        """Items to bytes until the terminal event or the end; the failure when the bytes themselves are broken."""
        stream, writer = self._stream, self._writer
        async for item in stream:
            framed = writer.item(item)
            if item.raw is not UNSET and stream.terminal_seen:
                framed = writer.last(framed)
            if framed:
                out = self._write(framed)
                if out.must_drain:
                    await out.drain()
            if writer.failure is not None:
                return writer.failure
            if writer.ended:
                return None
        tail = writer.end()
        if tail:
            self._write(tail)
        return writer.failure

    def _write(self, framed: bytes) -> StreamedBody:
        if self._out is None:
            self._out = self._commit()
        if self._keep_alive is not None:
            self._keep_alive.touch()
        self._out.write(framed)
        return self._out

    def _commit(self) -> StreamedBody:
        exchange = self._exchange
        exchange.status = 200
        exchange.streamed = True
        exchange.first_byte_s = exchange.clock()
        interval_s = exchange.config.streaming.keepalive_seconds
        if interval_s > 0:
            self._keep_alive = KeepAlive(interval_s, self._beat)
        return StreamedBody(exchange.request, self._head(self._writer.content_type))

    def _beat(self) -> None:
        # A client that does not read needs no proof of life, and its buffer is full already.
        if self._out is not None and self._writer.keep_alive and not self._exchange.request.protocol.writing_paused:
            self._out.write(self._writer.keep_alive)

    def _finish(self) -> Written:
        if self._out is None:
            self._out = self._commit()
            if self._keep_alive is not None:
                self._keep_alive.stop()
        self._out.finish()
        self._exchange.sent_bytes = self._out.sent
        return Written(self._exchange.request, 200, keep_alive=self._out.keep_alive)

    def _abandon(self) -> None:
        transport = self._exchange.request.transport
        if self._out is None or self._writer.ended:
            return
        if transport is None or transport.is_closing():
            self._exchange.status = STATUS_CLIENT_GONE
            return
        self._exchange.failed_code = STOPPING.code
        self._out.write(self._writer.error(STOPPING))
        self._out.finish()


def explained(error: Exception) -> ErrorBody:
    """The error object of anything that a request raised; an exception of no known class is logged as our bug."""
    body = getattr(error, "body", None)
    if isinstance(body, ErrorBody) and not isinstance(error, AbiError):
        return body
    if not isinstance(error, AbiError):
        log.error("http.handler_failed", exc_info=error)
    return to_error_body(error)


async def close_stream(stream: ClientStream, reason: str) -> None:
    """Release a stream. After a proper end what is left of it is read for a moment, so that the upstream connection
    goes back to its pool; errors behind the end are nobody's any more."""
    try:
        if reason == "finished":
            async with asyncio.timeout(DRAIN_S):
                count = 0
                async for _ in stream:
                    count += 1
                    if count >= DRAIN_ITEMS:
                        break
    except Exception as error:
        log.debug("http.error_after_terminal", error=str(error))
    finally:
        await stream.aclose(reason)
