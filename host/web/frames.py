"""Framing of stream items for the client, one writer per family. Nothing here waits or writes.

Raw items are passed on in whole events: bytes of an event that is not complete are held until the rest arrives. The
client could not use them earlier anyway, and so a keep-alive, an error or the end marker never lands inside an event.
"""

import re
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from msgspec import UNSET, Struct

from host.web.answer import EVENT_STREAM_TYPE, JSON_TYPE
from host.web.render_errors import Family, render_in_band
from pluginabi.body import Body, StreamItem, is_json
from pluginabi.errors import ErrorBody
from pluginapi.protocols.sse import SseParser, format_event

MAX_HELD_BYTES: Final = 1024 * 1024
"""A larger incomplete event is passed on in pieces; the client's own memory has to hold it, not the proxy's."""

KEEP_ALIVE_COMMENT: Final = b": keep-alive\n\n"


class FrameWriter(Protocol):
    """Turns the items of one stream into bytes for the client."""

    content_type: str
    ended: bool
    """The terminal event was written: nothing may follow."""
    failure: ErrorBody | None
    """The stream is broken at this point; what was returned before stands."""

    @property
    def keep_alive(self) -> bytes:
        """What may be written now to keep the connection open; empty: nothing may."""

    def item(self, item: StreamItem) -> bytes:
        """The framed bytes of `item`; empty while an event is incomplete."""

    def last(self, framed: bytes) -> bytes:
        """The protocol's end marker is in `framed` or in what is held: the bytes without what follows the marker.

        Called for every further item until the event that the marker starts is complete.
        """

    def end(self) -> bytes:
        """The end of a stream that ended cleanly. May set `failure` instead."""

    def error(self, error: ErrorBody) -> bytes:
        """The in-band error event, and whatever the format needs behind it."""


def raw_bytes(body: Body) -> bytes:
    """Bytes of a raw item."""
    if body.text is not UNSET:
        return body.text.encode()
    return body.to_bytes()


def event_bytes(body: Body) -> bytes:
    """Bytes of an event's body on one line; a line end inside JSON is white space."""
    if body.json is not UNSET:
        data = bytes(body.json)
        if b"\n" in data or b"\r" in data:
            data = data.replace(b"\r", b" ").replace(b"\n", b" ")
        return data
    return body.to_bytes()


class WholeEvents:
    """Cuts raw bytes at event boundaries."""

    __slots__ = ("_held", "_inside")

    def __init__(self) -> None:
        self._held = bytearray()
        self._inside = False

    def feed(self, chunk: bytes) -> bytes:
        """The bytes up to the last complete event."""
        held = self._held
        if not held:
            if chunk.endswith(b"\n\n"):
                self._inside = False
                return chunk
            end = _after_last_boundary(chunk, 0)
            held += chunk[end:]
            out = chunk[:end]
        else:
            # The boundary may lie across the seam: its longest form has four bytes.
            start = max(len(held) - 3, 0)
            held += chunk
            end = _after_last_boundary(held, start)
            out = bytes(held[:end])
            del held[:end]
        if out:
            self._inside = False
        if len(held) > MAX_HELD_BYTES:
            out += bytes(held)
            held.clear()
            self._inside = True
        return out

    @property
    def at_boundary(self) -> bool:
        """Whether the client has whole events only."""
        return not self._inside

    def finish(self) -> tuple[bytes, bool]:
        """At the end of the bytes: what is held if it is a whole event that lacks its blank line, and whether the
        stream ended inside an event."""
        if self._inside:
            self._held.clear()
            self._inside = False
            return b"\n\n", True
        rest = self.complete_rest()
        only_comments = all(line.startswith(b":") for line in self._held.split())
        self._held.clear()
        return (rest, False) if rest else (b"", not only_comments)

    def complete_rest(self) -> bytes:
        """What is held, with its blank line, if nothing but that is missing; otherwise nothing, and it stays held."""
        held = bytes(self._held)
        events = SseParser().feed(held + b"\n\n") if held else []
        if not events or not all(event.data == b"[DONE]" or is_json(event.data) for event in events):
            return b""
        self._held.clear()
        return held.rstrip(b"\r\n") + b"\n\n"


def _after_last_boundary(data: bytes | bytearray, start: int) -> int:
    """The index behind the last blank line at or after `start`; 0 when there is none."""
    blank_lines = (b"\n\n",) if data.find(b"\r", start) < 0 else (b"\n\n", b"\n\r\n", b"\r\r")
    ends = (at + len(blank) for blank in blank_lines if (at := data.rfind(blank, start)) >= 0)
    return max(ends, default=0)


def cut_behind(data: bytes, marker: "Marker") -> bytes:
    """`data` without what follows the event that `marker` starts; ends with a blank line."""
    match = marker.find(data)
    if match is not None:
        blank = re.compile(rb"\r\n\r\n|\n\n|\r\r").search(data, match.end())
        if blank is not None:
            return data[: blank.end()]
    return data.rstrip(b"\r\n") + b"\n\n"


