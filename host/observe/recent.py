"""The latest lines of the log, for whoever asks later."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.msgpack import Decoder, Encoder

_pack: Final = Encoder().encode
_unpack: Final = Decoder(list[str]).decode


class RecentLines:
    """At least the latest `max_lines` lines, each with the time it was written (Unix seconds), oldest first.

    Lines that were written together are kept together and packed: thousands of texts of a busy proxy, scattered over
    the memory, would slow down its requests more than writing the lines does.
    """

    def __init__(self, max_lines: int) -> None:
        self._max_lines: Final = max_lines
        self._batches: deque[tuple[float, int, bytes]] = deque()
        self._count = 0

    def add(self, at_s: float, lines: Sequence[str]) -> None:
        """Lines that were written now; the oldest batch goes as soon as there are enough without it."""
        try:
            packed = _pack(lines)
        except UnicodeEncodeError:  # half a surrogate pair
            packed = _pack([line.encode(errors="replace").decode() for line in lines])
        self._batches.append((at_s, len(lines), packed))
        self._count += len(lines)
        while self._count - self._batches[0][1] >= self._max_lines:
            self._count -= self._batches.popleft()[1]

    def clear(self) -> None:
        """Forget them."""
        self._batches.clear()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[float, str]]:
        for at_s, _, packed in self._batches:
            for line in _unpack(packed):
                yield at_s, line
