"""Changes the mode of a file for a confined plugin, in the directories that it may write.

Landlock does not look at modes, and a plugin is the same user as the host: left to itself it could lock the host out of
its own files, or open them to everybody. So the filter stops these calls, and the host does the harmless ones itself,
on a descriptor of its own: nothing the plugin does meanwhile can turn it to another file.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

MODE_CALLS: Final = frozenset({"chmod", "fchmod", "fchmodat", "fchmodat2"})
_PATH_MAX: Final = 4096
_AT_FDCWD: Final = 0xFFFFFF9C
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_OPENAT2: Final = 437
_RESOLVE: Final = 0x02 | 0x08
"""RESOLVE_NO_MAGICLINKS and RESOLVE_BENEATH."""
_PERMISSIONS: Final = 0o777
"""No set-user-id, set-group-id or sticky bit."""


class ModeChanger:
    """For the directories of one plugin."""

    def __init__(self, directories: Sequence[Path]) -> None:
        spellings = [(str(directory.absolute()), Path(os.path.realpath(directory))) for directory in directories]
        self._roots = [root for _, root in spellings]
        self._spellings = [*spellings, *((str(root), root) for root in self._roots)]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long

    def change(self, process: int, name: str, arguments: Sequence[int], still_waits: Callable[[], bool]) -> bool:
        """Do one call of `MODE_CALLS` as the plugin asked for it; False when it is not to be done, or failed.

        `process` is the caller and stands still; `still_waits` says whether it still does.
        """
        try:
            if name == "fchmod":
                fd, mode = self._open_descriptor(process, _int(arguments[0])), arguments[1]
            else:
                fd, mode = self._open_path(process, name, arguments)
        except (OSError, ValueError):
            return False
        try:
            if not still_waits():
                return False
            # The descriptor is a place, not an open file: fchmod would refuse it.
            os.chmod(f"/proc/self/fd/{fd}", mode & _PERMISSIONS)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def _open_descriptor(self, process: int, number: int) -> int:
        """What the plugin has open under this number, if it lies in a directory of its own. Raises OSError."""
        fd = os.open(f"/proc/{process}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if not any(root in path.parents for root in self._roots):
            os.close(fd)
            raise PermissionError(path)
        return fd

    def _open_path(self, process: int, name: str, arguments: Sequence[int]) -> tuple[int, int]:
        """The file a path of the plugin leads to, without leaving a directory of its own, and the mode.

        Raises OSError, and ValueError for a path that is no text or too long.
        """
        start = _AT_FDCWD
        if name != "chmod":
            start, *arguments = arguments
        address, mode = arguments[0], arguments[1]
        flags = arguments[2] if name == "fchmodat2" else 0
        path = _text_at(process, address)
        if not path.startswith("/"):
            base = "cwd" if start & 0xFFFFFFFF == _AT_FDCWD else f"fd/{_int(start)}"
            path = os.path.join(os.readlink(f"/proc/{process}/{base}"), path)
        for spelling, root in self._spellings:
            # Only what is spelled as beneath it: the kernel sees to the rest of the way.
            if path == spelling or path.startswith(f"{spelling}/"):
                inside = path[len(spelling) + 1 :]
                return self._open_beneath(root, inside, nofollow=bool(flags & _AT_SYMLINK_NOFOLLOW)), mode
        raise PermissionError(path)

    def _open_beneath(self, root: Path, inside: str, *, nofollow: bool) -> int:
        flags = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if nofollow else 0)
        how = b"".join(number.to_bytes(8, "little") for number in (flags, 0, _RESOLVE))
        root_fd = os.open(root, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            path = os.fsencode(inside) or b"."
            fd = int(self._libc.syscall(ctypes.c_long(_OPENAT2), root_fd, path, how, ctypes.c_size_t(len(how))))
        finally:
            os.close(root_fd)
        if fd < 0:
            raise OSError(ctypes.get_errno(), inside)
        return fd


def _int(value: int) -> int:
    """The kernel's `int` in an argument."""
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _text_at(process: int, address: int) -> str:
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        found = b""
        while b"\0" not in found:
            # To the end of the page and no further: the next one may not be there.
            at = address + len(found)
            piece = os.pread(memory.fileno(), 4096 - at % 4096, at)
            found += piece
            if not piece or len(found) > 2 * _PATH_MAX:
                raise ValueError("no path")
    path = found.split(b"\0", 1)[0]
    if len(path) >= _PATH_MAX:
        raise ValueError("no path")
    return os.fsdecode(path)
