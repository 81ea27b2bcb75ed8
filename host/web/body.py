"""The request body: read once, checked once, and only `model` and `stream` looked at."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Raw, Struct

from host.errors import RequestError
from host.web.decoding import decode_body, too_large

_MAX_MEMBERS: Final = 10_000
"""A body that makes us list its members may have this many; real ones have a few dozen."""

# One alternative per letter: the letter itself or its \u escape. Only spellings of a name are matched, so this is as
# fast as a plain search, and bodies full of other escapes cost nothing.
_GUARDED_NAMES: Final = re.compile(
    rb'"(?:(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])'
    rb'|(?:s|\\u0073)(?:t|\\u0074)(?:r|\\u0072)(?:e|\\u0065)(?:a|\\u0061)(?:m|\\u006[dD]))"'
)


class Head(Struct):
    """The members of a body that the web layer looks at, undecoded. Empty: absent."""

    model: Raw = Raw()
    stream: Raw = Raw()
    messages: Raw = Raw()
    input: Raw = Raw()
    instructions: Raw = Raw()

    @property
    def wants_stream(self) -> bool:
        """Only the literal `true` streams."""
        return bytes(self.stream) == b"true"

    def model_name(self) -> str:
        """The model as the client wrote it; empty when absent or null. Raises RequestError 400 for another type."""
        raw = bytes(self.model)
        if raw.startswith(b'"') and b"\\" not in raw:
            return str(raw[1:-1], "utf-8")
        if not raw or raw == b"null":
            return ""
        try:
            return msgspec.json.decode(raw, type=str)
        except msgspec.DecodeError:
            raise invalid("'model' must be a string", param="model") from None


_EMPTY_HEAD: Final = Head()
_decode_head: Final = msgspec.json.Decoder(Head).decode


def invalid(message: str, *, code: str = "invalid_request_error", param: str | None = None) -> RequestError:
    """A 400 for a request that this side understands to be wrong."""
    return RequestError(400, code, message, details={"param": param} if param else {})


async def read_body(
    request: web.BaseRequest, *, encodings: Sequence[str], max_bytes: int, max_decoded_bytes: int
) -> bytes:
    """The whole body, content codings undone. Raises RequestError 413 or 400."""
    content = request.content
    if content.is_eof():
        # The usual case: head and body came in one packet, nothing has to be waited for.
        body = content.read_nowait()
        if len(body) > max_bytes:
            raise too_large(max_bytes)
    else:
        length = request.content_length
        if length is not None and length > max_bytes:
            raise too_large(max_bytes)
        body = await _read_pieces(request, max_bytes)
    if encodings:
        return await decode_body(body, encodings, max_decoded_bytes=max_decoded_bytes)
    if len(body) > max_decoded_bytes:
        raise too_large(max_decoded_bytes)
    return body


async def _read_pieces(request: web.BaseRequest, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await request.content.readany():
            size += len(piece)
            if size > max_bytes:
                raise too_large(max_bytes)
            pieces.append(piece)
    except (web.RequestPayloadError, ValueError) as error:
        raise invalid("the request body is broken: its transfer encoding cannot be read") from error
    return b"".join(pieces)


def check_json(body: bytes) -> Head:
    """Check that `body` is one JSON object in valid UTF-8 and return its head.

    Raises RequestError 400: not JSON, no object, or `model` or `stream` given twice, so that a plugin and the
    upstream could read different ones.
    """
    try:
        head = _decode_head(body)
        if not body.isascii():
            # The decoder skips over what it does not decode, and with it over the encoding inside strings.
            str(body, "utf-8")
    except msgspec.ValidationError as error:
        raise invalid("the request body must be a JSON object") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the request body is not valid JSON: {error}", code="invalid_json") from error
    # A pattern search visits every byte: it is for bodies in which something is spelled by escapes.
    if b"\\u00" in body:
        names = _GUARDED_NAMES.findall(body)
        if len(names) > 1 and (len(names) > 2 or sorted(names) != [b'"model"', b'"stream"']):
            _check_members(body)
    elif body.count(b'"model"') > 1 or body.count(b'"stream"') > 1:
        _check_members(body)
    return head


def empty_head() -> Head:
    """The head of an absent body."""
    return _EMPTY_HEAD


class _Name:
    """A member name that never equals another, so that a mapping keeps duplicates."""

    __slots__ = ()


def _check_members(body: bytes) -> None:
    """Refuse two top-level members `model` or `stream`, however they are spelled."""
    seen: set[str] = set()
    count = 0

    def on_name(_: type, name: Any) -> _Name:
        nonlocal count
        count += 1
        if count > _MAX_MEMBERS:
            raise ValueError(f"the request body has more than {_MAX_MEMBERS} members")
        if name in ("model", "stream"):
            if name in seen:
                raise ValueError(f"the request body has two members {name!r}")
            seen.add(name)
        return _Name()

    try:
        msgspec.json.decode(body, type=dict[_Name, Raw], dec_hook=on_name)
    except msgspec.ValidationError as error:
        raise invalid(str(error.__cause__ or error)) from None


def set_members(body: bytes, **members: bytes | None) -> bytes:
    """`body` (a JSON object) with top-level members replaced (None: removed); all others keep their bytes and order."""
    parts = msgspec.json.decode(body, type=dict[str, Raw])
    for name, value in members.items():
        if value is None:
            parts.pop(name, None)
        else:
            parts[name] = Raw(value)
    return msgspec.json.encode(parts)
