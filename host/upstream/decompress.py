"""Content-Encoding undone piece by piece: gzip, deflate, br, zstd, alone or stacked.

A few kilobytes can inflate to gigabytes. So each step yields a bounded piece and the next step happens only when the
consumer asks, and the sum of all steps is capped.
"""

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

from host.upstream.errors import BodyTooLarge, UpstreamProtocolError

# What one step may put into memory before the consumer sees it.
_STEP_BYTES: Final = 256 * 1024
# zstandard offers no output bound, so its input is cut: 4 bytes can announce a block of 128 KiB, 256 bytes thus 8 MiB.
_ZSTD_INPUT_BYTES: Final = 256
# RFC 9659: a larger window need not be supported by recipients, and costs us that much memory per answer.
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
# RFC 9110 allows a list; more than two is no server we know and multiplies the ratio of a bomb.
_MAX_CODINGS: Final = 2


class Decoder(Protocol):
    """One coding. `decode` yields bounded pieces and takes the whole input; `ended` says the coded data was whole."""

    def decode(self, data: bytes) -> Iterator[bytes]: ...

    @property
    def ended(self) -> bool: ...


class BodyDecoder:
    """All codings of one answer, applied in reverse order, with a cap on the result."""

    def __init__(self, decoders: list[Decoder], *, max_decoded_bytes: int) -> None:
        self._decoders = decoders
        self._max_decoded_bytes = max_decoded_bytes
        self._decoded_bytes = 0
        self._started = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Pieces of the decoded body. Raises UpstreamProtocolError for bad data and BodyTooLarge beyond the cap."""
        self._started = self._started or bool(data)
        for piece in self._apply(data, 0):
            self._decoded_bytes += len(piece)
            if self._decoded_bytes > self._max_decoded_bytes:
                raise BodyTooLarge(
                    f"the answer inflates to more than {self._max_decoded_bytes} bytes",
                    limit_bytes=self._max_decoded_bytes,
                )
            yield piece

    def finish(self) -> None:
        """The transfer is over. Raises UpstreamProtocolError when the coded data is not; an empty body is fine."""
        if self._started and not all(decoder.ended for decoder in self._decoders):
            raise _bad("the compressed body ends too early")

    def _apply(self, data: bytes, index: int) -> Iterator[bytes]:
        if index == len(self._decoders):
            yield data
            return
        try:
            for piece in self._decoders[index].decode(data):
                yield from self._apply(piece, index + 1)
        except (zlib.error, brotli.error, zstandard.ZstdError) as exc:
            raise _bad("the compressed body is corrupt") from exc


def decoder_for(content_encoding: str, *, max_decoded_bytes: int) -> BodyDecoder | None:
    """Decoder for a Content-Encoding value; None when there is nothing to undo. Raises UpstreamProtocolError.

    An unknown coding is refused rather than passed on: the caller asked for decoded bytes and would get gibberish.
    """
    codings = [
        coding for part in content_encoding.split(",") if (coding := part.strip().lower()) not in ("", "identity")
    ]
    if not codings:
        return None
    if len(codings) > _MAX_CODINGS:
        raise _bad("too many content codings")
    decoders = [_new_decoder(coding) for coding in reversed(codings)]
    return BodyDecoder(decoders, max_decoded_bytes=max_decoded_bytes)


def _new_decoder(coding: str) -> Decoder:
    match coding:
        case "gzip" | "x-gzip":
            return _GzipDecoder()
        case "deflate":
            return _DeflateDecoder()
        case "br":
            return _BrotliDecoder()
        case "zstd":
            return _ZstdDecoder()
        case _:
            raise _bad("unknown content coding")


class _GzipDecoder:
    """RFC 1952: one or more members, one after the other."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._fresh = True

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            self._fresh = False
            while True:
                piece = self._member.decompress(data, _STEP_BYTES)
                data = self._member.unconsumed_tail
                if piece:
                    yield piece
                # A full piece may mean that more output waits inside although all input was taken.
                if self._member.eof or (not data and len(piece) < _STEP_BYTES):
                    break
            data = self._member.unused_data

    @property
    def ended(self) -> bool:
        return self._fresh or self._member.eof


class _DeflateDecoder:
    """RFC 9110 means the zlib format; some servers send bare deflate. Two bytes tell which one it is."""

    def __init__(self) -> None:
        self._stream: zlib._Decompress | None = None
        self._held = b""

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._held + data
            if len(data) < 2:
                self._held = data
                return
            is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._stream = zlib.decompressobj(wbits=15 if is_zlib else -15)
        while True:
            piece = self._stream.decompress(data, _STEP_BYTES)
            data = self._stream.unconsumed_tail
            if piece:
                yield piece
            if self._stream.unused_data:
                raise _bad("bytes after the end of the compressed body")
            if self._stream.eof or (not data and len(piece) < _STEP_BYTES):
                return

    @property
    def ended(self) -> bool:
        return self._stream is not None and self._stream.eof


class _BrotliDecoder:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def decode(self, data: bytes) -> Iterator[bytes]:
        if data and self._stream.is_finished():
            raise _bad("bytes after the end of the compressed body")
        # Only an empty result says that nothing waits inside: the input may be taken while output is held back.
        while piece := self._stream.process(data, output_buffer_limit=_STEP_BYTES):
            yield piece
            data = b""

    @property
    def ended(self) -> bool:
        return bool(self._stream.is_finished())


class _ZstdDecoder:
    """RFC 8878: one or more frames, one after the other."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame = self._decompressor.decompressobj()
        self._fresh = True

    def decode(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT_BYTES):
            part = data[start : start + _ZSTD_INPUT_BYTES]
            while part:
                if self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
                self._fresh = False
                piece = self._frame.decompress(part)
                part = self._frame.unused_data
                if piece:
                    yield piece

    @property
    def ended(self) -> bool:
        return self._fresh or self._frame.eof


def _bad(why: str) -> UpstreamProtocolError:
    return UpstreamProtocolError(why, phase="body", bytes_sent=True, response_started=True)
