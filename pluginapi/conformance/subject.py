"""One started process of the plugin: its pipes, its last words, its end and whatever it leaves behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from pluginapi.conformance.outcome import Unmet

STDERR_LINES_KEPT: Final = 40
_LINE_MAX_BYTES: Final = 2000
_LEFTOVER_GRACE_S: Final = 1.0
_LEFTOVER_LOOK_EVERY_S: Final = 0.05
_KILL_S: Final = 5.0
_LAST_WORDS_S: Final = 0.5


class CannotStart(Exception):
    """The command cannot be executed at all."""


class Subject:
    """A process in a session of its own. `stdin` and `stdout` belong to whoever connects them."""

    def __init__(self, popen: "subprocess.Popen[bytes]", stderr: "StderrTail") -> None:
        self.pid: Final = popen.pid
        self.stderr: Final = stderr
        self._popen = popen
        self._group_is_gone = False
        """From then on the number may belong to somebody else."""
        # `wait` must not depend on the pipes: a child of the plugin can hold them open for ever.
        self._exited = asyncio.get_running_loop().run_in_executor(None, popen.wait)

    @classmethod
    async def start(cls, command: Sequence[str], *, environment: Mapping[str, str], work_dir: Path) -> "Subject":
        """Start with three pipes. Raises CannotStart."""
        popen = spawn(command, environment=environment, work_dir=work_dir, stdin=subprocess.PIPE, out=subprocess.PIPE)
        assert popen.stderr is not None
        _, tail = await asyncio.get_running_loop().connect_read_pipe(StderrTail, popen.stderr)
        return cls(popen, tail)

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal that ended it; None while it runs."""
        return self._exited.result() if self._exited.done() else None

    async def exited_within(self, seconds: float) -> bool:
        """Whether the process ended, waiting at most that long."""
        if not self._exited.done():
            await asyncio.wait([self._exited], timeout=seconds)
        return self._exited.done()

    def signal_group(self, number: int) -> None:
        """Signal the process and its group; nothing when it has ended."""
        if not self._exited.done():
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # it ended just now

    async def leftovers(self) -> list[str]:
        """What is still alive of its group after its end, given a moment to follow; killed then."""
        waited_s = 0.0
        while (left := group_members(self.pid)) and waited_s < _LEFTOVER_GRACE_S:
            await asyncio.sleep(_LEFTOVER_LOOK_EVERY_S)
            waited_s += _LEFTOVER_LOOK_EVERY_S
        if left:
            os.killpg(self.pid, signal.SIGKILL)
        self._group_is_gone = True
        return left

    async def kill(self) -> None:
        """End the process and its group, whatever it thinks of it. Safe to repeat."""
        if not self._group_is_gone:
            self.signal_group(signal.SIGKILL)
            if not await self.exited_within(_KILL_S):
                raise Unmet("the process can be killed", "it is still there after SIGKILL")
            if group_members(self.pid):
                os.killpg(self.pid, signal.SIGKILL)
            self._group_is_gone = True
        await self.stderr.finish()

    def how_it_ended(self) -> str:
        """For people."""
        code = self.returncode
        if code is None:
            return "it is still running"
        return f"it ended with exit code {code}" if code >= 0 else f"it was ended by {signal.Signals(-code).name}"


class StderrTail(asyncio.Protocol):
    """The last lines of a process's stderr."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None
        self._ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set()

    async def finish(self) -> None:
        """Read what is left, and close; who escaped from the group may hold the other end for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._ended.wait()
        if self._transport is not None:
            self._transport.close()
            await self._ended.wait()

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LINE_MAX_BYTES:]
        self._lines.extend(line[:_LINE_MAX_BYTES].decode(errors="replace") for line in lines)

    def lines(self) -> tuple[str, ...]:
        """The last lines so far."""
        return (*self._lines, *([self._rest.decode(errors="replace")] if self._rest else []))


def spawn(
    command: Sequence[str], *, environment: Mapping[str, str], work_dir: Path, stdin: int, out: int
) -> "subprocess.Popen[bytes]":
    """Start the command in a session of its own; `out` is where both outputs go. Raises CannotStart."""
    try:
        return subprocess.Popen(
            list(command),
            bufsize=0,
            stdin=stdin,
            stdout=out,
            stderr=out,
            env=dict(environment),
            cwd=work_dir,
            start_new_session=True,
        )
    except OSError as error:
        raise CannotStart(f"cannot start {command[0]}: {error.strerror or error}") from error


def group_members(group: int) -> list[str]:
    """Processes of a process group that are alive, as `pid name`; zombies do not count."""
    if not os.path.isdir("/proc/self"):
        return _group_by_signal(group)
    members = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended while we looked
        head, _, tail = text.rpartition(")")
        state, _, group_text = tail.split()[:3]
        if int(group_text) == group and state not in "ZX":
            members.append(f"{name} {head.partition('(')[2]}")
    return members


def _group_by_signal(group: int) -> list[str]:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return []
    return [f"a process of group {group}"]


def resident_bytes(group: int) -> int | None:
    """Memory in use by a process group; None where the system does not tell."""
    total = 0
    for member in group_members(group):
        try:
            pages = int(Path("/proc", member.split()[0], "statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total or None
