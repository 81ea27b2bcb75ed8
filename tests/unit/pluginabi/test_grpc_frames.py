"""The mapping between frames and gRPC messages: bodies leave the JSON and come back, and nothing else moves."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from pluginabi._pb import plugin_pb2 as pb
from pluginabi.body import Body
from pluginabi.frames import Call, Item, Ping, Result
from pluginabi.grpc_frames import BadMessage, from_message, item_cost, message_header, to_message
from pluginabi.payloads.executor import ExecutorRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(min_value=-(1 << 53), max_value=1 << 53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)
BODIES = st.binary(max_size=30).map(Body.from_bytes)


def message_of(frame: Call | Result) -> pb.Frame:
    message = pb.Frame()
    message.ParseFromString(to_message(frame))
    return message


@given(JSON, st.none() | BODIES, st.none() | BODIES, st.lists(BODIES, max_size=3))
def test_params_survive_the_trip_through_blobs(
    other: object, body: Body | None, client_body: Body | None, items: list[Body]
) -> None:
    params: dict[str, object] = {"other": other, "items": [{"event": "e", "body": item} for item in items]}
    params |= {"body": body} if body is not None else {}
    params |= {"client_body": client_body} if client_body is not None else {}
    frame = Call(id=1, method="response.translate", params=Raw(msgspec.json.encode(params)))
    received = from_message(to_message(frame))
    assert isinstance(received, Call)
    assert msgspec.json.decode(received.params) == msgspec.json.decode(frame.params)


def test_bodies_leave_the_json_at_their_places_only() -> None:
    params = {
        "body": {"json": {"a": 1}},
        "client_body": {"text": "t"},
        "request_body": {"text": "stays"},
        "nested": {"body": {"text": "stays"}},
        "items": [{"body": {"base64": "/w=="}}, {"raw": {"text": "r"}}, {}],
        "terminate": {"body": {"text": "only a result may end a request"}},
    }
    message = message_of(Call(id=1, method="m", params=Raw(msgspec.json.encode(params))))
    assert msgspec.json.decode(message.call.params) == {
        **params,
        "body": {"blob": 0},
        "client_body": {"blob": 1},
        "items": [{"body": {"blob": 2}}, {"raw": {"blob": 3}}, {}],
    }
    forms = [(blob.form, blob.data) for blob in message.call.blobs]
    assert forms == [(pb.Blob.JSON, b'{"a":1}'), (pb.Blob.TEXT, b"t"), (pb.Blob.BINARY, b"\xff"), (pb.Blob.TEXT, b"r")]
    result = message_of(Result(id=1, ok=True, result=Raw(msgspec.json.encode(params))))
    assert msgspec.json.decode(result.result.result)["terminate"] == {"body": {"blob": 3}}
    assert msgspec.json.decode(result.result.result)["client_body"] == {"text": "t"}


def test_a_struct_is_mapped_like_its_json() -> None:
    payload = ExecutorRequest(model="m", body=Body.from_value([1]))
    as_struct = to_message(Call(id=1, method="m", params=payload))  # type: ignore[arg-type]
    assert as_struct == to_message(Call(id=1, method="m", params=Raw(msgspec.json.encode(payload))))


@pytest.mark.parametrize("params", [b"[]", b"null", b'"text"', b'{"body":5,"items":{},"client_body":{"text":1}}'])
def test_what_is_no_body_is_left_for_the_receiver_to_judge(params: bytes) -> None:
    received = from_message(to_message(Call(id=1, method="m", params=Raw(params))))
    assert isinstance(received, Call)
    assert bytes(received.params) == params


def call_message(params: bytes, *blobs: pb.Blob) -> bytes:
    return pb.Frame(call=pb.Call(id=6, method="m", params=params, blobs=blobs)).SerializeToString()


TEXT = pb.Blob(form=pb.Blob.TEXT, data=b"t")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (call_message(b'{"body":{"blob":1}}', TEXT), "no blob 1"),
        (call_message(b'{"body":{"blob":-1}}', TEXT), "no blob -1"),
        (call_message(b'{"body":{"blob":0},"client_body":{"blob":0}}', TEXT), "used before"),
        (call_message(b"{}", TEXT), "no placeholder"),
        (call_message(b"[]", TEXT), "Expected `object`"),
        (call_message(b"{nonsense"), "not JSON"),
        (call_message(b'{"a":"\xff"}'), "not JSON"),
        (call_message(b'{"body":{"blob":0}}', pb.Blob(form=pb.Blob.JSON, data=b"1},{")), "not JSON"),
        (call_message(b'{"body":{"blob":0}}', pb.Blob(form=pb.Blob.JSON, data=b'"\xff"')), "not JSON"),
        (call_message(b'{"body":{"blob":0}}', pb.Blob(form=pb.Blob.TEXT, data=b"\xff")), "utf-8"),
        (call_message(b'{"body":{"blob":0}}', pb.Blob(data=b"x")), "without a form"),
    ],
)
def test_a_message_that_breaks_the_rules_says_whose_it_is_and_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason) as caught:
        from_message(data)
    assert (caught.value.kind, caught.value.id) == ("call", 6)


def test_newlines_of_embedded_json_do_not_reach_a_frame() -> None:
    blob = pb.Blob(form=pb.Blob.JSON, data=b'{\n"a":\r\n1}')
    received = from_message(call_message(b'{"body":{"blob":0},\n"x":1}', blob))
    assert isinstance(received, Call)
    assert msgspec.json.decode(received.params) == {"body": {"json": {"a": 1}}, "x": 1}


def test_bytes_that_are_no_message_belong_to_nobody() -> None:
    with pytest.raises(BadMessage) as caught:
        from_message(b"\xff\xff\xff\xff")
    assert (caught.value.kind, caught.value.id) == (None, None)
    with pytest.raises(BadMessage):
        message_header(b"\xff\xff\xff\xff")


def test_a_message_of_an_unknown_kind_is_skipped() -> None:
    unknown_field = b"\xfa\x01\x00"  # field 31, length-delimited, empty
    assert from_message(unknown_field) is None
    assert from_message(b"") is None
    assert from_message(pb.Frame(ping=pb.Ping(id=3)).SerializeToString() + unknown_field) == Ping(id=3)


def test_kind_and_id_of_a_large_message_can_be_told() -> None:
    data = to_message(Result(id=77, ok=True, result=Raw(b'"' + b"x" * 100_000 + b'"')))
    assert message_header(data) == ("result", 77)


def test_the_cost_of_an_item_is_its_event_name_and_its_blob() -> None:
    assert item_cost(Item(id=1)) == 0
    assert item_cost(Item(id=1, event="é")) == 2
    assert item_cost(Item(id=1, event="ab", body=Body.from_value([1, 2]))) == 2 + 5
    assert item_cost(Item(id=1, raw=Body(text="é"))) == 2
    assert item_cost(Item(id=1, body=Body(base64=b"123"))) == 3


def test_a_frame_of_zeros_is_still_a_frame_of_its_kind() -> None:
    assert from_message(to_message(Ping(id=0))) == Ping(id=0)
