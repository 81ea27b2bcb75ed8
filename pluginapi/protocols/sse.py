"""Server-sent events without I/O: a parser for bytes in any split, and the formatter.

Source: WHATWG HTML, section 9.2 (event streams). `id` and `retry` are dropped: no model API uses them.
"""

from typing import Final, NamedTuple

DEFAULT_MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One event. `data` is the joined data lines; `event` is None when the stream did not name it."""

    event: str | None
    data: bytes


class SseEventTooLarge(ValueError):
    """One event is larger than the limit; the events before it were delivered."""


class SseParser:
    """Turns bytes into events; the same events come out whatever the split.

    Line ends may be LF, CRLF or lone CR, mixed. A byte order mark at the start, comments and unknown fields are
    skipped. An event without a data line is none. Raises SseEventTooLarge from the `feed` or `flush` after the last
    good event, and from every later one.
    """

    __slots__ = ("_at_start", "_drop_lf", "_max_event_bytes", "_pending", "_scanned", "_too_large")

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()
        self._scanned = 0
        self._at_start = True
        self._drop_lf = False
        self._too_large = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of an event that is not complete yet."""
        return len(self._pending)

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes, in order."""
        if self._too_large:
            raise SseEventTooLarge(f"event larger than {self._max_event_bytes} bytes")
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._drop_lf or b"\r" in chunk:
            chunk = self._with_lf_only(chunk)
        if not chunk:
            return []
        pending = self._pending
        if not pending:
            end = chunk.rfind(b"\n\n")
            if end < 0:
                self._keep(chunk)
                return self._checked([])
            blocks = chunk[:end].split(b"\n\n")
            self._keep(chunk[end + 2 :])
        else:
            # The delimiter may lie across the seam; nothing before `_scanned` can hold one.
            pending += chunk
            end = pending.rfind(b"\n\n", max(self._scanned - 1, 0))
            if end < 0:
                self._scanned = len(pending)
                return self._checked([])
            blocks = bytes(pending[:end]).split(b"\n\n")
            rest = bytes(pending[end + 2 :])
            pending.clear()
            self._keep(rest)
        return self._checked(self._events(blocks))

    def flush(self) -> list[SseEvent]:
        """The event that the end of the stream cut off before its blank line, if it has data.

        A browser would drop it; upstreams do forget the last blank line, so the caller decides.
        """
        if self._too_large:
            raise SseEventTooLarge(f"event larger than {self._max_event_bytes} bytes")
        rest = bytes(self._pending)
        self._pending.clear()
        self._scanned = 0
        return self._events([rest]) if rest else []

    def _keep(self, rest: bytes) -> None:
        self._pending += rest
        self._scanned = len(rest)

    def _without_bom(self, chunk: bytes) -> bytes:
        held = bytes(self._pending) + chunk
        self._pending.clear()
        if len(held) < len(_BOM) and _BOM.startswith(held):
            self._pending += held
            return b""
        self._at_start = False
        return held.removeprefix(_BOM)

    def _with_lf_only(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        if self._drop_lf and chunk[0] == 0x0A:
            chunk = chunk[1:]
        # A CR ends its line at once; should the next chunk start with LF, that LF belongs to it.
        self._drop_lf = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _events(self, blocks: list[bytes]) -> list[SseEvent]:
        events: list[SseEvent] = []
        for block in blocks:
            if len(block) > self._max_event_bytes:
                self._too_large = True
                break
            event = _parse_block(block)
            if event is not None:
                events.append(event)
        return events

    def _checked(self, events: list[SseEvent]) -> list[SseEvent]:
        if len(self._pending) > self._max_event_bytes:
            self._too_large = True
        if self._too_large:
            self._pending.clear()
            if not events:
                raise SseEventTooLarge(f"event larger than {self._max_event_bytes} bytes")
        return events


def _parse_block(block: bytes) -> SseEvent | None:
    if block.startswith(b"data:") and b"\n" not in block:
        return SseEvent(None, block[6:] if block.startswith(b" ", 5) else block[5:])
    name: str | None = None
    lines: list[bytes] = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line.startswith(b" ", 5) else line[5:])
        elif line.startswith(b"event:"):
            value = line[7:] if line.startswith(b" ", 6) else line[6:]
            name = str(value, "utf-8", "replace") or None
        elif line == b"data":
            lines.append(b"")
    if not lines:
        return None
    return SseEvent(name, lines[0] if len(lines) == 1 else b"\n".join(lines))


def format_event(event: str | None, data: bytes) -> bytes:
    """The bytes of one event, blank line included. Line ends inside `data` make several data lines.

    A line end inside the name would start another field, so the name is cut there.
    """
    if b"\n" in data or b"\r" in data:
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        data = b"\ndata: ".join(lines)
    if not event:
        return b"data: %b\n\n" % data
    if "\n" in event or "\r" in event:
        event = event.replace("\r", "\n").split("\n", 1)[0]
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
