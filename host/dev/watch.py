"""When a plugin's files have really changed: a file that was only touched, caches and swap files do not count."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

IGNORED_FOLDERS: Final = frozenset({"__pycache__", "node_modules", "target", "build", "venv"})
_IGNORED_SUFFIXES: Final = (".pyc", ".swp", ".swx", "~", ".new", ".o")
_DEBOUNCE_MS: Final = 100
_LOOK_EVERY_MS: Final = 1000
"""Where the system tells nothing (a mounted folder), and for what changed before it was asked to tell."""

Stamp = tuple[tuple[str, int, int], ...]


class Watch:
    """Watches one folder from the moment it is made."""

    def __init__(self, folder: Path, stopping: asyncio.Event) -> None:
        self._folder = folder
        self._stopping = stopping
        self._stamp = stamp(folder)
        self._digest = digest(folder)

    async def changes(self) -> AsyncIterator[None]:
        """Yields when there is something new; ends when told to stop."""
        async for _ in awatch(
            self._folder,
            watch_filter=self._counts,
            stop_event=self._stopping,
            debounce=_DEBOUNCE_MS,
            step=20,
            rust_timeout=_LOOK_EVERY_MS,
            yield_on_timeout=True,
        ):
            if not self._stopping.is_set() and self._has_changed():
                yield

    def _has_changed(self) -> bool:
        seen = stamp(self._folder)
        if seen == self._stamp:
            return False
        self._stamp, before = seen, self._digest
        self._digest = digest(self._folder)
        return self._digest != before

    def _counts(self, _: Change, path: str) -> bool:
        return is_source(Path(os.path.relpath(path, self._folder)))


def is_source(path: Path) -> bool:
    """Whether a file, relative to the plugin's folder, is one that counts."""
    hidden = any(part.startswith(".") or part in IGNORED_FOLDERS for part in path.parts)
    return not hidden and not path.name.endswith(_IGNORED_SUFFIXES)


def stamp(folder: Path) -> Stamp:
    """Names, sizes and times of the files that count."""
    found = []
    for path in _files(folder):
        try:
            seen = path.stat()
        except OSError:
            continue  # it went away while we looked
        found.append((str(path), seen.st_size, seen.st_mtime_ns))
    return tuple(sorted(found))


def digest(folder: Path) -> str:
    """A digest over names and contents of the files that count."""
    summed = hashlib.sha256()
    for path in sorted(_files(folder)):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        summed.update(os.fsencode(path) + b"\0" + hashlib.sha256(content).digest())
    return summed.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED_FOLDERS]
        yield from (path for name in names if is_source((path := Path(root, name)).relative_to(folder)))
