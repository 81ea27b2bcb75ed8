"""Real servers whose every byte a test decides: they speak, stall, lie and hang up as told."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

WAIT_S = 60.0


async def within(awaitable: Awaitable[T], *, seconds: float = WAIT_S) -> T:
    """Every wait of a test is bounded; a hang becomes a TimeoutError with a traceback."""
    async with asyncio.timeout(seconds):
        return await awaitable


@dataclass(frozen=True)
class ReceivedRequest:
    method: str
    target: str
    head: bytes
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass
class ServerConnection:
    """One accepted connection, driven by the test's script. `number` counts from 1 in order of acceptance."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    events: dict[str, asyncio.Event] = field(default_factory=dict)

    async def request(self) -> ReceivedRequest:
        """The next request, read whole. Raises IncompleteReadError at the end of the connection."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        return ReceivedRequest(method, target, head, headers, await self.reader.readexactly(length))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed_by_peer(self) -> None:
        """Returns when the client has ended the connection, gently or not."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def hang_up(self) -> None:
        self.writer.transport.abort()


Script = Callable[[ServerConnection], Awaitable[None]]


class ScriptedServer:
    """Runs a script for each connection. A script that fails makes the test fail when the server is left.

    A script that returns has its connection closed. Leaving the server cancels scripts that are still running.
    """

    def __init__(self, script: Script, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._ssl_context = ssl_context
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self.accepted = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'http' if self._ssl_context is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl_context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await within(asyncio.gather(*self._tasks, return_exceptions=True))
        if self._failures and exc is None:
            raise self._failures[0]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        try:
            await self._script(ServerConnection(reader, writer, self.accepted))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up; a test that cares waits for it in its script
        except asyncio.CancelledError:
            pass  # the server is being left
        except BaseException as failure:
            self._failures.append(failure)
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()


def answer(body: bytes = b"", *, status: str = "200 OK", headers: str = "", version: str = "1.1") -> bytes:
    """A well-formed answer with Content-Length. `headers`: extra field lines, each ending in CRLF."""
    head = f"HTTP/{version} {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode("latin-1") + body


def answering(*answers: bytes) -> Script:
    """A script that gives these answers, one per request, on each connection, then keeps the connection open."""

    async def script(connection: ServerConnection) -> None:
        for one in answers:
            await connection.request()
            await connection.send(one)
        await connection.closed_by_peer()

    return script


def repeating(one: bytes) -> Script:
    """A script that gives the same answer to every request until the client leaves."""

    async def script(connection: ServerConnection) -> None:
        while True:
            await connection.request()
            await connection.send(one)

    return script
