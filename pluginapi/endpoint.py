"""Where a plugin waits for the host on a Unix socket: one host at a time, of the same user, with the right token."""

import asyncio
import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Literal, NamedTuple

from pluginabi.channel import FrameChannel
from pluginabi.frames import Hello
from pluginabi.handshake import Greeting, HandshakeError, plugin_handshake
from pluginabi.stream_channel import StreamChannel, listen_unix

DIAL_HELLO_TIMEOUT_S: Final = 10.0
GRPC_STOP_GRACE_S: Final = 0.5
"""For the stream of a session that was closed just now; cutting it off makes the host's library complain."""


class Connection(NamedTuple):
    """A host that connected and said hello."""

    channel: FrameChannel
    greeting: Greeting


class Endpoint:
    """A bound socket. Whoever is of another user, has the wrong token, or comes second is hung up on."""

    def __init__(self, hello: Hello, *, token: str | None, patience_s: float = 0.0) -> None:
        """`token` None: anybody of this user may come (a debugger). Who comes second waits `patience_s`: the end of
        the first may be on its way."""
        self._hello: Final = hello
        self._token: Final = token
        self._patience_s: Final = patience_s
        self._free: Final = asyncio.Event()
        self._connected: Final[asyncio.Queue[Connection]] = asyncio.Queue()
        self._greeters: Final[set[asyncio.Task[None]]] = set()
        self._stop_listening: Callable[[], Awaitable[None]] | None = None

    async def bind(self, path: str, protocol: Literal["json", "grpc"], *, max_frame_bytes: int) -> None:
        """Listen at `path`, for this user only, for one host. Raises OSError or RuntimeError."""
        with _private_umask():
            if protocol == "grpc":
                # A large library: only plugins that speak it pay for it.
                from pluginabi.grpc_channel import serve_grpc

                listener = await serve_grpc(path, self._greet, max_frame_bytes=max_frame_bytes)
                self._stop_listening = functools.partial(listener.close, GRPC_STOP_GRACE_S)
            else:
                server = await listen_unix(path, self._on_socket, max_frame_bytes=max_frame_bytes)
                self._stop_listening = _closer(server)
        self._free.set()

    async def connection(self) -> Connection:
        """Wait for the next host."""
        return await self._connected.get()

    def release(self) -> None:
        """The session of the last host is over: another one may come."""
        self._free.set()

    async def aclose(self) -> None:
        """Listen no longer. After the session: a gRPC server ends its streams with it."""
        for task in self._greeters:
            task.cancel()
        if self._stop_listening is not None:
            await self._stop_listening()

    def _on_socket(self, channel: StreamChannel) -> None:
        uid = channel.peer_uid()
        if uid is not None and uid != os.getuid():
            channel.close(PermissionError(f"a process of user {uid} connected"))
        else:
            self._greet(channel)

    def _greet(self, channel: FrameChannel) -> None:
        task = asyncio.get_running_loop().create_task(self._shake_hands(channel), name="endpoint:greet")
        self._greeters.add(task)
        task.add_done_callback(self._greeters.discard)

    async def _shake_hands(self, channel: FrameChannel) -> None:
        try:
            greeting = await plugin_handshake(
                channel, self._hello, token=self._token, timeout_s=DIAL_HELLO_TIMEOUT_S, before_answer=self._claim
            )
        except HandshakeError as error:
            channel.close(error)
        else:
            self._connected.put_nowait(Connection(channel, greeting))

    async def _claim(self, _: Hello) -> None:
        """Take the one place. Only a host with the right token gets here, so nobody else can keep it away."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.wait()
        except TimeoutError:
            raise HandshakeError(self._hello.plugin or "", "another host is connected already") from None
        if not self._free.is_set():
            raise HandshakeError(self._hello.plugin or "", "another host was faster")
        self._free.clear()


def _closer(server: asyncio.AbstractServer) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        server.close()

    return close


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
