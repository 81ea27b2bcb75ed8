"""When the configuration file may have changed: the system's events, and a look every few seconds at what they miss.

Events are lost where the file is a link that is swapped (a mounted Kubernetes ConfigMap), where its directory is made
anew, on network file systems, and where the system has no watches left.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

import structlog
from watchfiles import Change, awatch

log = structlog.get_logger("host.config.watch")

DEBOUNCE_MS: Final = 150
POLL_S: Final = 2.0


class FileWatch:
    """Watches one file by its name, whatever lies there; `run` until cancelled."""

    def __init__(self, file: Path, *, poll_s: float = POLL_S) -> None:
        self.maybe_changed: Final = asyncio.Event()
        """Set when it may have changed; whoever reads the file clears it first."""
        self.watching: Final = asyncio.Event()
        """Set once changes are seen."""
        # Not resolved: what matters is what the name leads to next.
        self._file: Final = Path(os.path.abspath(file))
        self._poll_s: Final = poll_s

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll(), name="config:poll")
            group.create_task(self._follow_events(), name="config:events")

    async def _poll(self) -> None:
        seen = await asyncio.to_thread(self._signature)
        while True:
            await asyncio.sleep(self._poll_s)
            found = await asyncio.to_thread(self._signature)
            if found != seen:
                seen = found
                self.maybe_changed.set()

    def _signature(self) -> bytes | str:
        """What the file holds: times and sizes may be the same for another content."""
        try:
            return self._file.read_bytes()
        except OSError as error:
            return type(error).__name__

    async def _follow_events(self) -> None:
        # The directory, not the file: editors replace the file, and a watch on the old one would see nothing more.
        while True:
            places = self._places()
            if places:
                self.watching.set()
                try:
                    await self._follow(places)
                except OSError as error:
                    log.warning("config.watch_failed", path=str(self._file), reason=str(error))
            # Where the file was is gone, or it is elsewhere now.
            self.maybe_changed.set()
            await asyncio.sleep(self._poll_s)

    async def _follow(self, places: dict[Path, tuple[int, int]]) -> None:
        """Until one of the places is another directory than it was, or the file leads elsewhere."""
        names = {self._file.name, os.path.basename(os.path.realpath(self._file))}
        is_link = len(places) > 1 or self._file.is_symlink()

        def is_relevant(_: Change, path: str) -> bool:
            return is_link or os.path.basename(path) in names

        every_ms = int(self._poll_s * 1000)
        async for changes in awatch(
            *places,
            watch_filter=is_relevant,
            debounce=DEBOUNCE_MS,
            recursive=False,
            rust_timeout=every_ms,
            yield_on_timeout=True,
        ):
            if changes:
                self.maybe_changed.set()
            if self._places() != places:
                return

    def _places(self) -> dict[Path, tuple[int, int]]:
        """The directories whose events tell of the file, and which ones they are; empty when there is none."""
        found = {}
        for directory in {self._file.parent, Path(os.path.realpath(self._file)).parent}:
            try:
                status = os.stat(directory)
            except OSError:
                continue
            found[directory] = status.st_dev, status.st_ino
        return found
