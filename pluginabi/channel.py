"""What a session needs of a carrier: send a frame, get told what arrives, close.

A channel knows frames and bytes; it knows nothing of calls. Everything happens on one event loop.
"""

from collections import deque
from typing import Final, Protocol

from pluginabi.codec import BrokenFrame, FrameTooLarge
from pluginabi.frames import Call, Frame

__all__ = ["ChannelClosed", "ChannelFull", "FrameChannel", "FrameReceiver", "FrameTooLarge", "WriteQueue"]

DEFAULT_QUEUE_MAX_BYTES: Final = 32 * 1024 * 1024
"""What may wait for a peer that does not read; one frame always may."""
CONTROL_QUEUE_MAX_FRAMES: Final = 16_384
"""A peer that lets this many pings, cancels and credits wait is not reading at all."""


class ChannelClosed(Exception):
    """The peer is gone, or this side closed."""


class ChannelFull(Exception):
    """The peer does not read fast enough; nothing was sent."""


class FrameReceiver(Protocol):
    """Who is told what arrives. Called on the event loop; must not block, must not raise."""

    def frame_received(self, frame: Frame, size: int) -> None:
        """A good frame; `size` is what it costs in credit: its bytes as sent, without LF."""

    def frame_broken(self, broken: BrokenFrame) -> None:
        """A frame of a known kind that cannot be used."""

    def stray_received(self, line: bytes) -> None:
        """A line that is no frame."""

    def channel_closed(self, cause: BaseException | None) -> None:
        """The last call: nothing arrives any more."""


class FrameChannel(Protocol):
    """One carrier of frames."""

    send_limit: int
    """The peer's `max_frame_bytes`; larger frames are refused by `send`."""

    def attach(self, receiver: FrameReceiver) -> None:
        """Tell `receiver` everything from now on, beginning with what arrived while nobody was attached.

        Never calls `receiver` before it returns.
        """

    def detach(self) -> None:
        """Hold back what arrives until the next `attach`."""

    def send(self, frame: Frame, *, control: bool = False, closing: bool = False) -> int:
        """Send a frame and return its size in credit. Never waits.

        A control frame overtakes what waits in the queue; a closing frame is queued however much waits. Raises
        FrameTooLarge, ChannelFull, ChannelClosed.
        """

    def withdraw(self, call_id: int) -> bool:
        """Take back the `call` frame with this id while it waits in the queue; False when it was written already."""

    @property
    def can_send(self) -> bool:
        """Whether `send` takes frames. A peer that takes nothing more may still be heard for a moment."""

    @property
    def writable(self) -> bool:
        """Whether the peer keeps up; a producer of many frames waits in `drain` otherwise."""

    async def drain(self) -> None:
        """Wait until the peer keeps up. Raises ChannelClosed."""

    def pause_reading(self) -> None:
        """Let the carrier push back on the peer; ends with `resume_reading`."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""

    def hold(self, seconds: float) -> None:
        """Tell the receiver nothing more for that long, not even what has arrived; the carrier pushes back."""

    def close(self, cause: BaseException | None = None) -> None:
        """Send what waits, then close; with a cause at once. Idempotent."""

    def abort(self) -> None:
        """Close at once, dropping what waits; also after `close`."""

    async def wait_closed(self) -> None:
        """Wait until the carrier has let go of its transports."""


class WriteQueue:
    """Encoded frames that wait for a slow peer, control frames first; sans-io."""

    def __init__(self, max_bytes: int = DEFAULT_QUEUE_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._control: deque[tuple[Frame, bytes]] = deque()
        self._frames: deque[tuple[Frame, bytes]] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._frames or self._control)

    def push(self, frame: Frame, data: bytes, *, control: bool, closing: bool) -> None:
        """Raises ChannelFull."""
        if control:
            if len(self._control) >= CONTROL_QUEUE_MAX_FRAMES:
                raise ChannelFull("the peer does not read")
            self._control.append((frame, data))
        else:
            if self._frames and not closing and self.size + len(data) > self._max_bytes:
                raise ChannelFull(f"{self.size} bytes wait for the peer already")
            self._frames.append((frame, data))
        self.size += len(data)

    def pop(self) -> bytes:
        """The next frame to write. Raises IndexError when nothing waits."""
        _, data = (self._control or self._frames).popleft()
        self.size -= len(data)
        return data

    def pop_batch(self, max_bytes: int) -> bytes:
        """Several frames in one piece: the next one, and more while the piece stays below `max_bytes`."""
        first = self.pop()
        if not self or len(first) >= max_bytes:
            return first
        batch, size = [first], len(first)
        while self and size < max_bytes:
            batch.append(data := self.pop())
            size += len(data)
        return b"".join(batch)

    def withdraw(self, call_id: int) -> bool:
        """Remove the `call` with this id if it still waits."""
        for position, (frame, data) in enumerate(self._frames):
            if isinstance(frame, Call) and frame.id == call_id:
                del self._frames[position]
                self.size -= len(data)
                return True
        return False
