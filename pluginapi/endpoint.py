"""Where a plugin waits for the host on a Unix socket: one host at a time, of the same user, with the right token."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from pluginabi.channel import FrameChannel
from pluginabi.frames import Hello
from pluginabi.handshake import Greeting, HandshakeError, plugin_handshake
from pluginabi.stream_channel import StreamChannel, listen_unix

DIAL_HELLO_TIMEOUT_S: Final = 10.0


class Connection(NamedTuple):
    """A host that connected and said hello."""

    channel: FrameChannel
    greeting: Greeting


class Server(Protocol):
    """What listens."""

    def close(self) -> Any: ...


class Endpoint:
    """A bound socket. Whoever is of another user, has the wrong token, or comes second is hung up on."""

    def __init__(self, hello: Hello, *, token: str | None) -> None:
        """`token` None: anybody of this user may come (a debugger)."""
        self._hello: Final = hello
        self._token: Final = token
        self._connected: asyncio.Future[Connection] | None = None
        self._greeters: Final[set[asyncio.Task[None]]] = set()
        self._server: Server | None = None

    async def bind(self, path: str, *, max_frame_bytes: int) -> None:
        """Listen at `path`, for this user only. Raises OSError."""
        with _private_umask():
            self._server = await listen_unix(path, self._on_channel, max_frame_bytes=max_frame_bytes)

    async def connection(self) -> Connection:
        """Wait for the next host. Until its session is over and this is called again, others are hung up on."""
        self._connected = asyncio.get_running_loop().create_future()
        return await self._connected

    def close(self) -> None:
        """Listen no longer; the session that runs is not touched."""
        for task in self._greeters:
            task.cancel()
        if self._server is not None:
            self._server.close()

    def _on_channel(self, channel: StreamChannel) -> None:
        uid = channel.peer_uid()
        if uid is not None and uid != os.getuid():
            channel.close(PermissionError(f"a process of user {uid} connected"))
            return
        self._greet(channel)

    def _greet(self, channel: FrameChannel) -> None:
        task = asyncio.get_running_loop().create_task(self._shake_hands(channel), name="endpoint:greet")
        self._greeters.add(task)
        task.add_done_callback(self._greeters.discard)

    async def _shake_hands(self, channel: FrameChannel) -> None:
        try:
            if self._connected is None or self._connected.done():
                raise HandshakeError(self._hello.plugin or "", "another host is connected already")
            greeting = await plugin_handshake(
                channel, self._hello, token=self._token, timeout_s=DIAL_HELLO_TIMEOUT_S, before_answer=self._claim
            )
        except HandshakeError as error:
            channel.close(error)
            return
        self._connected.set_result(Connection(channel, greeting))

    async def _claim(self, _: Hello) -> None:
        """Two that dialled at once have both been let in: the first whose hello arrived stays."""
        if self._connected is None or self._connected.done():
            raise HandshakeError(self._hello.plugin or "", "another host is connected already")


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
