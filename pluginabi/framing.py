"""Newline-delimited frames, sans-io: bytes in, lines out. No asyncio, no JSON.

A line may be as long as `max_frame_bytes`, end in LF or CRLF, and arrive in any number of pieces.
"""

import re
from typing import Final, NamedTuple

from pluginabi.limits import FRAME_ID_SEARCH_BYTES

_LF: Final = 10
_CR: Final = 13
_NEWLINES_TO_SPACES: Final = bytes.maketrans(b"\r\n", b"  ")
_TOKEN: Final = re.compile(rb'[ \t\r\n]*(?:("(?:[^"\\]|\\.)*")|([{}\[\],:])|([^\s{}\[\],:"]+))', re.DOTALL)


class Oversize(NamedTuple):
    """A line longer than the limit: skipped, only its start was kept."""

    head: bytes
    """At most `FRAME_ID_SEARCH_BYTES`."""
    size: int


class Header(NamedTuple):
    """What could be read of a frame that could not be decoded."""

    kind: str | None
    id: int | None


class LineSplitter:
    """Cuts a byte stream into lines. Remembers at most `max_frame_bytes` of an unfinished line."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_bytes = max_frame_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._head: bytes | None = None

    def feed(self, data: bytes) -> list[bytes | Oversize]:
        """The lines that `data` completes, without LF (a CR may remain); empty lines are left out."""
        if not self._size and 2 < len(data) == data.find(_LF) + 1 <= self._max_bytes:
            return [data[:-1]]  # by far the most frequent case: exactly one line
        *complete, rest = data.split(b"\n")
        lines: list[bytes | Oversize] = []
        for piece in complete:
            if self._size:
                self._keep(piece)
                line = self._take()
            else:
                line = self._checked(piece)
            if line and line != b"\r":
                lines.append(line)
        if rest:
            self._keep(rest)
        return lines

    def flush(self) -> bytes | Oversize | None:
        """What was left without a newline when the stream ended; None when nothing."""
        return (self._take() or None) if self._size else None

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._head is not None:
            return
        self._pieces.append(piece)
        # One byte more than the limit may be the CR of a line that fits.
        if self._size > self._max_bytes + 1:
            self._head = b"".join(self._pieces)[:FRAME_ID_SEARCH_BYTES]
            self._pieces.clear()

    def _take(self) -> bytes | Oversize:
        size, head = self._size, self._head
        self._size, self._head = 0, None
        if head is not None:
            return Oversize(head, size)
        line = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return self._checked(line)

    def _checked(self, line: bytes) -> bytes | Oversize:
        if len(line) <= self._max_bytes or (len(line) == self._max_bytes + 1 and line.endswith(b"\r")):
            return line
        return Oversize(line[:FRAME_ID_SEARCH_BYTES], len(line))


def one_line(data: bytes) -> bytes:
    """Encoded JSON without LF and CR: both can only be whitespace between tokens, brought in by an embedded body."""
    if _LF in data or _CR in data:
        return data.translate(_NEWLINES_TO_SPACES)
    return data


def peek_header(head: bytes) -> Header:
    """`kind` and `id` among the top-level members of an object of which only the start is known or readable."""
    if not head.lstrip().startswith(b"{"):
        return Header(None, None)
    kind: str | None = None
    frame_id: int | None = None
    depth = 0
    key: bytes | None = None
    after_colon = False
    position = 0
    for match in _TOKEN.finditer(head):
        if match.start() != position:
            break
        position = match.end()
        text, mark, scalar = match.groups()
        if mark is not None:
            if depth == 0 and mark != b"{":
                break
            depth += (mark in b"{[") - (mark in b"}]")
            if depth == 0:
                break
            if depth == 1:
                after_colon = mark == b":"
                key = key if after_colon else None
        elif depth == 0:
            break
        elif depth == 1 and not after_colon:
            key = text
        elif depth == 1:
            # A number at the very end of the known part may be cut off.
            if key == b'"id"' and scalar is not None and scalar.isdigit() and position < len(head):
                frame_id = int(scalar)
            elif key == b'"kind"' and text is not None and text.isascii():
                kind = text[1:-1].decode()
            key, after_colon = None, False
        if kind is not None and frame_id is not None:
            break
    return Header(kind, frame_id)
