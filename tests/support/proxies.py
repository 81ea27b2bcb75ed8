"""Small real outbound proxies: HTTP CONNECT and SOCKS5. They tunnel to loopback only and record what was asked."""

import asyncio
import base64
import ssl
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass
class _Tunnels:
    """The part both proxies share: a listener, and two copying directions per tunnel."""

    ssl_context: ssl.SSLContext | None = None
    port: int = 0
    asked: list[str] = field(default_factory=list)
    """`host:port` of every tunnel asked for, in order."""
    resolve: dict[str, str] = field(default_factory=dict)
    """Names that only this proxy knows -> loopback address."""
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client that was left waiting has hung up."""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.ssl_context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self.serve_one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either end hung up, or the proxy is being left
        finally:
            writer.transport.abort()

    async def open_tunnel(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.asked.append(f"{host}:{port}")
        address = self.resolve.get(host, host)
        if address not in ("127.0.0.1", "localhost"):
            raise ConnectionRefusedError(f"{address} is not loopback")
        return await asyncio.open_connection("127.0.0.1", port)

    async def wait_for_the_end(self, reader: asyncio.StreamReader) -> None:
        try:
            await reader.read()
        finally:
            self.client_gone.set()

    async def copy_both_ways(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        origin: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        copies = [
            asyncio.create_task(_copy(client[0], origin[1]), name="proxy-up"),
            asyncio.create_task(_copy(origin[0], client[1]), name="proxy-down"),
        ]
        try:
            # A tunnel is torn down as a whole: half-open tunnels are not needed by any test.
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            origin[1].transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@dataclass
class ConnectProxy(_Tunnels):
    """HTTP CONNECT. With `user` set it answers 407 unless the right basic credentials come; `refusal` is sent instead
    of opening a tunnel; `stall` leaves the client waiting for any answer."""

    user: str | None = None
    password: str = ""
    refusal: bytes | None = None
    stall: bool = False
    heads: list[bytes] = field(default_factory=list)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.stall:
            await self.wait_for_the_end(reader)
            return
        if self.user is not None:
            expected = b"Basic " + base64.b64encode(f"{self.user}:{self.password}".encode())
            if b"\r\nProxy-Authorization: " + expected + b"\r\n" not in head:
                await self._finish(writer, b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
        if self.refusal is not None:
            await self._finish(writer, self.refusal)
            return
        method, target, _ = head.split(b" ", 2)
        assert method == b"CONNECT"
        host, _, port = target.decode("ascii").rpartition(":")
        try:
            origin = await self.open_tunnel(host, int(port))
        except OSError:
            await self._finish(writer, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await self.copy_both_ways((reader, writer), origin)

    async def _finish(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@dataclass
class Socks5Proxy(_Tunnels):
    """SOCKS5 (RFC 1928, and RFC 1929 when `user` is set), CONNECT only. `reply_code` other than 0 refuses; `stall`
    leaves the client waiting for the answer."""

    user: str | None = None
    password: str = ""
    reply_code: int = 0
    stall: bool = False

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, method_count = await reader.readexactly(2)
        methods = await reader.readexactly(method_count)
        assert version == 5
        wanted = 0 if self.user is None else 2
        if wanted not in methods:
            writer.write(b"\x05\xff")
            await writer.drain()
            return
        writer.write(bytes([5, wanted]))
        if self.user is not None and not await self._authenticated(reader, writer):
            return
        host, port = await self._destination(reader)
        if self.stall:
            await self.wait_for_the_end(reader)
            return
        if self.reply_code:
            self.asked.append(f"{host}:{port}")
            writer.write(bytes([5, self.reply_code, 0, 1, 0, 0, 0, 0, 0, 0]))
            await writer.drain()
            return
        origin = await self.open_tunnel(host, port)
        writer.write(bytes([5, 0, 0, 1, 127, 0, 0, 1]) + port.to_bytes(2, "big"))
        await self.copy_both_ways((reader, writer), origin)

    async def _authenticated(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, user_bytes = await reader.readexactly(2)
        user = await reader.readexactly(user_bytes)
        (password_bytes,) = await reader.readexactly(1)
        password = await reader.readexactly(password_bytes)
        granted = (user.decode(), password.decode()) == (self.user, self.password)
        writer.write(b"\x01\x00" if granted else b"\x01\x01")
        await writer.drain()
        return granted

    async def _destination(self, reader: asyncio.StreamReader) -> tuple[str, int]:
        _, command, _, kind = await reader.readexactly(4)
        assert command == 1
        if kind == 1:
            host = ".".join(str(byte) for byte in await reader.readexactly(4))
        else:
            assert kind == 3
            (name_bytes,) = await reader.readexactly(1)
            host = (await reader.readexactly(name_bytes)).decode("ascii")
        return host, int.from_bytes(await reader.readexactly(2), "big")
