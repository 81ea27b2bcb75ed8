"""Runs a plugin's build command and shows what it prints."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from host.dev.screen import Screen

_QUICK_S: Final = 0.3
"""A build that takes longer is shown while it runs; what a quicker one prints, when it has changed something."""


class Build:
    """One run of the command."""

    def __init__(self, command: Sequence[str], folder: Path, screen: Screen) -> None:
        self._command = command
        self._folder = folder
        self._screen = screen
        self._held: list[str] = []
        self._started_s = time.monotonic()

    async def run(self) -> bool:
        """Whether it succeeded. A cancellation ends it and what it started."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._screen.event("build", f"{self._command[0]}: {error.strerror or error}", style="red")
            return False
        try:
            await self._read(process)
            code = await process.wait()
        finally:
            _end(process)
        if code != 0:
            self.show()
            self._say(f"failed with exit code {code} ", style="red")
        elif self._is_slow:
            self._say("")
        return code == 0

    def show(self) -> None:
        """Show what was held back."""
        for line in self._held:
            self._screen.event("build", line)
        self._held.clear()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # a line beyond the reader's limit; nobody would read it
            if not line:
                return
            self._held.append(line.decode(errors="replace").rstrip("\n"))
            if self._is_slow:
                self.show()

    @property
    def _is_slow(self) -> bool:
        return time.monotonic() - self._started_s > _QUICK_S

    def _say(self, outcome: str, *, style: str = "") -> None:
        took = f"in {time.monotonic() - self._started_s:.1f} s"
        self._screen.event("build", f"{' '.join(self._command)} {outcome}{took}", style=style)


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
