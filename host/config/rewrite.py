"""Changing a file that others change too: other workers, the command line, and whoever has it open in an editor."""

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

LOCK_S: Final = 10.0
"""How long another process may take for its change."""
ATTEMPTS: Final = 5
_POLL_S: Final = 0.01

T = TypeVar("T")


class FileBusy(OSError):
    """Somebody else is changing the file, and goes on doing so."""

    def __init__(self, file: str) -> None:
        super().__init__(errno.EBUSY, "somebody else is changing it", file)


class _Changed(Exception):
    """The file is not what it was when the change began."""


def rewrite(file: str, change: Callable[[str], tuple[str, T]], *, may_be_missing: bool = False) -> T:
    """Write what `change` makes of the file's text, and return the other thing that it returns. Blocks.

    One change at a time over all processes that use this. When somebody else, an editor, saves the file meanwhile,
    `change` is called again with the new text. Nothing is written when the text stays, or when `change` raises.
    Raises OSError (`FileBusy` when nobody ever stops), UnicodeDecodeError, and what `change` raises.
    """
    with _held(file):
        for _ in range(ATTEMPTS):
            before = _text(file, may_be_missing=may_be_missing)
            text, result = change(before or "")
            if text == before:
                return result
            try:
                _replace(file, text, expected=before)
            except _Changed:
                continue
            return result
    raise FileBusy(file)


def write_atomically(file: str, text: str, *, mode: int | None = None) -> None:
    """Write beside the file and rename over it; an existing file keeps its mode, a new one gets `mode` or 0600."""
    with _beside(os.path.realpath(file), text, mode) as (temporary, target):
        os.replace(temporary, target)


def _replace(file: str, text: str, *, expected: str | None) -> None:
    with _beside(os.path.realpath(file), text, None) as (temporary, target):
        # Only now: writing to a disk takes longer than anything else here.
        if _text(target, may_be_missing=True) != expected:
            raise _Changed
        os.replace(temporary, target)


@contextlib.contextmanager
def _beside(target: str, text: str, mode: int | None) -> Iterator[tuple[str, str]]:
    """A complete file beside the target, with its mode; removed when it is not renamed."""
    if mode is None:
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o600
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, mode)
        yield temporary, target
    except BaseException:
        os.unlink(temporary)
        raise


def _text(file: str, *, may_be_missing: bool) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        if may_be_missing:
            return None
        raise


@contextlib.contextmanager
def _held(file: str) -> Iterator[None]:
    """The file, held against other processes. One that does not exist yet cannot be held."""
    until_s = time.monotonic() + LOCK_S
    while True:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        try:
            if _locked(descriptor) and _is_still(file, descriptor):
                yield
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > until_s:
            raise FileBusy(file)
        time.sleep(_POLL_S)


def _locked(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: the check before the file is replaced has to do.
        return True
    return True


def _is_still(file: str, descriptor: int) -> bool:
    """Whether the file is the one that was opened: every change puts a new one in its place."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
