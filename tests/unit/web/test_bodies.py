"""Request bodies: content codings, limits, what counts as JSON, and members that may not be ambiguous."""

import asyncio
import gzip
import io
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import brotli
import pytest
import zstandard

from host.config.model import Config, SizeLimits
from tests.support.web import Proxy

BODY = b'{"model":"m", "n": 1.50, "big": 12345678901234567890123, "t": "\\u00e4 \xc3\xa4"}'


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


ENCODED = [
    ("identity", BODY),
    ("gzip", gzip.compress(BODY)),
    ("x-gzip", gzip.compress(BODY[:10]) + gzip.compress(BODY[10:])),
    ("deflate", zlib.compress(BODY)),
    ("Deflate", raw_deflate(BODY)),
    ("br", brotli.compress(BODY)),
    ("zstd", zstandard.compress(BODY)),
    ("gzip, zstd", zstandard.compress(gzip.compress(BODY))),
    (" br ,identity, GZIP", gzip.compress(brotli.compress(BODY))),
]


@pytest.mark.parametrize(("encoding", "sent"), ENCODED, ids=[f"RS-04-{row[0].strip()}" for row in ENCODED])
async def test_a_body_is_decoded_from_right_to_left_and_keeps_its_bytes(
    proxy: Proxy, encoding: str, sent: bytes
) -> None:
    for path in ("/v1/responses", "/v1/messages", "/v1beta/models/g:generateContent"):
        answer = await proxy.post(path, sent, headers={"Content-Encoding": encoding})
        assert answer.status == 200, answer.text
        assert proxy.gateway.requests[-1].body == BODY


@pytest.mark.parametrize("encoding", ["x-unknown", "gzip", "deflate", "br", "zstd", ", ".join(["gzip"] * 9)])
async def test_RS06_a_body_that_cannot_be_decoded_is_a_400_unless_it_is_JSON_already(
    proxy: Proxy, encoding: str
) -> None:
    refused = await proxy.post("/v1/responses", b"\x00\x01nonsense", headers={"Content-Encoding": encoding})
    assert (refused.status, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    accepted = await proxy.post("/v1/responses", BODY, headers={"Content-Encoding": encoding})
    assert accepted.status == 200
    assert proxy.gateway.request.body == BODY


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(BODY)[:-9], brotli.compress(BODY)[:-5], zstandard.compress(BODY)[:-5]],
    ids=["gzip", "br", "zstd"],
)
async def test_a_truncated_body_is_a_400(proxy: Proxy, packed: bytes) -> None:
    encoding = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(packed[:2], "br")
    answer = await proxy.post("/v1/responses", packed, headers={"Content-Encoding": encoding})
    assert answer.status == 400


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", brotli.compress), ("zstd", zstandard.compress)],
)
async def test_a_small_body_that_unpacks_to_a_huge_one_is_a_413(proxy: Proxy, encoding: str, pack: Any) -> None:
    proxy.config = Config(limits=SizeLimits(decoded_body=1_000_000))
    bomb = pack(b'{"model":"' + b"x" * 20_000_000 + b'"}')
    answer = await proxy.post("/v1/messages", bomb, headers={"Content-Encoding": encoding})
    assert answer.status == 413
    assert answer.json()["error"]["type"] == "request_too_large"


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_chunked_body_is_read_whole(proxy: Proxy) -> None:
    answer = await proxy.send("POST", "/v1/responses", data=chunks(BODY[:5], BODY[5:]))
    assert answer.status == 200
    assert proxy.gateway.request.body == BODY


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413_in_the_clients_shape(proxy: Proxy, chunked: bool) -> None:
    proxy.config = Config(limits=SizeLimits(request_body=1000))
    body = b'{"model":"m","x":"' + b"y" * 5000 + b'"}'
    data = chunks(body[:3000], body[3000:]) if chunked else body
    answer = await proxy.send("POST", "/v1beta/models/g:generateContent", data=data)
    assert (answer.status, answer.json()["error"]["code"]) == (413, 413)
    assert proxy.gateway.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model":}',
        b"[1]",
        b'"x"',
        b'{"a":"\xff"}',
        b'{"model":"m"} x',
        b"{'model':'m'}",
        b'{"model":7}',
        b'{"model":["m"]}',
        b"[" * 100000,
    ],
)
async def test_what_is_no_JSON_object_with_a_text_as_model_is_a_400(proxy: Proxy, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
        answer = await proxy.post(path, body)
        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert proxy.gateway.requests == []


async def test_a_gemini_body_may_be_absent_but_not_broken(proxy: Proxy) -> None:
    assert (await proxy.post("/v1beta/models/g:generateContent", b"")).status == 200
    assert (await proxy.post("/v1beta/models/g:generateContent", b"{")).status == 400


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a","model":"b"}',
        '{"model":"a","model":"a"}',
        '{"model":"a","mod\\u0065l":"b"}',
        '{"\\u006dodel":"a","x":1,"\\u006Dodel":"b"}',
        '{"stream":true,"model":"a","stream":false}',
        '{"model":"a","x":{"model":"c"},"model" : "b"}',
    ],
)
async def test_two_members_model_or_stream_are_a_400_however_they_are_spelled(proxy: Proxy, body: str) -> None:
    answer = await proxy.post("/v1/chat/completions", body.encode())
    assert answer.status == 400
    assert "two members" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a","x":{"model":"b","stream":1}}',
        '{"model":"a","x":[{"model":"b"},{"model":"b"}],"stream":false}',
        '{"model":"a","x":"\\"model\\":","y":"\\"model\\":"}',
        '{"model":"a","messages":[],"messages":[]}',
    ],
)
async def test_the_same_names_further_inside_are_fine(proxy: Proxy, body: str) -> None:
    answer = await proxy.post("/v1/chat/completions", body.encode())
    assert answer.status == 200
    assert proxy.gateway.request.body == body.encode()


async def test_an_ambiguous_body_with_very_many_members_is_refused_without_listing_them_all(proxy: Proxy) -> None:
    members = ",".join(f'"k{index}":0' for index in range(20_000))
    answer = await proxy.post("/v1/chat/completions", f'{{"model":"a",{members},"x":{{"model":"b"}}}}'.encode())
    assert answer.status == 400


async def test_RS08_the_pipeline_gets_the_clients_bytes(proxy: Proxy) -> None:
    body = b' {"b": 1.0 ,"model":"m","a":[ ],\n"z":12345678901234567890123456789} '
    for path in ("/v1/responses", "/v1/chat/completions", "/v1/messages", "/v1/embeddings"):
        await proxy.post(path, body)
        assert proxy.gateway.requests[-1].body == body


async def test_a_client_that_asks_before_sending_is_told_to_go_on(proxy: Proxy) -> None:
    reader, writer = await proxy.socket()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(BODY)
    )
    async with asyncio.timeout(20):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert proxy.gateway.request.body == BODY


async def test_a_large_body_in_many_packets_is_read_whole(proxy: Proxy) -> None:
    body = json.dumps({"model": "m", "x": "y" * 3_000_000}).encode()
    assert (await proxy.send("POST", "/v1/chat/completions", data=io.BytesIO(body))).status == 200
    assert proxy.gateway.request.body == body
