"""Frames to and from the plugin, with everything that is no good frame kept visible.

Not `pluginabi.Session`: that one repairs, drops and forgives, and here nothing may be forgiven.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias, cast

from pluginabi.channel import ChannelClosed, ChannelFull, FrameChannel
from pluginabi.codec import UNUSABLE, BrokenFrame, Stray, decode_frame, encode_frame, explain
from pluginabi.frames import Frame
from pluginabi.framing import LineSplitter, Oversize
from pluginapi.conformance.subject import Subject

ACCEPTED_BYTES: Final = 64 * 1024 * 1024
"""More than the hello says, so that a frame that is too large is seen for what it is."""
_RAW_KEPT_BYTES: Final = 64 * 1024


class Arrival(NamedTuple):
    """Something the plugin sent. `size` is its cost in credit, `raw` the start of the line (gRPC: nothing)."""

    what: Frame | BrokenFrame | Stray
    size: int
    raw: bytes


Listener: TypeAlias = Callable[[Arrival | None], None]
"""Told what arrives, and None at the end."""


class Wire(Protocol):
    """One direction each way."""

    def send(self, frame: Frame) -> None:
        """Send a frame of any size; nothing happens when the plugin is gone."""

    def send_together(self, *frames: Frame) -> None:
        """Send several frames so that the plugin reads them at once, where the carrier allows it."""

    def send_line(self, line: bytes) -> bool:
        """Send a line as it is; False where the carrier has no lines."""

    def close(self) -> None:
        """Close both directions."""


class LineWire(asyncio.Protocol):
    """Newline-delimited JSON over two pipes or a socket."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._splitter = LineSplitter(ACCEPTED_BYTES)
        self._reader: asyncio.BaseTransport | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._reader = transport
        if self._writer is None:
            self._writer = cast(asyncio.WriteTransport, transport)

    def write_to(self, transport: asyncio.WriteTransport) -> None:
        """The other pipe; before `connection_made`."""
        self._writer = transport

    def data_received(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            if (arrival := _read(line)) is not None:
                self._listener(arrival)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over:
            self._over = True
            rest = self._splitter.flush()
            if rest is not None and (arrival := _read(rest)) is not None:
                self._listener(arrival)
            self._listener(None)

    def send(self, frame: Frame) -> None:
        self.send_line(encode_frame(frame))

    def send_together(self, *frames: Frame) -> None:
        self.send_line(b"\n".join(encode_frame(frame) for frame in frames))

    def send_line(self, line: bytes) -> bool:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(line + b"\n")
        return True

    def close(self) -> None:
        for transport in (self._writer, self._reader):
            if transport is not None and not transport.is_closing():
                transport.close()

    def close_input(self) -> None:
        """End the plugin's stdin; what it still says is heard."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.close()


def _read(line: bytes | Oversize) -> Arrival | None:
    raw = line.head if isinstance(line, Oversize) else line[:_RAW_KEPT_BYTES]
    size = line.size if isinstance(line, Oversize) else len(line)
    try:
        return Arrival(decode_frame(line), size, raw)
    except UNUSABLE as error:
        what = explain(line, error)
        return None if isinstance(what, Stray) and what.text.isspace() else Arrival(what, size, raw)


class ChannelWire:
    """A wire over a carrier of `pluginabi`; for gRPC."""

    def __init__(self, channel: FrameChannel, listener: Listener) -> None:
        channel.send_limit = ACCEPTED_BYTES
        self._channel = channel
        self._listener = listener
        channel.attach(self)

    def send(self, frame: Frame) -> None:
        try:
            self._channel.send(frame)
        except (ChannelClosed, ChannelFull):
            pass  # the listener is told of the end

    def send_together(self, *frames: Frame) -> None:
        for frame in frames:
            self.send(frame)

    def send_line(self, line: bytes) -> bool:
        return False

    def close(self) -> None:
        self._channel.close()

    def frame_received(self, frame: Frame, size: int) -> None:
        self._listener(Arrival(frame, size, b""))

    def frame_broken(self, broken: BrokenFrame) -> None:
        self._listener(Arrival(broken, 0, b""))

    def stray_received(self, line: bytes) -> None:
        self._listener(Arrival(Stray(line), len(line), line))

    def channel_closed(self, cause: BaseException | None) -> None:
        self._listener(None)


async def open_stdio(subject: Subject, listener: Listener) -> LineWire:
    """The pipes of a started process."""
    loop = asyncio.get_running_loop()
    wire = LineWire(listener)
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, subject.stdin)
    wire.write_to(writer)
    await loop.connect_read_pipe(lambda: wire, subject.stdout)
    return wire


async def dial(path: str, listener: Listener, *, grpc: bool, timeout_s: float) -> Wire:
    """The plugin's socket. Raises OSError or TimeoutError; ImportError when the gRPC library is missing."""
    if not grpc:
        async with asyncio.timeout(timeout_s):
            _, wire = await asyncio.get_running_loop().create_unix_connection(lambda: LineWire(listener), path)
        return wire
    # A large library: only for plugins that speak it.
    from pluginabi.grpc_channel import connect_grpc

    channel = await connect_grpc(path, timeout_s=timeout_s, max_frame_bytes=ACCEPTED_BYTES)
    return ChannelWire(channel, listener)
