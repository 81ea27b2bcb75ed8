"""Cutting bytes into lines, and reading the start of what cannot be read whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginabi.framing import Header, LineSplitter, Oversize, one_line, peek_header
from pluginabi.limits import FRAME_ID_SEARCH_BYTES

LINES = st.lists(st.binary(min_size=0, max_size=40).filter(lambda line: b"\n" not in line), max_size=12)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, the rest as one piece."""
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [*pieces, data[position:]]


def fed(splitter: LineSplitter, pieces: list[bytes]) -> list[bytes | Oversize]:
    return [line for piece in pieces if piece for line in splitter.feed(piece)]


@given(LINES, st.lists(st.integers(min_value=1, max_value=25), max_size=30))
def test_however_the_stream_is_cut_the_lines_are_the_same(lines: list[bytes], sizes: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assert fed(LineSplitter(100), cut(data, sizes)) == [line for line in lines if line not in (b"", b"\r")]


@given(LINES, st.lists(st.integers(min_value=1, max_value=25), max_size=30), st.integers(min_value=1, max_value=30))
def test_only_lines_above_the_limit_are_skipped_and_their_size_is_told(
    lines: list[bytes], sizes: list[int], limit: int
) -> None:
    data = b"".join(line + b"\n" for line in lines)
    got = fed(LineSplitter(limit), cut(data, sizes))
    kept = [line for line in lines if line not in (b"", b"\r")]
    assert len(got) == len(kept)
    for line, result in zip(kept, got, strict=True):
        content = line[:-1] if line.endswith(b"\r") else line
        if len(content) <= limit:
            assert result == line
        else:
            assert isinstance(result, Oversize)
            assert result.size == len(line)
            assert line.startswith(result.head)


@given(st.binary(max_size=50).filter(lambda rest: b"\n" not in rest))
def test_what_has_no_newline_is_told_at_the_end_of_the_stream(rest: bytes) -> None:
    splitter = LineSplitter(100)
    splitter.feed(b"first\n")
    splitter.feed(rest) if rest else None
    assert splitter.flush() == (rest or None)
    assert splitter.flush() is None


def test_an_endless_line_is_not_remembered() -> None:
    splitter = LineSplitter(10_000)
    for _ in range(1000):
        assert splitter.feed(b"x" * 10_000) == []
    remembered = sum(len(piece) for piece in splitter._pieces) + len(splitter._head or b"")
    assert remembered <= FRAME_ID_SEARCH_BYTES
    [line] = splitter.feed(b"x\n")
    assert isinstance(line, Oversize)
    assert (line.size, len(line.head)) == (10_000_001, FRAME_ID_SEARCH_BYTES)


def test_after_a_line_that_is_too_long_the_next_one_is_read() -> None:
    splitter = LineSplitter(5)
    assert splitter.feed(b"123456\n12345\n12345\r\n123456\r\n") == [
        Oversize(b"123456", 6),
        b"12345",
        b"12345\r",
        Oversize(b"123456\r", 7),
    ]


def test_a_character_cut_in_two_reads_arrives_whole() -> None:
    splitter = LineSplitter(100)
    euro = "€".encode()
    assert splitter.feed(euro[:1]) == []
    assert splitter.feed(euro[1:] + b"\n") == [euro]


@given(st.binary(max_size=60))
def test_encoded_data_becomes_one_line_of_the_same_length(data: bytes) -> None:
    line = one_line(data)
    assert b"\n" not in line
    assert b"\r" not in line
    assert len(line) == len(data)
    assert line == data.replace(b"\n", b" ").replace(b"\r", b" ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["result", "call", "item"]), st.integers(min_value=0, max_value=1 << 62), JSON, JSON, st.data())
def test_kind_and_id_are_found_wherever_they_stand(
    kind: str, frame_id: int, before: object, after: object, data: st.DataObject
) -> None:
    members = [("kind", kind), ("id", frame_id), ("params", before), ("error", after)]
    text = json.dumps(dict(data.draw(st.permutations(members))), indent=data.draw(st.sampled_from([None, 2])))
    assert peek_header(text.encode()) == Header(kind, frame_id)


@pytest.mark.parametrize(
    ("head", "header"),
    [
        (b'{"kind":"result","id":41,"ok":true,"result":{"x":"aaaa', Header("result", 41)),
        (b'{"kind":"result","id":41', Header("result", None)),
        (b'{"kind":"resu', Header(None, None)),
        (b'{"result":{"id":7,"kind":"call"},"kind":"end","id":8,', Header("end", 8)),
        (b'{"result":{"id":7,"kind":"call"', Header(None, None)),
        (b'{"a":"\\"id\\":5","id":6,"kind":"item",', Header("item", 6)),
        (b'{"a":["id",5],"kind":"item","id":6}', Header("item", 6)),
        (b'{"kind":"result","id":"41"}', Header("result", None)),
        (b'{"kind":"result","id":-1}', Header("result", None)),
        (b'{"kind":5,"id":1}', Header(None, 1)),
        (b'["kind","result"]', Header(None, None)),
        (b'"kind"', Header(None, None)),
        (b"plain text", Header(None, None)),
        (b"", Header(None, None)),
        (b'{} {"kind":"result","id":1}', Header(None, None)),
        (b'{"kind":"r\xc3\xa9sult","id":1,', Header(None, 1)),
    ],
)
def test_the_header_is_read_from_the_start_of_a_frame(head: bytes, header: Header) -> None:
    assert peek_header(head) == header


@given(st.binary(max_size=200))
def test_peeking_never_fails(head: bytes) -> None:
    assert isinstance(peek_header(head), Header)
