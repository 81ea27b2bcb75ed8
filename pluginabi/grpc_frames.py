"""Frames to gRPC messages and back: the one mapping between the two carriers.

Typed envelopes; `params`, `result`, `error.details` and `log.fields` are JSON in bytes. Bodies at the places of
`BODY_PATHS` leave the JSON and become blobs, so that their bytes travel as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError
from msgspec import UNSET, Raw, UnsetType

from pluginabi._pb import plugin_pb2 as pb
from pluginabi.body import Body, is_json
from pluginabi.codec import encode
from pluginabi.errors import ErrorBody
from pluginabi.frames import (
    Call,
    Cancel,
    Credit,
    End,
    Frame,
    Goaway,
    Hello,
    HostInfo,
    Item,
    Log,
    Ping,
    Pong,
    Result,
    Usage,
)
from pluginabi.framing import Header, one_line
from pluginabi.limits import Limits

BODY_PATHS: Final[Mapping[str, tuple[str, ...]]] = {
    "params": ("body", "client_body", "items[].body", "items[].raw"),
    "result": ("body", "terminate.body", "items[].body", "items[].raw"),
    "error": ("body",),
    "item": ("body", "raw"),
}
"""Where a body may be, by the part of a frame; nothing looks for bodies anywhere else. `error` and `item` are typed
messages with blobs of their own, `params` and `result` are JSON with placeholders."""

_PARAMS_BODIES: Final = ("body", "client_body")
_RESULT_BODIES: Final = ("body",)
_ITEM_BODIES: Final = ("body", "raw")

_Members = dict[str, Raw]
_decode_members: Final[Callable[[bytes | Raw], _Members]] = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items: Final[Callable[[bytes | Raw], list[_Members]]] = msgspec.json.Decoder(list[_Members]).decode
_decode_body: Final[Callable[[bytes | Raw], Body]] = msgspec.json.Decoder(Body).decode


class _Placeholder(msgspec.Struct, forbid_unknown_fields=True):
    blob: int


_decode_placeholder: Final[Callable[[bytes | Raw], _Placeholder]] = msgspec.json.Decoder(_Placeholder).decode


class BadMessage(ValueError):
    """A message that is no good frame; `kind` and `id` as far as they could be read."""

    def __init__(self, kind: str | None, frame_id: int | None, reason: str) -> None:
        super().__init__(reason)
        self.kind: Final = kind
        self.id: Final = frame_id


def item_cost(frame: Item) -> int:
    """What an item costs in credit on this carrier: the bytes of its event name and of its blob."""
    body = frame.body if frame.body is not UNSET else frame.raw
    return len((frame.event or "").encode()) + (0 if body is UNSET else len(body.to_bytes()))


# -- to messages


def to_message(frame: Frame) -> bytes:
    """A frame as a serialised message."""
    message = pb.Frame()
    kind = type(frame).__name__.lower()
    _FILL[type(frame)](getattr(message, kind), frame)
    # A message without fields would not be there otherwise, and `kind` with it.
    getattr(message, kind).SetInParent()
    serialised: bytes = message.SerializeToString(deterministic=True)
    return serialised


def _set(message: Any, source: Any, names: Sequence[str]) -> None:
    """Copy what is set; None and UNSET leave the field absent."""
    for name in names:
        value = getattr(source, name)
        if value is not None and value is not UNSET:
            setattr(message, name, value)


def _fill_hello(message: Any, frame: Hello) -> None:
    message.abi.extend(frame.abi)
    message.features.extend(frame.features)
    message.capabilities.extend(frame.capabilities)
    for method, words in frame.inputs.items():
        message.inputs[method].values.extend(words)
    message.on_error.update(frame.on_error)
    _set(message, frame, ("schema", "plugin", "version", "endpoint", "token"))
    _set(message.limits, frame.limits, ("max_frame_bytes", "max_inflight", "max_streams"))
    if frame.host is not None:
        _set(message.host, frame.host, ("name", "version"))


def _fill_call(message: Any, frame: Call) -> None:
    _set(message, frame, ("id", "method", "stream", "timeout_ms", "parent"))
    message.params = _without_bodies(frame.params, message.blobs, _PARAMS_BODIES)


def _fill_result(message: Any, frame: Result) -> None:
    _set(message, frame, ("id", "ok", "stream"))
    if frame.result is not UNSET:
        message.result = _without_bodies(frame.result, message.blobs, _RESULT_BODIES)
    _fill_outcome(message, frame)


def _fill_outcome(message: Any, frame: Result | End) -> None:
    if frame.error is not UNSET:
        _fill_error(message.error, frame.error)
    if frame.usage is not None:
        _set(message.usage, frame.usage, Usage.__struct_fields__)
        message.usage.SetInParent()


def _fill_error(message: Any, error: ErrorBody) -> None:
    names = ("message", "code", "http_status", "retryable", "retry_after_ms", "scope", "body_protocol", "origin")
    _set(message, error, names)
    for name, values in error.headers.items():
        message.headers[name].values.extend(values)
    if error.body is not UNSET:
        _fill_blob(message.body, error.body)
    if error.details:
        message.details = encode(error.details)
    message.SetInParent()


def _fill_item(message: Any, frame: Item) -> None:
    _set(message, frame, ("id", "event"))
    if frame.body is not UNSET:
        _fill_blob(message.body, frame.body)
    if frame.raw is not UNSET:
        _fill_blob(message.raw, frame.raw)


def _fill_end(message: Any, frame: End) -> None:
    _set(message, frame, ("id", "ok"))
    _fill_outcome(message, frame)


def _fill_log(message: Any, frame: Log) -> None:
    _set(message, frame, ("level", "event", "parent"))
    if frame.fields:
        message.fields = encode(frame.fields)


def _fill_blob(message: Any, body: Body) -> None:
    if body.json is not UNSET:
        message.form = pb.Blob.JSON
    elif body.text is not UNSET:
        message.form = pb.Blob.TEXT
    else:
        message.form = pb.Blob.BINARY
    message.data = body.to_bytes()


_FILL: Final[Mapping[type, Callable[[Any, Any], None]]] = {
    Hello: _fill_hello,
    Call: _fill_call,
    Result: _fill_result,
    Item: _fill_item,
    End: _fill_end,
    Cancel: lambda message, frame: _set(message, frame, ("id", "reason")),
    Credit: lambda message, frame: _set(message, frame, ("id", "items", "bytes")),
    Ping: lambda message, frame: _set(message, frame, ("id",)),
    Pong: lambda message, frame: _set(message, frame, ("id", "loop_lag_ms")),
    Log: _fill_log,
    Goaway: lambda message, frame: _set(message, frame, ("reason", "drain_ms")),
}


def _without_bodies(payload: Any, blobs: Any, names: Sequence[str]) -> bytes:
    """The JSON of params or of a result, its bodies moved to `blobs`."""
    data = bytes(payload) if isinstance(payload, Raw) else encode(payload)
    try:
        members = _decode_members(data)
    except (msgspec.DecodeError, RecursionError):
        return data  # no object: it has no bodies, and judging it is the receiver's business
    moved = _move_out(members, blobs, names)
    if "items" in members:
        moved |= _change_items(members, lambda item: _move_out(item, blobs, _ITEM_BODIES))
    if "terminate" in members and names is _RESULT_BODIES:
        moved |= _change_member(members, "terminate", lambda inner: _move_out(inner, blobs, _RESULT_BODIES))
    return encode(members) if moved else data


def _move_out(members: _Members, blobs: Any, names: Sequence[str]) -> bool:
    moved = False
    for name in names:
        if (value := members.get(name)) is None:
            continue
        try:
            body = _decode_body(value)
        except (msgspec.DecodeError, RecursionError):
            continue
        members[name] = Raw(b'{"blob":%d}' % len(blobs))
        _fill_blob(blobs.add(), body)
        moved = True
    return moved


def _change_member(members: _Members, name: str, change: Callable[[_Members], bool]) -> bool:
    try:
        inner = _decode_members(members[name])
    except (msgspec.DecodeError, RecursionError):
        return False
    if not change(inner):
        return False
    members[name] = Raw(encode(inner))
    return True


def _change_items(members: _Members, change: Callable[[_Members], bool]) -> bool:
    try:
        items = _decode_items(members["items"])
    except (msgspec.DecodeError, RecursionError):
        return False
    changed = [change(item) for item in items]
    if not any(changed):
        return False
    members["items"] = Raw(encode(items))
    return True


# -- from messages


def from_message(data: bytes) -> Frame | None:
    """A received message as a frame; None when this version does not know its kind. Raises BadMessage."""
    message = _parsed(data)
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    part = getattr(message, kind)
    try:
        return _READ[kind](part)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BadMessage(kind, getattr(part, "id", None), str(error)) from error


def message_header(data: bytes) -> Header:
    """Kind and id of a message that is too large to be used. Raises BadMessage."""
    message = _parsed(data)
    kind = message.WhichOneof("kind")
    return Header(kind, getattr(getattr(message, kind), "id", None) if kind else None)


def _parsed(data: bytes) -> Any:
    message = pb.Frame()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise BadMessage(None, None, f"no message of this protocol: {error}") from error
    return message


def _get(message: Any, names: Sequence[str]) -> dict[str, Any]:
    """The optional fields that are there."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _strings(message: Any) -> dict[str, list[str]]:
    return {name: list(strings.values) for name, strings in message.items()}


