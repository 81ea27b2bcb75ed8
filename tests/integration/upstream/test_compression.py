"""Compressed answers over the wire: decoded as they arrive, left alone when asked, and bounded."""

import asyncio
import gzip
import zlib

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from host.upstream import BodyTooLarge, UpstreamClient, UpstreamProtocolError, UpstreamRequest
from tests.support.upstream_client import MakeClient
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answer, repeating, within

TEXT = b"".join(b"data: event number %d\n\n" % number for number in range(20_000))
ENCODED = {
    "gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
}


def get(url: str, *, decompress: bool = True) -> UpstreamRequest:
    return UpstreamRequest(method="GET", url=url, headers=[("Accept-Encoding", "gzip, br")], decompress=decompress)


def encoded_answer(coding: str) -> bytes:
    return answer(ENCODED[coding], headers=f"Content-Encoding: {coding}\r\nX-Other: 1\r\n")


@pytest.mark.parametrize("coding", ENCODED)
async def test_a_compressed_answer_is_read_decoded_and_its_headers_describe_what_is_read(
    client: UpstreamClient, coding: str
) -> None:
    async with ScriptedServer(repeating(encoded_answer(coding))) as server:
        for _ in range(2):
            response = await within(client.send(get(server.url)))
            assert await within(response.read()) == TEXT
            assert response.headers == [("x-other", "1")]
            assert response.decoded
        assert server.accepted == 1


@pytest.mark.parametrize("coding", ENCODED)
async def test_a_compressed_answer_is_handed_on_raw_when_the_caller_says_so(
    client: UpstreamClient, coding: str
) -> None:
    async with ScriptedServer(repeating(encoded_answer(coding))) as server:
        response = await within(client.send(get(server.url, decompress=False)))
        assert await within(response.read()) == ENCODED[coding]
        assert ("content-encoding", coding) in response.headers
        assert not response.decoded


async def test_a_compressed_event_stream_is_decoded_event_by_event(client: UpstreamClient) -> None:
    taken = asyncio.Queue[None]()
    compressor = zlib.compressobj(wbits=31)

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n")
        for number in range(5):
            event = compressor.compress(b"data: %d\n\n" % number) + compressor.flush(zlib.Z_SYNC_FLUSH)
            await connection.send(b"%x\r\n%b\r\n" % (len(event), event))
            await taken.get()
        end = compressor.flush()
        await connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url)))
        for number in range(5):
            assert await within(anext(response)) == b"data: %d\n\n" % number
            taken.put_nowait(None)
        with pytest.raises(StopAsyncIteration):
            await within(anext(response))
        assert client.stats().idle == 1


async def test_a_gzip_bomb_is_stopped_by_the_bound_of_read(client: UpstreamClient) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    async with ScriptedServer(repeating(answer(bomb, headers="Content-Encoding: gzip\r\n"))) as server:
        response = await within(client.send(get(server.url)))
        with pytest.raises(BodyTooLarge):
            await within(response.read(max_bytes=1_000_000))


async def test_a_gzip_bomb_is_stopped_by_the_cap_of_the_client_when_it_is_iterated(make_client: MakeClient) -> None:
    client = make_client(max_decoded_bytes=1_000_000)
    bomb = gzip.compress(b"\0" * 50_000_000)
    gone = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\nContent-Encoding: gzip\r\n\r\n" + bomb)
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url)))
        received = 0
        with pytest.raises(BodyTooLarge) as caught:
            async for piece in response:
                received += len(piece)
                assert len(piece) <= 1_000_000
        assert received <= 1_000_000
        assert caught.value.limit_bytes == 1_000_000
        await within(gone.wait())


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"not compressed at all", "gzip"),
        (ENCODED["gzip"][:-10], "gzip"),
        (ENCODED["gzip"] + b"surplus", "gzip"),
        (ENCODED["br"][:-10], "br"),
        (ENCODED["zstd"][:-10], "zstd"),
        (b"whatever", "compress"),
        (b"whatever", "gzip, gzip, gzip"),
    ],
    ids=["garbage", "cut-gzip", "gzip-and-more", "cut-br", "cut-zstd", "unknown-coding", "too-many-codings"],
)
async def test_a_body_that_is_not_what_its_coding_says_is_a_protocol_error(
    client: UpstreamClient, body: bytes, coding: str
) -> None:
    async with ScriptedServer(repeating(answer(body, headers=f"Content-Encoding: {coding}\r\n"))) as server:
        with pytest.raises(UpstreamProtocolError) as caught:
            response = await within(client.send(get(server.url)))
            await within(response.read())
    assert caught.value.phase == "body"


async def test_an_empty_body_may_claim_any_coding(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"", headers="Content-Encoding: gzip\r\n"))) as server:
        response = await within(client.send(get(server.url)))
        assert await within(response.read()) == b""