@dataclass(frozen=True, slots=True)
class Marker:
    """The line that starts a protocol's last event; found by its literal, as a pattern search visits every byte."""

    literal: bytes
    line: re.Pattern[bytes]

    def find(self, data: bytes) -> re.Match[bytes] | None:
        """The first such line of `data`."""
        at = data.find(self.literal)
        while at >= 0:
            start = max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at)) + 1
            if (match := self.line.match(data, start)) is not None:
                return match
            at = data.find(self.literal, at + 1)
        return None


def broken_stream(message: str) -> ErrorBody:
    """The upstream's stream is not what it should be."""
    return ErrorBody(message=message, code="upstream_stream_broken", http_status=502, origin="host")


class _EventType(Struct):
    type: str = ""


_decode_type: Final = msgspec.json.Decoder(_EventType).decode


def event_type(data: bytes) -> str:
    """The member `type` of an event's JSON; empty when it has none."""
    try:
        return _decode_type(data).type
    except msgspec.DecodeError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one family spells its event stream."""

    family: Family
    named: bool = False
    """Events have an `event:` line."""
    keep_alive: bytes = KEEP_ALIVE_COMMENT
    end: bytes = b""
    """Written at the end of a stream that did not bring its own end marker."""
    raw_end_required: bool = False
    """Forwarded bytes without their end marker are a cut connection, not an end."""
    marker: Marker | None = None
    """What starts the last event of a raw stream."""
    last_events: frozenset[str] = frozenset()
    """Names of events that nothing may follow."""


CHAT: Final = Dialect(
    family=Family.OPENAI, end=b"data: [DONE]\n\n", marker=Marker(b"[DONE]", re.compile(rb"data: ?\[DONE\]"))
)
CLAUDE: Final = Dialect(
    family=Family.CLAUDE,
    named=True,
    end=b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    raw_end_required=True,
    marker=Marker(b"message_stop", re.compile(rb'event: ?message_stop|data: ?\{[^\r\n]*"type" ?: ?"message_stop"')),
    last_events=frozenset({"message_stop", "error"}),
)
# The google-genai SDK stumbles over names and comments; a bare newline is nothing to it.
GEMINI: Final = Dialect(family=Family.GEMINI, keep_alive=b"\n")


class SseFrames:
    """Writes the event stream of chat, messages and Gemini."""

    content_type = EVENT_STREAM_TYPE

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._raw: WholeEvents | None = None
        self._marker_seen = False
        self.ended = False
        self.failure: ErrorBody | None = None

    @property
    def keep_alive(self) -> bytes:
        return self._dialect.keep_alive if self._raw is None or self._raw.at_boundary else b""

    def item(self, item: StreamItem) -> bytes:
        if item.raw is not UNSET:
            if self._raw is None:
                self._raw = WholeEvents()
            return self._raw.feed(raw_bytes(item.raw))
        if item.body is UNSET:
            return b""
        data = event_bytes(item.body)
        if not self._dialect.named:
            return b"data: %b\n\n" % data
        # An SDK reads the name of the event, not the type inside, so it is never left out.
        name = item.event or event_type(data)
        self.ended = name in self._dialect.last_events
        return format_event(name, data)

    def last(self, framed: bytes) -> bytes:
        self._marker_seen = True
        marker = self._dialect.marker
        if marker is None:
            return framed
        if self._raw is not None and not marker.find(framed):
            # The marker is in what is held, and the rest of its event may still have to come.
            framed += self._raw.complete_rest()
            if not marker.find(framed):
                return framed
        self.ended = True
        return cut_behind(framed, marker)

    def end(self) -> bytes:
        self.ended = True
        if self._raw is None:
            return self._dialect.end
        rest, broken = self._raw.finish()
        if self._marker_seen and not broken:
            return rest
        if broken or self._dialect.raw_end_required:
            self.failure = broken_stream("the upstream's stream ended before its last event")
            return rest
        return rest + self._dialect.end

    def error(self, error: ErrorBody) -> bytes:
        self.ended = True
        name = "error" if self._dialect.named else None
        gap = b"" if self._raw is None or self._raw.at_boundary else b"\n\n"
        return gap + format_event(name, render_in_band(error, self._dialect.family))


class GeminiArray:
    """`gemini` with another `alt`: events become the elements of one JSON array, raw bytes stay as they are."""

    content_type = JSON_TYPE
    keep_alive = b""

    def __init__(self) -> None:
        self.ended = False
        self.failure: ErrorBody | None = None
        self._elements = 0
        self._raw = False

    def item(self, item: StreamItem) -> bytes:
        if item.raw is not UNSET:
            self._raw = True
            return raw_bytes(item.raw)
        assert item.body is not UNSET
        return self._element(event_bytes(item.body))

    def last(self, framed: bytes) -> bytes:
        self.ended = True
        return framed

    def end(self) -> bytes:
        self.ended = True
        if self._raw:
            return b""
        return b"\n]" if self._elements else b"[]"

    def error(self, error: ErrorBody) -> bytes:
        self.ended = True
        body = render_in_band(error, Family.GEMINI)
        return body if self._raw else self._element(body) + b"\n]"

    def _element(self, body: bytes) -> bytes:
        self._elements += 1
        return (b"[" if self._elements == 1 else b",\n") + body
