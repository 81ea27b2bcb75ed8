"""`jackfield plugins dev` as an author runs it: a process whose output is waited for, line by line."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support import toolchains

WAIT_S = 60.0
"""Compilers on a busy machine."""
ROOT = Path(__file__).resolve().parents[2]


class Development:
    """A running command and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._seen = 0

    async def until(self, pattern: str) -> re.Match[str]:
        """The first match in what is printed from here on; that line counts as read."""
        async with asyncio.timeout(WAIT_S):
            while True:
                while self._seen < len(self.lines):
                    line = self.lines[self._seen]
                    self._seen += 1
                    if found := re.search(pattern, line):
                        return found
                assert self.process.stdout is not None
                line = (await self.process.stdout.readline()).decode()
                assert line, f"it ended before {pattern!r}:\n" + "\n".join(self.lines)
                self.lines.append(line.rstrip("\n"))

    async def ended(self) -> int:
        """The exit code; what was still printed is in `lines`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            rest = (await self.process.stdout.read()).decode()
            self.lines += rest.splitlines()
            return await self.process.wait()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


@asynccontextmanager
async def developing(*words: str, cwd: Path) -> AsyncIterator[Development]:
    """`jackfield` with these words, until it is told to stop."""
    process = await asyncio.create_subprocess_exec(
        *jackfield(*words),
        cwd=cwd,
        env=toolchains.environment(PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    running = Development(process)
    try:
        yield running
    except BaseException:
        print("\n".join(running.lines))
        raise
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def jackfield(*words: str) -> Sequence[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "host", *words]


async def typed(command: str, cwd: Path) -> str:
    """What a shell prints for a command; both outputs."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(WAIT_S):
        out, _ = await process.communicate()
    return out.decode()


def is_alive(pid: int) -> bool:
    """Whether there is a process with this number; asked once, when it must be gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