def _read_hello(message: Any) -> Hello:
    return Hello(
        abi=list(message.abi),
        schema=message.schema,
        features=list(message.features),
        capabilities=list(message.capabilities),
        inputs=_strings(message.inputs),
        on_error=dict(message.on_error),
        limits=Limits(**_get(message.limits, ("max_frame_bytes", "max_inflight", "max_streams"))),
        host=HostInfo(name=message.host.name, version=message.host.version) if message.HasField("host") else None,
        **_get(message, ("plugin", "version", "endpoint", "token")),
    )


def _read_call(message: Any) -> Call:
    return Call(
        id=message.id,
        method=message.method,
        params=_with_bodies(message.params or b"{}", message.blobs, _PARAMS_BODIES),
        stream=message.stream,
        **_get(message, ("timeout_ms", "parent")),
    )


def _read_result(message: Any) -> Result:
    result: Raw | UnsetType = UNSET
    if message.HasField("result"):
        result = _with_bodies(message.result, message.blobs, _RESULT_BODIES)
    return Result(id=message.id, ok=message.ok, result=result, stream=message.stream, **_read_outcome(message))


def _read_outcome(message: Any) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    if message.HasField("error"):
        outcome["error"] = _read_error(message.error)
    if message.HasField("usage"):
        outcome["usage"] = Usage(**_get(message.usage, Usage.__struct_fields__))
    return outcome


