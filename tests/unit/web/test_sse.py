"""The sans-io parser and formatter of server-sent events."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginapi.protocols.sse import SseEvent, SseEventTooLarge, SseParser, format_event


def parse(*chunks: bytes, max_event_bytes: int = 1 << 20, flush: bool = False) -> list[SseEvent]:
    parser = SseParser(max_event_bytes)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + (parser.flush() if flush else [])


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"data: a\n\n", [SseEvent(None, b"a")]),
        (b"data:a\n\n", [SseEvent(None, b"a")]),
        (b"data:  a\n\n", [SseEvent(None, b" a")]),
        (b"event: x\ndata: a\n\n", [SseEvent("x", b"a")]),
        (b"data: a\nevent: x\n\n", [SseEvent("x", b"a")]),
        (b"data: a\ndata: b\n\n", [SseEvent(None, b"a\nb")]),
        (b"data\n\n", [SseEvent(None, b"")]),
        (b"data:\ndata:\n\n", [SseEvent(None, b"\n")]),
        (b": comment\n\n", []),
        (b": comment\ndata: a\n\n", [SseEvent(None, b"a")]),
        (b"event: x\n\ndata: a\n\n", [SseEvent(None, b"a")]),
        (b"id: 7\nretry: 10\nunknown: y\ndata: a\n\n", [SseEvent(None, b"a")]),
        (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [SseEvent(None, b"a"), SseEvent(None, b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent(None, b"a")]),
        (
            b"data: a\r\n\r\ndata: b\r\rdata: c\n\r\n",
            [SseEvent(None, b"a"), SseEvent(None, b"b"), SseEvent(None, b"c")],
        ),
        (b"data: a\r\ndata: b\rdata: c\n\n", [SseEvent(None, b"a\nb\nc")]),
        (b"data: unfinished\n", []),
        ("data: größe\n\n".encode(), [SseEvent(None, "größe".encode())]),
        (b"event: \xff\ndata: a\n\n", [SseEvent("�", b"a")]),
    ],
)
def test_an_event_stream_is_read_as_the_standard_says(wire: bytes, expected: list[SseEvent]) -> None:
    assert parse(wire) == expected
    assert parse(*(wire[index : index + 1] for index in range(len(wire)))) == expected


PIECES = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"event: x",
        b"event:",
        b": c",
        b"\n",
        b"\n\n",
        b"\r\n",
        b"\r",
        b"\r\n\r\n",
        b"a",
        b"{}",
        b"\xef\xbb\xbf",
        "ß".encode(),
        b"data",
        b" ",
        b"id: 1",
    ]
)


@given(st.lists(PIECES, max_size=40).map(b"".join), st.lists(st.integers(min_value=0, max_value=120), max_size=12))
def test_any_split_gives_the_same_events(wire: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    chunks = [wire[start:end] for start, end in itertools.pairwise(edges)]
    assert parse(*chunks, flush=True) == parse(wire, flush=True)


@given(
    st.lists(
        st.tuples(
            st.none() | st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1),
            st.binary(max_size=50).map(lambda data: data.replace(b"\r", b"")),
        ),
        max_size=5,
    )
)
def test_what_is_formatted_is_read_back(events: list[tuple[str | None, bytes]]) -> None:
    # A leading space of a name is the one that the standard lets a reader drop; the formatter always writes one.
    wire = b"".join(format_event(event, data) for event, data in events)
    assert parse(wire) == [SseEvent(event, data) for event, data in events]


def test_a_line_end_in_an_event_name_cannot_start_another_field() -> None:
    assert format_event("x\ndata: forged", b"a") == b"event: x\ndata: a\n\n"


def test_the_event_that_the_end_of_the_stream_cut_off_is_given_by_flush() -> None:
    assert parse(b"data: a\n\nevent: x\ndata: b", flush=True) == [SseEvent(None, b"a"), SseEvent("x", b"b")]
    assert parse(b"event: x\n", flush=True) == []


@pytest.mark.parametrize("end", [b"\n\n", b""])
def test_an_event_over_the_limit_raises_after_the_events_before_it(end: bytes) -> None:
    parser = SseParser(20)
    assert parser.feed(b"data: small\n\ndata: " + b"x" * 40 + end) == [SseEvent(None, b"small")]
    with pytest.raises(SseEventTooLarge):
        parser.feed(b"data: next\n\n")
    with pytest.raises(SseEventTooLarge):
        parser.flush()


def test_an_event_that_grows_over_the_limit_in_small_pieces_is_not_kept() -> None:
    parser = SseParser(20)
    with pytest.raises(SseEventTooLarge):
        for _ in range(30):
            parser.feed(b"data: x\n")
    assert parser.pending_bytes == 0
