"""JSON in and out: frames as lines, params and results as structs. Encoders and decoders are built once and kept."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from pluginabi.body import Body
from pluginabi.errors import PluginTransportError, host_error
from pluginabi.frames import KINDS, Frame
from pluginabi.framing import Oversize, one_line, peek_header
from pluginabi.limits import BODY_HEADROOM_BYTES, FRAME_ID_SEARCH_BYTES
from pluginabi.methods import METHODS
from pluginabi.payloads.common import Payload

_EMPTY_ANSWERS: Final = (b"", b"null", b"{}")
_encode: Final = msgspec.json.Encoder().encode
_decode: Final[Callable[[bytes], Frame]] = msgspec.json.Decoder(Frame).decode


class LineTooLong(Exception):
    """A line above this side's `max_frame_bytes`; only its start is known."""


UNUSABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LineTooLong)
"""What decoding raises for lines that are no good frame; RecursionError for nesting without end."""


class FrameTooLarge(Exception):
    """A frame or body that the peer does not accept; nothing was sent."""

    def __init__(self, size: int, limit: int, what: str = "frame") -> None:
        super().__init__(f"a {what} of {size} bytes is larger than the {limit} bytes the peer accepts")
        self.size: Final = size
        self.limit: Final = limit


class BrokenFrame(NamedTuple):
    """A frame of a known kind that cannot be used: oversize, invalid UTF-8, invalid JSON or wrong fields."""

    kind: str
    id: int | None
    reason: str
    oversize: bool = False


class Stray(NamedTuple):
    """Output that is no frame."""

    text: bytes


@cache
def decoder(method: str) -> msgspec.json.Decoder[Any]:
    """The kept decoder of a method's answer. Raises KeyError for an unknown method."""
    return msgspec.json.Decoder(METHODS[method].response)


@cache
def params_decoder(method: str) -> msgspec.json.Decoder[Any]:
    """The kept decoder of a method's params. Raises KeyError for an unknown method."""
    return msgspec.json.Decoder(METHODS[method].request)


@cache
def _empty_answer(method: str) -> Any:
    return METHODS[method].response()


def encode(value: Any) -> bytes:
    """Any struct or JSON-like value as JSON."""
    return _encode(value)


def encode_frame(frame: Frame) -> bytes:
    """One frame as one line, without LF."""
    return one_line(_encode(frame))


def decode_frame(line: bytes | Oversize) -> Frame:
    """One received line. Raises one of `UNUSABLE`.

    The whole line must be valid UTF-8, embedded bodies included: msgspec does not look into what it keeps raw.
    """
    if not isinstance(line, bytes):
        raise LineTooLong(f"{line.size} bytes are more than this side accepts")
    if not line.isascii():
        str(line, "utf-8")
    return _decode(line)


def explain(line: bytes | Oversize, error: Exception) -> BrokenFrame | Stray:
    """What a line is that `decode_frame` could not use: a frame whose kind can be read, or no frame at all."""
    head = line.head if isinstance(line, Oversize) else line[:FRAME_ID_SEARCH_BYTES]
    header = peek_header(head)
    if header.kind in KINDS:
        return BrokenFrame(header.kind, header.id, str(error), isinstance(line, Oversize))
    return Stray(head if isinstance(line, Oversize) else line.rstrip(b"\r"))


def encode_params(params: Payload) -> bytes:
    """A method's params as JSON, so that several calls can share the work."""
    return encode(params)


def decode_params(method: str, params: Raw) -> Any:
    """The params of an incoming call as the method's struct.

    Raises PluginError: `method_not_found` for a method this version does not know, `plugin_protocol_error` when the
    params do not fit.
    """
    if method not in METHODS:
        raise host_error("method_not_found", f"unknown method {method}")
    try:
        return params_decoder(method).decode(params or b"{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise host_error("plugin_protocol_error", f"decode plugin params {method}: {error}") from error


def decode_result(method: str, result: Raw | UnsetType, *, plugin_id: str) -> Any:
    """A method's answer as its struct; absent, null and `{}` are the struct with its defaults.

    Raises PluginTransportError (phase decode) when the answer does not fit.
    """
    if result is UNSET or bytes(result) in _EMPTY_ANSWERS:
        return _empty_answer(method)
    try:
        return decoder(method).decode(result)
    except (msgspec.DecodeError, RecursionError) as error:
        cause = f"decode plugin result {method}: {error}"
        raise PluginTransportError(plugin_id, method, phase="decode", cause=cause) from error


@cache
def _body_fields(payload_type: type[Struct]) -> tuple[str, ...]:
    return tuple(name for name in ("body", "client_body", "raw") if name in payload_type.__struct_fields__)


def max_body_bytes(max_frame_bytes: int) -> int:
    """The largest body that is inlined for a peer: 64 KiB less than its frames, half of very small frames."""
    return max(max_frame_bytes - BODY_HEADROOM_BYTES, max_frame_bytes // 2)


def check_body_size(payload: Struct, max_frame_bytes: int) -> None:
    """Raise FrameTooLarge when a body of `payload` may not be inlined for a peer with this `max_frame_bytes`."""
    for name in _body_fields(type(payload)):
        body = getattr(payload, name)
        if body is not UNSET:
            limit = max_body_bytes(max_frame_bytes)
            if (size := _body_size(body, limit)) > limit:
                raise FrameTooLarge(size, limit, "body")


def _body_size(body: Body, limit: int) -> int:
    if body.json is not UNSET:
        return len(bytes(body.json))
    if body.text is not UNSET:
        # At most four bytes per character: encoding only when it can matter.
        return len(body.text.encode()) if len(body.text) * 4 > limit else len(body.text)
    assert body.base64 is not UNSET
    return -(-len(body.base64) // 3) * 4