def _read_error(message: Any) -> ErrorBody:
    names = ("code", "http_status", "retryable", "retry_after_ms", "scope", "body_protocol", "origin")
    details = msgspec.json.decode(message.details, type=dict[str, Any]) if message.details else {}
    return ErrorBody(
        message=message.message,
        headers=_strings(message.headers),
        body=_read_blob(message.body) if message.HasField("body") else UNSET,
        details=details,
        **_get(message, names),
    )


def _read_item(message: Any) -> Item:
    return Item(
        id=message.id,
        body=_read_blob(message.body) if message.HasField("body") else UNSET,
        raw=_read_blob(message.raw) if message.HasField("raw") else UNSET,
        **_get(message, ("event",)),
    )


def _read_log(message: Any) -> Log:
    fields = msgspec.json.decode(message.fields, type=dict[str, Any]) if message.fields else {}
    return Log(level=message.level, event=message.event, fields=fields, **_get(message, ("parent",)))


def _read_blob(message: Any) -> Body:
    """Raises ValueError when the bytes are not of the form they claim: they will be embedded as they are."""
    if message.form == pb.Blob.JSON:
        if not is_json(message.data):
            raise ValueError("a blob of form JSON is not JSON")
        return Body(json=Raw(message.data))
    if message.form == pb.Blob.TEXT:
        return Body(text=str(message.data, "utf-8"))
    if message.form == pb.Blob.BINARY:
        return Body(base64=message.data)
    raise ValueError("a blob without a form")


_READ: Final[Mapping[str, Callable[[Any], Frame]]] = {
    "hello": _read_hello,
    "call": _read_call,
    "result": _read_result,
    "item": _read_item,
    "end": lambda message: End(id=message.id, ok=message.ok, **_read_outcome(message)),
    "cancel": lambda message: Cancel(id=message.id, reason=message.reason),
    "credit": lambda message: Credit(id=message.id, items=message.items, bytes=message.bytes),
    "ping": lambda message: Ping(id=message.id),
    "pong": lambda message: Pong(id=message.id, **_get(message, ("loop_lag_ms",))),
    "log": _read_log,
    "goaway": lambda message: Goaway(reason=message.reason, drain_ms=message.drain_ms),
}


def _with_bodies(data: bytes, blobs: Any, names: Sequence[str]) -> Raw:
    """The JSON of params or of a result with its blobs back in their places. Raises ValueError."""
    if not is_json(data):
        raise ValueError("params or result that are not JSON")
    data = one_line(data)
    if not blobs:
        return Raw(data)
    waiting = dict(enumerate(blobs))
    members = _decode_members(data)
    _move_in(members, waiting, names)
    if "items" in members:
        _change_items(members, lambda item: _move_in(item, waiting, _ITEM_BODIES))
    if "terminate" in members and names is _RESULT_BODIES:
        _change_member(members, "terminate", lambda inner: _move_in(inner, waiting, _RESULT_BODIES))
    if waiting:
        raise ValueError("a blob that no placeholder names")
    return Raw(encode(members))


def _move_in(members: _Members, waiting: dict[int, Any], names: Sequence[str]) -> bool:
    moved = False
    for name in names:
        if (value := members.get(name)) is None:
            continue
        try:
            placeholder = _decode_placeholder(value)
        except msgspec.DecodeError:
            continue
        if placeholder.blob not in waiting:
            raise ValueError(f"no blob {placeholder.blob}, or one that was used before")
        members[name] = Raw(encode(_read_blob(waiting.pop(placeholder.blob))))
        moved = True
    return moved
