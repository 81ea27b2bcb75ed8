"""Log lines on a pipe into which several processes write."""

from collections.abc import Iterable, Iterator
from typing import Final

WHOLE_BYTES: Final = 4096
"""What arrives in one piece at the other end of a pipe (PIPE_BUF of Linux): several workers write into the same one."""


def pieces_of(lines: Iterable[str]) -> Iterator[str]:
    """Lines to be written at once, so that none is torn apart by those of another process; a longer one is alone."""
    gathered: list[str] = []
    size_bytes = 0
    for line in lines:
        length_bytes = 1 + (len(line) if line.isascii() else len(line.encode("utf-8", "replace")))
        if gathered and size_bytes + length_bytes > WHOLE_BYTES:
            yield "\n".join(gathered) + "\n"
            gathered, size_bytes = [], 0
        gathered.append(line)
        size_bytes += length_bytes
    if gathered:
        yield "\n".join(gathered) + "\n"
