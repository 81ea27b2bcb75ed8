"""Writers of event streams as functions of bytes: whole events only, one end, whatever the split or the cut."""

import itertools
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from host.web.frames import CHAT, CLAUDE, GEMINI, Dialect, SseFrames, WholeEvents
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody
from pluginapi.protocols.sse import SseParser

DONE = re.compile(rb"(?:^|\n)data: \[DONE\]")
SOURCES = {
    "chat": (
        CHAT,
        'data: {"n":1}\n\n: note\n\ndata: {"n":2,"t":"data: [DONE] é"}\r\n\r\ndata: [DONE]\n\n'.encode(),
        DONE,
    ),
    "claude": (
        CLAUDE,
        'event: ping\ndata: {"type":"ping","t":"message_stöp"}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'.encode(),
        re.compile(rb"(?:^|\n)event: message_stop"),
    ),
}


def pieces(wire: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    return [wire[start:end] for start, end in itertools.pairwise(edges)]


def write(dialect: Dialect, chunks: Sequence[bytes], marker: re.Pattern[bytes]) -> bytes:
    """Chunks through a writer as the relay does it, with `terminal_seen` once the marker was among the bytes."""
    writer = SseFrames(dialect)
    out, seen = b"", b""
    for chunk in chunks:
        seen += chunk
        framed = writer.item(StreamItem(raw=Body.exact(chunk)))
        out += writer.last(framed) if marker.search(seen) else framed
        if writer.ended:
            return out
    out += writer.end()
    if writer.failure is not None:
        out += writer.error(writer.failure)
    return out


def is_end(data: bytes) -> bool:
    if data == b"[DONE]":
        return True
    document = json.loads(data)
    return "error" in document or document.get("type") == "message_stop"


@pytest.mark.parametrize("source", SOURCES)
@given(cuts=st.lists(st.integers(min_value=1, max_value=140), max_size=8))
def test_any_split_gives_the_same_bytes(source: str, cuts: list[int]) -> None:
    dialect, wire, marker = SOURCES[source]
    assert write(dialect, pieces(wire, cuts), marker) == write(dialect, [wire], marker) == wire


@pytest.mark.parametrize("source", SOURCES)
@given(end=st.integers(min_value=0, max_value=140), cuts=st.lists(st.integers(min_value=1, max_value=140), max_size=3))
def test_a_cut_at_any_byte_gives_whole_events_and_exactly_one_end(source: str, end: int, cuts: list[int]) -> None:
    dialect, wire, marker = SOURCES[source]
    out = write(dialect, pieces(wire[:end], cuts), marker)
    events = SseParser().feed(out)
    ends = [is_end(event.data) for event in events]
    assert ends.count(True) == 1
    assert ends[-1]


@pytest.mark.parametrize("tail", ["", "\n", "\n\n", "\r\n", "\n\ndata: late\n\n", "\n\n: late\n\n"])
def test_the_end_marker_ends_the_stream_with_or_without_its_blank_line(tail: str) -> None:
    wire = b'data: {"n":1}\n\ndata: [DONE]' + tail.encode()
    assert write(CHAT, [wire], DONE) == b'data: {"n":1}\n\ndata: [DONE]\n\n'


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b": c", b"data: x"]), max_size=30), st.data())
def test_whole_events_loses_and_adds_nothing(parts: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(min_value=0, max_value=max(len(wire), 1)), max_size=6))
    events = WholeEvents()
    out = b"".join(events.feed(chunk) for chunk in pieces(wire, cuts))
    assert wire.startswith(out)
    assert out == b"" or out.endswith((b"\n\n", b"\r\r", b"\n\r\n"))


def test_an_error_behind_half_of_a_giant_event_starts_on_a_line_of_its_own() -> None:
    writer = SseFrames(GEMINI)
    half = b'data: {"t":"' + b"x" * 2_000_000
    assert writer.item(StreamItem(raw=Body.exact(half))) == half
    assert writer.keep_alive == b""
    assert writer.error(ErrorBody(message="m", http_status=500)).startswith(b"\n\ndata: ")


def test_a_line_end_in_an_events_json_stays_inside_its_line() -> None:
    item = StreamItem(body=Body(json=Raw(b'{\r\n "a": 1\n}')))
    assert SseFrames(CHAT).item(item) == b'data: {   "a": 1 }\n\n'
