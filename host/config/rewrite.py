"""Changing a file that others change too: other workers, the command line, and whoever has it open in an editor."""

import contextlib
import errno
import os
import re
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

LOCK_S: Final = 10.0
"""How long another process may take for its change."""
ATTEMPTS: Final = 5
_POLL_S: Final = 0.01
_LINE_END: Final = re.compile(r"\r\n?")
_ANY_END: Final = re.compile(r"\r\n?|\n")
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")

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
    `change` sees every line end as `\\n`; lines that stay keep theirs, and others get what most lines of the file have.
    Raises OSError (`FileBusy` when nobody ever stops), UnicodeDecodeError, and what `change` raises.
    """
    with _held(file):
        for _ in range(ATTEMPTS):
            stored = _stored(file, may_be_missing=may_be_missing)
            before = None if stored is None else _LINE_END.sub("\n", stored)
            text, result = change(before or "")
            if text == before:
                return result
            try:
                _replace(file, _with_line_ends(text, stored or ""), expected=stored)
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
        if _stored(target, may_be_missing=True) != expected:
            raise _Changed
        os.replace(temporary, target)


@contextlib.contextmanager
def _beside(target: str, text: str, mode: int | None) -> Iterator[tuple[str, str]]:
    """A complete file beside the target, with its mode; removed when it is not renamed."""
    present = os.stat(target) if os.path.exists(target) else None
    if mode is None:
        mode = stat.S_IMODE(present.st_mode) if present is not None else 0o600
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as out:
            if present is not None:
                _give(descriptor, present)
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, mode)
        yield temporary, target
    except BaseException:
        os.unlink(temporary)
        raise


def _give(descriptor: int, present: os.stat_result) -> None:
    """Whose file it was, theirs it stays, as far as this user may say so: of root, nobody else could read it."""
    for owner, group in ((present.st_uid, present.st_gid), (-1, present.st_gid)):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner, group)
            return


def _stored(file: str, *, may_be_missing: bool) -> str | None:
    """The text with the line ends that it has."""
    try:
        return Path(file).read_bytes().decode("utf-8")
    except FileNotFoundError:
        if may_be_missing:
            return None
        raise


def _with_line_ends(text: str, stored: str) -> str:
    """A changed text with line ends like those of the one that is stored."""
    if "\r" not in stored or "\r" in text:
        return text
    before = [found[0] for found in _LINE.finditer(stored)]
    plain = [_LINE_END.sub("\n", line) for line in before]
    usual = Counter(found[0] for found in _ANY_END.finditer(stored)).most_common(1)[0][0]
    lines = [found[0] for found in _LINE.finditer(text)]
    shorter = min(len(lines), len(plain))
    first = next((number for number in range(shorter) if lines[number] != plain[number]), shorter)
    rest = shorter - first
    same = next((number for number in range(rest) if lines[-1 - number] != plain[-1 - number]), rest)
    changed = (line.replace("\n", usual) for line in lines[first : len(lines) - same])
    return "".join((*before[:first], *changed, *before[len(before) - same :]))


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
