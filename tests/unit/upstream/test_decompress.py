"""Content decoding: any coding, any cut, bounded steps, and errors instead of silence."""

import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from host.upstream import BodyTooLarge, UpstreamProtocolError
from host.upstream.decompress import decoder_for

# Streaming compressors leave the content size out of the header, as servers that compress on the fly do.
CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}
STEP_BOUND = {"zstd": 9 * 1024 * 1024}


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def decode(coding: str, parts: list[bytes], *, cap: int = 1 << 30) -> list[bytes]:
    decoder = decoder_for(coding, max_decoded_bytes=cap)
    assert decoder is not None
    pieces = [piece for part in parts for piece in decoder.decode(part)]
    decoder.finish()
    return pieces


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("coding", CODERS)
@given(data=st.binary(max_size=2000), repeat=st.integers(1, 50), places=st.lists(st.integers(0, 10**6), max_size=8))
def test_decoding_gives_the_original_however_the_bytes_are_cut(
    coding: str, data: bytes, repeat: int, places: list[int]
) -> None:
    original = data * repeat
    assert b"".join(decode(coding, cut(CODERS[coding](original), places))) == original


@given(data=st.binary(max_size=500), places=st.lists(st.integers(0, 10**6), max_size=4))
def test_bare_deflate_is_understood_as_well(data: bytes, places: list[int]) -> None:
    assert b"".join(decode("deflate", cut(raw_deflate(data), places))) == data


@pytest.mark.parametrize("coding", CODERS)
def test_every_cut_short_body_is_refused(coding: str) -> None:
    encoded = CODERS[coding](b"some text that is long enough to be cut " * 20)
    for length in range(1, len(encoded)):
        with pytest.raises(UpstreamProtocolError):
            decode(coding, [encoded[:length]])


@pytest.mark.parametrize("coding", CODERS)
def test_an_empty_body_is_fine(coding: str) -> None:
    assert decode(coding, []) == []


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_several_members_one_after_the_other_are_one_body(coding: str) -> None:
    encoded = CODERS[coding](b"hello ") + CODERS[coding](b"world")
    assert b"".join(decode(coding, [encoded])) == b"hello world"
    assert b"".join(decode(coding, [encoded[index : index + 1] for index in range(len(encoded))])) == b"hello world"


@pytest.mark.parametrize("coding", CODERS)
def test_bytes_after_the_end_are_refused(coding: str) -> None:
    encoded = CODERS[coding](b"hello")
    for parts in ([encoded + b"surplus"], [encoded, b"surplus"]):
        with pytest.raises(UpstreamProtocolError):
            decode(coding, parts)


@pytest.mark.parametrize("coding", CODERS)
def test_a_bomb_is_handed_out_in_bounded_steps(coding: str) -> None:
    bomb = CODERS[coding](b"\0" * 40_000_000)
    pieces = decode(coding, [bomb])
    assert sum(map(len, pieces)) == 40_000_000
    assert max(map(len, pieces)) <= STEP_BOUND.get(coding, 1024 * 1024)


@pytest.mark.parametrize("coding", CODERS)
def test_the_cap_stops_a_bomb(coding: str) -> None:
    with pytest.raises(BodyTooLarge) as caught:
        decode(coding, [CODERS[coding](b"\0" * 40_000_000)], cap=1_000_000)
    assert caught.value.limit_bytes == 1_000_000


def test_a_body_of_exactly_the_cap_is_accepted() -> None:
    assert b"".join(decode("gzip", [gzip.compress(b"x" * 1000)], cap=1000)) == b"x" * 1000


def test_stacked_codings_are_undone_from_the_last_to_the_first() -> None:
    encoded = brotli.compress(gzip.compress(b"hello"))
    assert b"".join(decode("gzip, br", [encoded])) == b"hello"
    assert b"".join(decode(" GZIP ,identity, Br", [encoded])) == b"hello"


def test_a_zstd_window_beyond_what_recipients_must_support_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(UpstreamProtocolError):
        decode("zstd", [stream.compress(b"x" * 10_000_000) + stream.flush()])


@pytest.mark.parametrize("value", ["", "identity", " , identity ,"])
def test_no_coding_needs_no_decoder(value: str) -> None:
    assert decoder_for(value, max_decoded_bytes=1) is None


@pytest.mark.parametrize("value", ["compress", "gzip, lzma", "gzip,gzip,gzip", "gzip;q=1"])
def test_a_coding_that_cannot_be_undone_is_refused(value: str) -> None:
    with pytest.raises(UpstreamProtocolError):
        decoder_for(value, max_decoded_bytes=1)


@given(st.sampled_from(sorted(CODERS)), st.binary(min_size=1, max_size=200))
def test_garbage_is_refused_or_decoded_but_never_another_exception(coding: str, garbage: bytes) -> None:
    try:
        decode(coding, [garbage])
    except UpstreamProtocolError:
        pass
