"""One folder in the place of another, in one step where the system can."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
"""Linux: renameat2(2)."""
_RENAME_SWAP: Final = 2
"""macOS: renamex_np(2)."""


def exchange(one: Path, other: Path) -> None:
    """Let two existing folders of the same file system change places.

    Nobody ever finds neither, except on systems or file systems without such a call: there `one` is missing for a
    moment. Raises OSError; then both are where they were.
    """
    if _exchange_in_one_step(os.fsencode(one), os.fsencode(other)):
        return
    aside = other.with_name(f"{other.name}.swap")
    one.rename(aside)
    try:
        other.rename(one)
    except OSError:
        aside.rename(one)
        raise
    aside.rename(other)


def _exchange_in_one_step(one: bytes, other: bytes) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            return bool(libc.renamex_np(one, other, _RENAME_SWAP) == 0)
        return bool(libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) == 0)
    except AttributeError:
        return False
