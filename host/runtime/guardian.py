"""The host's end of the guardian: one small process that survives the host's death and kills what it left behind."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from host.runtime.child import ChildProcess

log = structlog.get_logger("host.runtime.guardian")

SCRIPT: Final = Path(__file__).with_name("guardian_script.py")
RESTART_AFTER_S: Final = 1.0
"""One that dies sooner is not replaced until the next plugin starts: something is wrong with its interpreter."""


class Guardian:
    """Started with the first plugin process, restarted when it dies, gone when the host closes its pipe.

    All methods must be called on one event loop. Telling the guardian never blocks: a line is smaller than a pipe's
    atomic write, and thousands of them fit.
    """

    def __init__(self, *, python: str = sys.executable, restart_after_s: float = RESTART_AFTER_S) -> None:
        self._python = python
        self._restart_after_s = restart_after_s
        self._replaced = asyncio.Event()
        self._groups: set[int] = set()
        self._directories: set[Path] = set()
        self._child: ChildProcess | None = None
        self._stdin = -1
        self._stopped = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running guardian."""
        return self._child.pid if self._child is not None else None

    def write_end(self) -> int | None:
        """The descriptor a launcher may announce itself on; starts the guardian when it does not run.

        None when there is no guardian: plugins run without it rather than not at all.
        """
        self._ensure_running()
        return self._stdin if self._stdin >= 0 else None

    def watch(self, group: int) -> None:
        """Kill this process group should the host die."""
        self._groups.add(group)
        self._ensure_running()
        self._tell(b"+%d\n" % group)

    def forget(self, group: int) -> None:
        """The group is gone."""
        self._groups.discard(group)
        self._tell(b"-%d\n" % group)

    def watch_directory(self, path: Path) -> None:
        """Remove this directory of sockets should the host die."""
        self._directories.add(path)
        self._ensure_running()
        self._tell(b"d%s\n" % os.fsencode(path))

    def forget_directory(self, path: Path) -> None:
        """The directory is gone."""
        self._directories.discard(path)
        self._tell(b"x%s\n" % os.fsencode(path))

    async def replaced(self) -> None:
        """Wait until a guardian that died has been replaced."""
        await self._replaced.wait()

    async def stop(self) -> None:
        """Let the guardian go; it kills what is still registered. Idempotent."""
        self._stopped = True
        self._close_pipe()
        if self._watcher is not None:
            await asyncio.wait([self._watcher])
            self._watcher = None

    def _ensure_running(self) -> None:
        if self._child is not None or self._stopped:
            return
        try:
            read_end, write_end = os.pipe()
        except OSError as error:
            log.error("guardian.not_started", error=str(error))
            return
        try:
            # Its own session, so that a terminal's Ctrl-C and a kill of the host's group do not reach it.
            popen = subprocess.Popen(
                [self._python, "-I", "-S", str(SCRIPT)],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(write_end)
            log.error("guardian.not_started", error=str(error))
            return
        finally:
            os.close(read_end)
        os.set_blocking(write_end, False)
        self._stdin = write_end
        self._child = ChildProcess(popen)
        self._watcher = asyncio.get_running_loop().create_task(self._replace_when_dead(), name="guardian:watch")
        for group in self._groups:
            self._tell(b"+%d\n" % group)
        for path in self._directories:
            self._tell(b"d%s\n" % os.fsencode(path))

    async def _replace_when_dead(self) -> None:
        assert self._child is not None
        started_s = time.monotonic()
        returncode = await self._child.wait()
        self._child = None
        self._close_pipe()
        if not self._stopped:
            log.warning("guardian.died", returncode=returncode, groups=len(self._groups))
            if self._groups and time.monotonic() - started_s >= self._restart_after_s:
                self._ensure_running()
                self._replaced.set()

    def _tell(self, line: bytes) -> None:
        if self._stdin < 0:
            return
        try:
            os.write(self._stdin, line)
        except (BrokenPipeError, BlockingIOError) as error:
            # Broken: the watcher starts a new guardian with the whole list. Full: thousands of unread lines, it hangs.
            log.warning("guardian.unreachable", error=str(error))

    def _close_pipe(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1
