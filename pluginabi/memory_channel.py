"""Two channels joined in memory, for tests and harnesses: everything of a pipe but the pipe."""

import asyncio
from collections import deque
from typing import Any, Final

from pluginabi.limits import DEFAULT_MAX_FRAME_BYTES
from pluginabi.stream_channel import StreamChannel


class _MemoryTransport(asyncio.Transport):
    """One end of an in-memory byte stream with a high-water mark, so that back-pressure is as real as on a pipe."""

    HIGH_WATER_BYTES: Final = 64 * 1024

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._inbox: deque[bytes] = deque()
        self._inbox_size = 0
        self._reading = True
        self._closing = False
        self._eof = False
        self._scheduled = False
        self._pushed_back = False
        self.peer: _MemoryTransport = self

    def write(self, data: Any) -> None:
        if not self._closing:
            self.peer._receive(bytes(data))

    def _receive(self, data: bytes) -> None:
        if self._closing:
            return
        self._inbox.append(data)
        self._inbox_size += len(data)
        if self._inbox_size > self.HIGH_WATER_BYTES and not self._pushed_back:
            self._pushed_back = True
            self.peer._protocol.pause_writing()
        self._schedule()

    def _schedule(self) -> None:
        if self._reading and not self._scheduled and (self._inbox or self._eof):
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._inbox and self._reading and not self._closing:
            data = self._inbox.popleft()
            self._inbox_size -= len(data)
            self._protocol.data_received(data)
        if self._pushed_back and self._inbox_size < self.HIGH_WATER_BYTES // 2:
            self._pushed_back = False
            self.peer._protocol.resume_writing()
        if self._eof and not self._inbox and not self._closing:
            self._protocol.eof_received()
            self.close()

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.peer._eof = True
        self.peer._schedule()
        self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.peer._inbox.clear()
        self.peer._inbox_size = 0
        self.close()

    def get_write_buffer_size(self) -> int:
        return self.peer._inbox_size


def memory_pair(
    *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES, peer_max_frame_bytes: int | None = None
) -> tuple[StreamChannel, StreamChannel]:
    """Two channels joined in memory; frames are encoded, cut and decoded as on a pipe."""
    first = StreamChannel(max_frame_bytes=max_frame_bytes)
    second = StreamChannel(max_frame_bytes=peer_max_frame_bytes or max_frame_bytes)
    ends = (_MemoryTransport(first), _MemoryTransport(second))
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    first.connection_made(ends[0])
    second.connection_made(ends[1])
    return first, second
