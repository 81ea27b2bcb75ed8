"""Proof that a process is alive or dead without asking for process ids: a socket that the kernel closes for it."""

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class Life:
    """One process that has connected."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer

    async def ended(self) -> None:
        """Wait until the process is gone: the kernel closes its end however it died."""
        try:
            await self._reader.read()
        except ConnectionResetError:
            pass
        self._writer.close()

    def alive(self) -> bool:
        """Whether no end has been seen so far."""
        return not self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()


class LifeSigns:
    """Listens on a Unix socket; every process under test connects, says its name, and never speaks again."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "life.sock")
        self._born: asyncio.Queue[Life] = asyncio.Queue()
        self._all: list[Life] = []
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> Self:
        assert len(os.fsencode(self.path)) < 100
        self._server = await asyncio.start_unix_server(self._connected, self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for life in self._all:
            life.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        life = Life(name, reader, writer)
        self._all.append(life)
        self._born.put_nowait(life)

    async def born(self) -> Life:
        """The next process that connects."""
        return await self._born.get()
