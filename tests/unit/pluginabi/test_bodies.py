"""Bodies: three forms, embedding that cannot break a frame, and what immutability costs a plugin."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from pluginabi.body import Body, StreamItem, is_json
from pluginabi.codec import decode_frame, encode_frame
from pluginabi.frames import Call, Item, Result
from pluginabi.framing import LineSplitter
from pluginabi.payloads.executor import ExecutorRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def through_a_pipe(data: bytes) -> list[bytes]:
    """The lines that a receiver would see."""
    return [line for line in LineSplitter(1 << 20).feed(data + b"\n") if isinstance(line, bytes)]


@given(JSON, st.sampled_from([None, 0, 1, 4]), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_f25_pretty_printed_bodies_stay_one_line_and_keep_their_value(
    value: object, indent: int | None, ensure_ascii: bool, newline: str
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii).replace("\n", newline)
    body = Body.from_bytes(text.encode(errors="replace"))
    assert body.json is not UNSET
    line = encode_frame(Call(id=1, method="executor.execute", params=msgspec.Raw(msgspec.json.encode({"body": body}))))
    [received] = through_a_pipe(line)
    frame = decode_frame(received)
    assert isinstance(frame, Call)
    got = msgspec.json.decode(frame.params, type=ExecutorRequest).body
    assert isinstance(got, Body)
    assert json.loads(got.to_bytes()) == json.loads(text)


@given(st.binary(max_size=80))
def test_f26_any_bytes_become_a_body_that_cannot_break_out_of_its_frame(data: bytes) -> None:
    frame = Item(id=3, body=Body.from_bytes(data))
    [received] = through_a_pipe(encode_frame(frame))
    got = decode_frame(received)
    assert isinstance(got, Item)
    assert (got.id, got.event, got.raw) == (3, None, UNSET)
    assert isinstance(got.body, Body)
    if got.body.json is UNSET:
        assert got.body.to_bytes() == data
    else:
        # White space around JSON is no part of it, and a line break in it becomes a blank.
        spaced = bytes.maketrans(b"\r\n", b"  ")
        assert got.body.to_bytes().translate(spaced).strip() == data.translate(spaced).strip()


INJECTIONS = [
    b'1},"ok":false,"x":{"a":1',
    b'{}}\n{"kind":"end","id":1,"ok":true}',
    b'{"a":1}\n{"kind":"result","id":2,"ok":true}',
    b'"\xff","kind":"end"',
    b'{"a":"\xc3"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"b\nc"}',
    b"NaN",
    b"[1,]",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b"",
]


@pytest.mark.parametrize("data", INJECTIONS, ids=range(len(INJECTIONS)))
def test_f26_what_is_no_json_in_valid_utf8_is_never_embedded(data: bytes) -> None:
    assert not is_json(data)
    body = Body.from_bytes(data)
    assert body.json is UNSET
    assert body.to_bytes() == data
    [received] = through_a_pipe(encode_frame(Result(id=1, ok=True, result=Raw(msgspec.json.encode({"body": body})))))
    frame = decode_frame(received)
    assert isinstance(frame, Result)
    assert (frame.id, frame.ok) == (1, True)


@given(JSON)
def test_valid_json_is_always_sent_as_json(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return
    assert Body.from_bytes(data).json is not UNSET
    assert Body.from_value(value).value() == msgspec.json.decode(data)


@pytest.mark.parametrize(
    "wire",
    [
        "{}",
        '{"json":1,"text":"a"}',
        '{"text":"a","base64":""}',
        '{"base64":"%%"}',
        '{"text":1}',
        "[]",
        "null",
        '"text"',
    ],
)
def test_a_body_has_exactly_one_form(wire: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(wire, type=Body)


def test_building_a_body_of_two_forms_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Body(text="a", base64=b"b")


def test_exact_bytes_are_not_spelled_anew() -> None:
    spaced = b'{ "a" :\n1 }'
    line = encode_frame(Item(id=1, body=Body.exact(spaced)))
    frame = decode_frame(line)
    assert isinstance(frame, Item)
    assert isinstance(frame.body, Body)
    assert frame.body.to_bytes() == spaced


def test_an_item_without_body_and_raw_is_progress() -> None:
    assert StreamItem().is_progress
    assert StreamItem(event="ping").is_progress
    assert not StreamItem(body=Body(text="")).is_progress
    assert not StreamItem(raw=Body(text="")).is_progress
