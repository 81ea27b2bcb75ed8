"""Content codings of request bodies (RFC 9110, section 8.4): a list, undone from right to left, with a cap."""

import asyncio
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Final

import brotli  # type: ignore[import-untyped]
import zstandard

from host.errors import RequestError
from pluginabi.body import is_json

_PIECE_BYTES: Final = 256 * 1024
_THREAD_BYTES: Final = 64 * 1024
"""Larger compressed bodies are decoded in a thread: a small one can hold the event loop for a few milliseconds only."""
_ZSTD_WINDOW_BYTES: Final = 128 * 1024 * 1024
_MAX_CODINGS: Final = 8


class _TooLarge(Exception):
    """The decoded body passes the cap."""


class _Undecodable(Exception):
    """The bytes are not what the coding says."""


async def decode_body(body: bytes, content_encodings: Sequence[str], *, max_decoded_bytes: int) -> bytes:
    """`body` without its codings. Raises RequestError 413 when it grows too large, 400 when it cannot be decoded.

    A body that is JSON as it stands is taken as it is when its coding is unknown or wrong: clients do mislabel.
    """
    codings = [word.strip().lower() for value in content_encodings for word in value.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return body
    try:
        if len(codings) > _MAX_CODINGS:
            raise _Undecodable
        for coding in reversed(codings):
            decode = _DECODERS.get(coding)
            if decode is None:
                raise _Undecodable
            if len(body) > _THREAD_BYTES:
                body = await asyncio.to_thread(decode, body, max_decoded_bytes)
            else:
                body = decode(body, max_decoded_bytes)
    except _TooLarge:
        raise too_large(max_decoded_bytes) from None
    except _Undecodable:
        if is_json(body):
            return body
        encoding = ", ".join(codings)
        raise RequestError(
            400, "invalid_request_error", f"the body cannot be decoded as Content-Encoding: {encoding!r}"
        ) from None
    return body


def too_large(limit_bytes: int) -> RequestError:
    """The refusal of a body over a limit."""
    return RequestError(413, "request_too_large", f"the request body is larger than {limit_bytes} bytes")


def _inflate(body: bytes, cap: int, window_bits: int) -> bytes:
    out: list[bytes] = []
    size = 0
    rest = body
    while rest:
        inflater = zlib.decompressobj(window_bits)
        try:
            while not inflater.eof:
                piece = inflater.decompress(rest, _PIECE_BYTES)
                rest = inflater.unconsumed_tail
                size += len(piece)
                if size > cap:
                    raise _TooLarge
                out.append(piece)
                if not piece and not rest and not inflater.eof:
                    raise _Undecodable
        except zlib.error as error:
            raise _Undecodable from error
        # A gzip body may have several members; only the first has to be there.
        rest = inflater.unused_data
    return b"".join(out)


def _gunzip(body: bytes, cap: int) -> bytes:
    return _inflate(body, cap, 16 + zlib.MAX_WBITS)


def _deflate(body: bytes, cap: int) -> bytes:
    try:
        return _inflate(body, cap, zlib.MAX_WBITS)
    except _Undecodable:
        # The name means the zlib format, but senders of raw deflate are common.
        return _inflate(body, cap, -zlib.MAX_WBITS)


def _unbrotli(body: bytes, cap: int) -> bytes:
    decoder = brotli.Decompressor()
    out: list[bytes] = []
    size = 0
    rest = body
    try:
        while not decoder.is_finished():
            piece = decoder.process(rest, output_buffer_limit=_PIECE_BYTES)
            rest = b""
            size += len(piece)
            if size > cap:
                raise _TooLarge
            out.append(piece)
            if not piece and decoder.can_accept_more_data():
                raise _Undecodable
    except brotli.error as error:
        raise _Undecodable from error
    return b"".join(out)


def _unzstd(body: bytes, cap: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    out: list[bytes] = []
    size = 0
    try:
        with decompressor.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            while piece := reader.read(_PIECE_BYTES):
                size += len(piece)
                if size > cap:
                    raise _TooLarge
                out.append(piece)
    except zstandard.ZstdError as error:
        raise _Undecodable from error
    if not out and body:
        raise _Undecodable
    return b"".join(out)


_DECODERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _deflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
