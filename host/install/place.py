"""Folders change hands: from staging to their place and back, together with the lock."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from host.install.lock import LockEntry, changed_lock
from host.install.swap import exchange

STAGING_PREFIX: Final = ".staging-"
"""Hidden folders are no plugins to discovery."""


@contextmanager
def staging(plugins_dir: Path) -> Iterator[Path]:
    """A folder only this user can enter, on the file system of the plugins; removed with all that is in it."""
    plugins_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=plugins_dir))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def place(config_dir: Path, *, staged: Path, target: Path, plugin_id: str, entry: LockEntry) -> None:
    """Put a staged folder where the plugin belongs and write its entry; what was there before is at `staged` then.

    Raises LockError and OSError; then folder and lock are as they were.
    """
    undo: Callable[[Path, Path], None] | None = None
    try:
        with changed_lock(config_dir) as change:
            if target.exists():
                exchange(staged, target)
                undo = exchange
            else:
                staged.rename(target)
                undo = _move_back
            change.put(plugin_id, entry)
    except BaseException:
        if undo is not None:
            undo(staged, target)
        raise


def take_away(config_dir: Path, *, folder: Path, into: Path, plugin_id: str) -> None:
    """Move an installed folder to `into` and forget its entry. Raises LockError and OSError; nothing is lost then."""
    moved = False
    try:
        with changed_lock(config_dir) as change:
            if folder.exists():
                folder.rename(into)
                moved = True
            change.drop(plugin_id)
    except BaseException:
        if moved:
            into.rename(folder)
        raise


def _move_back(staged: Path, target: Path) -> None:
    target.rename(staged)
