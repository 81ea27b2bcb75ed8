"""The credit window of one stream, sans-io: the producer's view and the consumer's view."""

from typing import Final

from pluginabi.limits import STREAM_WINDOW_BYTES, STREAM_WINDOW_ITEMS

_RETURN_ITEMS: Final = STREAM_WINDOW_ITEMS // 2
_RETURN_BYTES: Final = STREAM_WINDOW_BYTES // 2


class Window:
    """What may still be sent. One item may overshoot: sending is allowed while both counters are positive."""

    __slots__ = ("bytes", "items")

    def __init__(self) -> None:
        self.items = STREAM_WINDOW_ITEMS
        self.bytes = STREAM_WINDOW_BYTES

    @property
    def is_open(self) -> bool:
        return self.items > 0 and self.bytes > 0

    def spend(self, size: int) -> None:
        """One item of `size` bytes (its frame as sent, without LF) is on its way."""
        self.items -= 1
        self.bytes -= size

    def grant(self, items: int, size: int) -> None:
        """The consumer took that much. Negative numbers count as nothing."""
        self.items += max(0, items)
        self.bytes += max(0, size)


class Returns:
    """What the consumer took and has not told yet; told when half a window is together."""

    __slots__ = ("_bytes", "_items")

    def __init__(self) -> None:
        self._items = 0
        self._bytes = 0

    def took(self, size: int) -> tuple[int, int] | None:
        """One item of `size` bytes was consumed; (items, bytes) when it is time to tell the producer."""
        self._items += 1
        self._bytes += size
        if self._items < _RETURN_ITEMS and self._bytes < _RETURN_BYTES:
            return None
        due = (self._items, self._bytes)
        self._items = self._bytes = 0
        return due
