"""The gRPC carrier: one bidirectional stream per session, over a Unix socket. The only module that imports grpc.

Not imported by `pluginabi` itself: hosts without gRPC plugins never load the library.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pluginabi.channel import ChannelClosed, FrameReceiver, WriteQueue
from pluginabi.codec import BrokenFrame, FrameTooLarge
from pluginabi.frames import Frame, Item
from pluginabi.grpc_frames import BadMessage, from_message, item_cost, message_header, to_message
from pluginabi.limits import DEFAULT_MAX_FRAME_BYTES

SERVICE: Final = "jackfield.plugin.v1.Plugin"
_METHOD: Final = f"/{SERVICE}/Session"
_HIGH_WATER_BYTES: Final = 64 * 1024
_OPTIONS: Final = (
    # Sizes are the channel's business: the library would end the whole stream over one large message.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A Unix socket path is no valid authority, and some servers refuse it.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
)


class GrpcChannel:
    """A `FrameChannel` over one stream; the same for both sides.

    `read` waits for the next message (None at the end), `write` sends one, `finish` ends this side's direction,
    `release` lets go of the connection. The side that `awaits_peer` reads until the other one ends the stream. Owns a
    task per direction and one that cleans up; they end with the channel.
    """

    def __init__(
        self,
        *,
        read: Callable[[], Awaitable[bytes | None]],
        write: Callable[[bytes], Awaitable[None]],
        finish: Callable[[], Awaitable[None]],
        release: Callable[[], Awaitable[None]],
        awaits_peer: bool,
        max_frame_bytes: int,
    ) -> None:
        self.send_limit = DEFAULT_MAX_FRAME_BYTES
        self._read, self._write, self._finish, self._release = read, write, finish, release
        self._awaits_peer = awaits_peer
        self._max_frame_bytes = max_frame_bytes
        self._loop = asyncio.get_running_loop()
        self._receiver: FrameReceiver | None = None
        self._backlog: deque[bytes] = deque()
        self._queue = WriteQueue()
        self._may_write = asyncio.Event()
        self._may_read = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._paused_by_user = False
        self._held: asyncio.TimerHandle | None = None
        self._closed = self._told = False
        self._aborted = False
        self._cause: BaseException | None = None
        self._directions = (
            self._loop.create_task(self._read_all(), name="grpc-channel:read"),
            self._loop.create_task(self._write_all(), name="grpc-channel:write"),
        )
        self._cleaning = self._loop.create_task(self._clean_up(), name="grpc-channel:clean-up")

    # -- receiving

    def attach(self, receiver: FrameReceiver) -> None:
        """See `FrameChannel.attach`."""
        self._receiver, self._told = receiver, False
        # In a turn of its own, like everything that arrives: `attach` must not call back into its caller.
        self._loop.call_soon(self._replay)

    def _replay(self) -> None:
        while self._backlog and self._receiver is not None and self._held is None:
            self._deliver(self._backlog.popleft())
        if self._receiver is None or self._held is not None:
            return
        if self._closed:
            self._tell_closed()
        elif not self._paused_by_user:
            self._may_read.set()

    def detach(self) -> None:
        """See `FrameChannel.detach`."""
        self._receiver = None
        self._may_read.clear()

    def pause_reading(self) -> None:
        """See `FrameChannel.pause_reading`."""
        self._paused_by_user = True
        self._may_read.clear()

    def resume_reading(self) -> None:
        """See `FrameChannel.resume_reading`."""
        self._paused_by_user = False
        if self._receiver is not None and self._held is None:
            self._may_read.set()

    def hold(self, seconds: float) -> None:
        """See `FrameChannel.hold`."""
        if self._held is None:
            self._held = self._loop.call_later(seconds, self._let_go)
            self._may_read.clear()

    def _let_go(self) -> None:
        self._held = None
        self._replay()

    async def _read_all(self) -> None:
        cause: BaseException | None = ConnectionResetError("the peer ended the stream")
        try:
            while True:
                await self._may_read.wait()
                data = await self._read()
                if data is None:
                    break
                if self._closed:
                    continue  # the peer has not noticed yet; its end of stream is still to come
                if self._receiver is None or self._backlog or self._held is not None:
                    self._backlog.append(data)
                else:
                    self._deliver(data)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            cause = ConnectionResetError(_told(error))
        finally:
            self.close(cause)

    def _deliver(self, data: bytes) -> None:
        receiver = self._receiver
        assert receiver is not None
        try:
            self._route(data, receiver)
        except Exception as error:  # A reader that dies silently leaves every call pending for ever.
            self.close(error)
            raise

    def _route(self, data: bytes, receiver: FrameReceiver) -> None:
        try:
            if len(data) > self._max_frame_bytes:
                header = message_header(data)
                reason = f"{len(data)} bytes are more than this side accepts"
                receiver.frame_broken(BrokenFrame(header.kind or "message", header.id, reason, oversize=True))
                return
            frame = from_message(data)
        except BadMessage as error:
            receiver.frame_broken(BrokenFrame(error.kind or "message", error.id, str(error)))
            return
        if frame is not None:
            receiver.frame_received(frame, item_cost(frame) if isinstance(frame, Item) else len(data))

    # -- sending

    def send(self, frame: Frame, *, control: bool = False, closing: bool = False) -> int:
        """See `FrameChannel.send`."""
        data = to_message(frame)
        if len(data) > self.send_limit:
            raise FrameTooLarge(len(data), self.send_limit)
        if self._closed:
            raise ChannelClosed("the channel is closed")
        self._queue.push(frame, data, control=control, closing=closing)
        if self._queue.size > _HIGH_WATER_BYTES:
            self._drained.clear()
        self._may_write.set()
        return item_cost(frame) if isinstance(frame, Item) else len(data)

    def withdraw(self, call_id: int) -> bool:
        """See `FrameChannel.withdraw`."""
        return self._queue.withdraw(call_id)

    @property
    def can_send(self) -> bool:
        """See `FrameChannel.can_send`."""
        return not self._closed

    @property
    def writable(self) -> bool:
        """See `FrameChannel.writable`."""
        return self._drained.is_set()

    async def drain(self) -> None:
        """See `FrameChannel.drain`."""
        await self._drained.wait()
        if self._closed:
            raise ChannelClosed("the channel is closed")

    async def _write_all(self) -> None:
        cause: BaseException | None = None
        try:
            while True:
                while self._queue and not self._aborted:
                    await self._write(self._queue.pop())
                    if self._queue.size <= _HIGH_WATER_BYTES // 2:
                        self._drained.set()
                if self._closed:
                    break
                self._may_write.clear()
                await self._may_write.wait()
            await self._finish()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            cause = ConnectionResetError(_told(error))
        finally:
            self.close(cause)

    async def _clean_up(self) -> None:
        reader, writer = self._directions
        await asyncio.wait([writer])
        if not self._awaits_peer:
            reader.cancel()
        await asyncio.wait([reader])
        await self._release()

    # -- closing

    def close(self, cause: BaseException | None = None) -> None:
        """See `FrameChannel.close`."""
        if self._closed:
            return
        self._closed, self._cause = True, cause
        if cause is not None:
            self._stop()
        self._may_write.set()
        self._may_read.set()
        self._drained.set()
        if not self._backlog:
            self._tell_closed()

    def _tell_closed(self) -> None:
        if self._receiver is not None and not self._told:
            self._told = True
            self._receiver.channel_closed(self._cause)

    def abort(self) -> None:
        """See `FrameChannel.abort`."""
        self.close(ConnectionAbortedError("aborted"))
        self._stop()

    def _stop(self) -> None:
        if not self._aborted:
            self._aborted = True
            for task in self._directions:
                task.cancel()

    async def wait_closed(self) -> None:
        """See `FrameChannel.wait_closed`."""
        await asyncio.wait([self._cleaning])


def _told(error: BaseException) -> str:
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
    return f"the stream broke: {getattr(code, 'name', code)}"


async def connect_grpc(path: str, *, timeout_s: float, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> GrpcChannel:
    """The host's side: dial the plugin's socket. Raises ConnectionError when it does not answer in time.

    Closing the channel closes the connection as well.
    """
    connection = grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS)
    try:
        async with asyncio.timeout(timeout_s):
            await connection.channel_ready()
    except TimeoutError:
        await connection.close()
        raise ConnectionError(f"nobody serves gRPC at {path} within {timeout_s:g} s") from None
    call = connection.stream_stream(_METHOD)()

    async def read() -> bytes | None:
        message = await call.read()
        return None if message is grpc.aio.EOF else message

    async def release() -> None:
        call.cancel()
        await connection.close()

    return GrpcChannel(
        read=read,
        write=call.write,
        finish=call.done_writing,
        release=release,
        awaits_peer=True,
        max_frame_bytes=max_frame_bytes,
    )


class GrpcListener:
    """The plugin's side: serves `Session` and `grpc.health.v1` at a socket path, one session at a time.

    `on_channel` gets each session's channel. A second session beside a running one is refused.
    """

    def __init__(self, on_channel: Callable[[GrpcChannel], None], *, max_frame_bytes: int) -> None:
        self._on_channel = on_channel
        self._max_frame_bytes = max_frame_bytes
        self._current: GrpcChannel | None = None
        self._server: Any = None

    async def start(self, path: str) -> None:
        """Bind and listen. Raises OSError or RuntimeError when the path cannot be bound."""
        server = grpc.aio.server(options=_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._session)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Session": handler}),))
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        for name in ("", SERVICE):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        self._server = server

    async def close(self, grace_s: float = 0.0) -> None:
        """Stop serving; a running session ends after `grace_s` at the latest."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _session(self, _requests: Any, context: Any) -> None:
        if self._current is not None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this plugin serves one session")

        async def read() -> bytes | None:
            message = await context.read()
            return None if message is grpc.aio.EOF else message

        async def nothing() -> None:
            """The end of this method ends the stream."""

        channel = self._current = GrpcChannel(
            read=read,
            write=context.write,
            finish=nothing,
            release=nothing,
            awaits_peer=False,
            max_frame_bytes=self._max_frame_bytes,
        )
        try:
            self._on_channel(channel)
            await channel.wait_closed()
        finally:
            self._current = None
            channel.abort()


async def serve_grpc(
    path: str, on_channel: Callable[[GrpcChannel], None], *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
) -> GrpcListener:
    """A `GrpcListener` that listens at `path`. Raises OSError or RuntimeError."""
    listener = GrpcListener(on_channel, max_frame_bytes=max_frame_bytes)
    await listener.start(path)
    return listener
