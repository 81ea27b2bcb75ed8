"""JSON frames over byte streams: pipes, Unix sockets."""

import asyncio
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable
from typing import IO, Final, cast

from pluginabi.channel import ChannelClosed, FrameReceiver, WriteQueue
from pluginabi.codec import UNUSABLE, BrokenFrame, FrameTooLarge, Stray, decode_frame, encode_frame, explain
from pluginabi.frames import Frame
from pluginabi.framing import LineSplitter, Oversize
from pluginabi.limits import DEFAULT_MAX_FRAME_BYTES

_BATCH_BYTES: Final = 64 * 1024
"""Frames that wait are written in pieces of about this size."""

_LAST_WORDS_S: Final = 1.0
"""How long a peer that closed its input may go on talking."""


class StreamChannel(asyncio.Protocol):
    """A `FrameChannel` over one or two asyncio transports. Made by the functions below, or as a protocol factory.

    A frame is written at once, unless the peer's frames come several at a time: then those of one turn of the loop
    leave together. While the transport pushes back, frames wait in a bounded queue.
    """

    def __init__(
        self,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        on_connected: "Callable[[StreamChannel], None] | None" = None,
    ) -> None:
        self.send_limit = DEFAULT_MAX_FRAME_BYTES
        self._loop = asyncio.get_running_loop()
        self._splitter = LineSplitter(max_frame_bytes)
        self._on_connected = on_connected
        self._queue = WriteQueue()
        self._receiver: FrameReceiver | None = None
        self._backlog: deque[bytes | Oversize] = deque()
        self._is_reading = True
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._push_back = False
        self._in_bursts = False
        self._flush: asyncio.Handle | None = None
        self._drained: list[asyncio.Future[None]] = []
        self._paused_by_user = False
        self._held: asyncio.TimerHandle | None = None
        self._closed = self._told = False
        self._cause: BaseException | None = None
        self._open_transports = 0
        self._released: asyncio.Future[None] = self._loop.create_future()

    # -- asyncio protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._reader = cast(asyncio.ReadTransport, transport)
        self._open_transports += 1
        if self._writer is None:  # a socket: both directions; of two pipes the writing one is there already
            self._writer = cast(asyncio.WriteTransport, transport)
        if self._on_connected is not None:
            self._on_connected(self)

    def set_writer(self, transport: asyncio.WriteTransport) -> None:
        """The transport of the writing direction when it is not the reading one's; before `connection_made`."""
        self._writer = transport
        self._open_transports += 1

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        lines = self._splitter.feed(data)
        self._in_bursts = len(lines) > 1
        if self._receiver is None or self._backlog or self._held is not None:
            self._backlog.extend(lines)
        else:
            self._deliver(lines)

    def eof_received(self) -> bool:
        self._ended(None)
        return False

    def pause_writing(self) -> None:
        self._push_back = True

    def resume_writing(self) -> None:
        self._push_back = False
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self._lost(self._reader)

    def writer_lost(self, exc: Exception | None) -> None:
        """The writing pipe is gone: nothing can be sent, but the peer's last words may still be in the other pipe."""
        if not self._closed:
            cause = exc or BrokenPipeError("the peer closed its input")
            self._loop.call_later(_LAST_WORDS_S, self._ended, cause)
        self._lost(self._writer)

    def _lost(self, transport: asyncio.BaseTransport | None) -> None:
        if self._writer is transport:
            self._writer = None  # asyncio's pipe transports cannot even be aborted once they are lost
        self._open_transports -= 1
        if self._open_transports <= 0 and not self._released.done():
            self._released.set_result(None)

    # -- receiving

    def attach(self, receiver: FrameReceiver) -> None:
        """See `FrameChannel.attach`."""
        self._receiver, self._told = receiver, False
        # In a turn of its own, like everything that arrives: `attach` must not call back into its caller.
        self._loop.call_soon(self._replay)

    def _replay(self) -> None:
        while self._backlog and self._receiver is not None and self._held is None:
            self._deliver([self._backlog.popleft()])
        if self._receiver is None or self._held is not None:
            return
        if self._closed:
            self._tell_closed()
        elif not self._paused_by_user:
            self._set_reading(True)

    def detach(self) -> None:
        """See `FrameChannel.detach`."""
        self._receiver = None
        self._set_reading(False)

    def _deliver(self, lines: list[bytes | Oversize]) -> None:
        try:
            for position, line in enumerate(lines):
                receiver = self._receiver
                if receiver is None or self._held is not None:
                    self._backlog.extend(lines[position:])
                    return
                try:
                    frame = decode_frame(line)
                except UNUSABLE as error:
                    self._deliver_unusable(receiver, explain(line, error))
                else:
                    receiver.frame_received(frame, len(line))
        except Exception as error:  # A reader that dies silently leaves every call pending for ever.
            self.close(error)
            raise

    def _deliver_unusable(self, receiver: FrameReceiver, line: BrokenFrame | Stray) -> None:
        if isinstance(line, BrokenFrame):
            receiver.frame_broken(line)
        elif not line.text.isspace():
            receiver.stray_received(line.text)

    def _ended(self, cause: BaseException | None) -> None:
        if not self._closed and (rest := self._splitter.flush()) is not None:
            if self._receiver is None or self._backlog or self._held is not None:
                self._backlog.append(rest)
            else:
                self._deliver([rest])
        self.close(cause or ConnectionResetError("the peer closed the connection"))

    def pause_reading(self) -> None:
        """See `FrameChannel.pause_reading`."""
        self._paused_by_user = True
        self._set_reading(False)

    def resume_reading(self) -> None:
        """See `FrameChannel.resume_reading`."""
        self._paused_by_user = False
        if self._receiver is not None:
            self._set_reading(True)

    def hold(self, seconds: float) -> None:
        """See `FrameChannel.hold`."""
        if self._held is None:
            self._held = self._loop.call_later(seconds, self._let_go)
            self._set_reading(False)

    def _let_go(self) -> None:
        self._held = None
        self._replay()

    def _set_reading(self, on: bool) -> None:
        # Kept here: the pipe transports of CPython before 3.11.3 cannot say whether they read.
        if self._reader is None or self._closed or self._reader.is_closing() or self._is_reading == on:
            return
        if on and self._held is not None:
            return
        self._is_reading = on
        if on:
            self._reader.resume_reading()
        else:
            self._reader.pause_reading()

    # -- sending

    def send(self, frame: Frame, *, control: bool = False, closing: bool = False) -> int:
        """See `FrameChannel.send`."""
        data = encode_frame(frame)
        size = len(data)
        if size > self.send_limit:
            raise FrameTooLarge(size, self.send_limit)
        if self._closed or self._writer is None:
            raise ChannelClosed("the channel is closed")
        if not self._push_back and not self._in_bursts and self._flush is None:
            self._writer.write(data + b"\n")
            return size
        self._queue.push(frame, data + b"\n", control=control, closing=closing)
        if self._flush is None and not self._push_back:
            self._flush = self._loop.call_soon(self._flush_turn)
        return size

    def withdraw(self, call_id: int) -> bool:
        """See `FrameChannel.withdraw`."""
        return self._queue.withdraw(call_id)

    def _flush_turn(self) -> None:
        self._flush = None
        self._pump()

    def _pump(self) -> None:
        writer = self._writer
        while self._queue and not self._push_back and writer is not None:
            writer.write(self._queue.pop_batch(_BATCH_BYTES))
        if self._drained and self.writable:
            self._wake_drained()

    @property
    def can_send(self) -> bool:
        """See `FrameChannel.can_send`."""
        return not self._closed and self._writer is not None

    @property
    def writable(self) -> bool:
        """See `FrameChannel.writable`."""
        return not self._push_back and self._queue.size < _BATCH_BYTES

    async def drain(self) -> None:
        """See `FrameChannel.drain`."""
        if self._closed:
            raise ChannelClosed("the channel is closed")
        if not self.writable:
            waiter = self._loop.create_future()
            self._drained.append(waiter)
            await waiter
            if self._closed:
                raise ChannelClosed("the channel is closed")

    def _wake_drained(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- closing

    def close(self, cause: BaseException | None = None) -> None:
        """See `FrameChannel.close`."""
        if self._closed:
            return
        self._closed, self._cause = True, cause
        if self._flush is not None:
            self._flush.cancel()
        if self._writer is not None and not self._writer.is_closing():
            if cause is None:
                while self._queue:
                    self._writer.write(self._queue.pop_batch(_BATCH_BYTES))
                self._writer.close()
            else:
                self._writer.abort()
        if self._reader is not None and cast(object, self._reader) is not self._writer:
            self._reader.close()
        if self._open_transports == 0 and not self._released.done():
            self._released.set_result(None)
        self._wake_drained()
        if not self._backlog:
            self._tell_closed()

    def _tell_closed(self) -> None:
        if self._receiver is not None and not self._told:
            self._told = True
            self._receiver.channel_closed(self._cause)

    def abort(self) -> None:
        """See `FrameChannel.abort`."""
        self.close(ConnectionAbortedError("aborted"))
        writer = self._writer
        # asyncio's pipe transports end twice, and fail, when they are aborted while they end already.
        if writer is not None and writer.get_write_buffer_size() > 0:
            writer.abort()

    async def wait_closed(self) -> None:
        """See `FrameChannel.wait_closed`."""
        await asyncio.shield(self._released)

    def peer_uid(self) -> int | None:
        """User id of the process at the other end of a Unix socket; None for other carriers."""
        peer = self._writer.get_extra_info("socket") if self._writer is not None else None
        if peer is None or not hasattr(socket, "SO_PEERCRED"):
            return None
        try:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:  # uvloop shows pipes as sockets
            return None
        return int(struct.unpack("3i", credentials)[1])


class _WriteSide(asyncio.BaseProtocol):
    """The writing pipe's protocol: hands everything to the channel."""

    def __init__(self, channel: StreamChannel) -> None:
        self._channel = channel

    def pause_writing(self) -> None:
        self._channel.pause_writing()

    def resume_writing(self) -> None:
        self._channel.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel.writer_lost(exc)


async def open_pipes(
    read_from: IO[bytes] | int, write_to: IO[bytes] | int, *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
) -> StreamChannel:
    """A channel over two pipe ends (file objects or descriptors), which it owns from now on.

    `max_frame_bytes` is what this side accepts. Raises OSError or ValueError when an end is no pipe, socket or
    terminal.
    """
    for end in (read_from, write_to):
        _check_can_be_waited_for(end if isinstance(end, int) else end.fileno())
    loop = asyncio.get_running_loop()
    channel = StreamChannel(max_frame_bytes=max_frame_bytes)
    reader = os.fdopen(read_from, "rb", 0) if isinstance(read_from, int) else read_from
    writer = os.fdopen(write_to, "wb", 0) if isinstance(write_to, int) else write_to
    write_transport, _ = await loop.connect_write_pipe(lambda: _WriteSide(channel), writer)
    channel.set_writer(write_transport)
    await loop.connect_read_pipe(lambda: channel, reader)
    return channel


def _check_can_be_waited_for(fd: int) -> None:
    """Raise ValueError for files and for devices such as /dev/null, with which uvloop ends the whole process."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)):
        raise ValueError(f"descriptor {fd} is no pipe, socket or terminal")


async def open_socket(connected: socket.socket, *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> StreamChannel:
    """A channel over a connected stream socket, which it owns from now on."""
    connected.setblocking(False)
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(
        lambda: StreamChannel(max_frame_bytes=max_frame_bytes), sock=connected
    )
    return channel


async def connect_unix(path: str, *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> StreamChannel:
    """A channel to the socket at `path`. Raises OSError."""
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(lambda: StreamChannel(max_frame_bytes=max_frame_bytes), path)
    return channel


async def listen_unix(
    path: str, on_channel: Callable[[StreamChannel], None], *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
) -> asyncio.AbstractServer:
    """Listen at `path`; every connection becomes a channel given to `on_channel`. Raises OSError."""
    return await asyncio.get_running_loop().create_unix_server(
        lambda: StreamChannel(max_frame_bytes=max_frame_bytes, on_connected=on_channel), path
    )
