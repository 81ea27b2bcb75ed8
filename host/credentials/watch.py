"""Watching the auth directory: whatever changes in it takes effect, file by file.

At once where the system tells of it, and within seconds where it does not: on network file systems it knows of its own
machine's changes only, and it may have no watches left.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from typing import Final, TypeAlias

import structlog
from watchfiles import Change, awatch

from host.credentials import files
from host.credentials.auth_dir import AuthDirectory

log = structlog.get_logger("host.credentials.watch")

DEBOUNCE_MS: Final = 150
REPLACE_CHECK_S: Final = 0.05
"""How long a file that went may take to come back before it counts as removed: editors replace files in two steps."""
RETRY_S: Final = 5.0
"""After a watch that could not be set up, and for files whose plugin cannot be asked right now."""
SWAPPED: Final = "..data"
"""A mounted Kubernetes secret is links into this link, which is all that changes with it."""
MAX_RETRY_S: Final = 60.0
POLL_S: Final = 5.0
"""Between two looks at what no event has told of."""
_Signatures: TypeAlias = dict[str, tuple[int, int, int]]
"""Path -> number, size and time of change of each file: another content has another one, but for rare cases in which an
event tells."""


class AuthDirWatcher:
    """Watches the directory that the configuration names, and the next one when it names another."""

    def __init__(self, directory: AuthDirectory, *, retry_s: float = RETRY_S, poll_s: float = POLL_S) -> None:
        self.tried = asyncio.Event()
        """Set once changes are seen, or the first attempt to see them has failed."""
        self._directory: Final = directory
        self._retry_s: Final = retry_s
        self._poll_s: Final = poll_s
        self._seen: _Signatures = {}
        """Of the files when they were looked at last."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._watch()
            except* OSError as errors:
                reasons = "; ".join(str(error) for error in errors.exceptions)
                log.warning("credential.watch_failed", path=self._directory.directory, reason=reasons)
                await asyncio.sleep(self._retry_s)

    async def poll(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                found = await asyncio.to_thread(self._signatures)
            except OSError:
                continue  # whoever watches says so
            seen = self._seen
            changed = {path for path, signature in found.items() if seen.get(path) != signature}
            # Of a directory that is not used any more nothing is known, and what lies there stays where it is.
            changed |= {path for path in seen if path not in found and self._directory.content(path) is not None}
            self._seen = found
            if changed:
                await self._apply(changed)

    def _signatures(self) -> _Signatures:
        found: _Signatures = {}
        for path in self._directory.paths():
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                found[path] = status.st_ino, status.st_size, status.st_mtime_ns
        return found

    async def retry_waiting(self) -> None:
        """Ask plugins again about the files they could not be asked about, until cancelled.

        Less and less often: the file may be what makes its plugin fail.
        """
        pause_s = self._retry_s
        while True:
            await self._directory.has_waiting.wait()
            await asyncio.sleep(pause_s)
            await self._directory.retry()
            is_still_waiting = self._directory.has_waiting.is_set()
            pause_s = min(2 * pause_s, MAX_RETRY_S) if is_still_waiting else self._retry_s

    async def _watch(self) -> None:
        path = self._directory.directory
        files.prepare_directory(path)
        self._directory.moved.clear()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(path), name="credentials:follow")
                # The system is asked to watch in the first step of the task.
                await asyncio.sleep(0)
                await self._catch_up()
                self.tried.set()
        finally:
            self.tried.set()

    async def _follow(self, path: str) -> None:
        async for found in awatch(
            path,
            watch_filter=self._is_relevant,
            stop_event=self._directory.moved,
            debounce=DEBOUNCE_MS,
            recursive=self._directory.settings.subfolders,
            yield_on_timeout=True,
        ):
            if any(not files.is_credential_file(name) for _, name in found):
                await self._catch_up()  # a folder came, went or was swapped, and nobody says what was in it
            elif found:
                await self._apply({name for _, name in found})
            if not os.path.isdir(path):
                return  # the watch went with the directory

    async def _catch_up(self) -> None:
        """What changed between reading the files and watching them was seen by nobody."""
        known = {record.path for record in self._directory.manager.credentials if record.path}
        found = await asyncio.to_thread(self._signatures)
        await self._refresh({*found, *known, *self._directory.problems})
        self._seen = found

    async def _apply(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        if any(not os.path.exists(path) for path in paths):
            await asyncio.sleep(REPLACE_CHECK_S)
        await self._refresh(paths)

    async def _refresh(self, paths: Iterable[str]) -> None:
        change = await self._directory.refresh(paths)
        if change:
            log.info(
                "credential.files_changed",
                added=len(change.added),
                changed=len(change.changed | change.touched),
                removed=len(change.removed),
            )

    def _is_relevant(self, change: Change, path: str) -> bool:
        """Whether an event is of a credential file, or of a folder that may have had some."""
        folder = self._directory.directory
        if os.path.basename(path) == SWAPPED:
            return True
        if not self._directory.settings.subfolders:
            return files.is_credential_file(path)
        inside = os.path.relpath(path, folder).split(os.sep)
        if any(part.startswith(".") for part in inside):
            return False
        if files.is_credential_file(path):
            return True
        known = self._directory.manager.credentials
        return os.path.isdir(path) or any(it.path.startswith(path + os.sep) for it in known)
