"""What clients may send: sizes, content codings, and bodies that are no requests, refused in each family's shape."""

import gzip
import io
import json
import zlib
from typing import Any

import aiohttp
import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from tests.support.fake_upstream import FakeUpstream
from tests.support.families import CLAUDE, GEMINI, OPENAI, RESPONSES, Family
from tests.support.proxy import running_proxy

ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.compress}


def check_refusal(family: Family, document: Any, *, status: int, words: str) -> None:
    """The family's own error envelope."""
    error = document["error"]
    assert words in error["message"]
    if family is CLAUDE:
        assert document["type"] == "error"
        assert error["type"] == ("request_too_large" if status == 413 else "invalid_request_error")
    elif family is GEMINI:
        assert error["code"] == status
        assert error["status"] == "INVALID_ARGUMENT"
    else:
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("coding", ENCODERS)
async def test_a_compressed_request_reaches_the_upstream_as_its_content(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, coding: str
) -> None:
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, body = family.request()
        headers = {"Content-Encoding": coding}
        async with client.post(proxy.url + path, data=ENCODERS[coding](body), headers=headers) as response:
            assert response.status == 200
    sent = await upstream.request()
    assert sent.body == body
    assert "Content-Encoding" not in sent.headers


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"model": "m1"', b"no json", b"\xff\xfe", b'{"model":"m1","x":"\xff"}', b'{"a":1}{"b":2}'],
    ids=["brace", "cut", "words", "bytes", "no utf-8 inside", "two documents"],
)
async def test_a_body_that_is_no_json_is_refused_with_400(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, body: bytes
) -> None:
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, _ = family.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 400
            check_refusal(family, await response.json(), status=400, words="JSON")
    assert upstream.requests == []


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"17"])
async def test_a_body_that_is_no_object_is_refused_with_400(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, body: bytes
) -> None:
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, _ = family.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 400
            check_refusal(family, await response.json(), status=400, words="object")


@pytest.mark.parametrize("family", [OPENAI, RESPONSES, CLAUDE], ids=lambda family: family.name)
@pytest.mark.parametrize(
    "twice",
    [b'"model":"m1","model":"m2"', b'"model":"m1","\\u006dodel":"m1"', b'"model":"m1","stream":true,"stream":false'],
    ids=["model", "escaped model", "stream"],
)
async def test_two_members_that_plugin_and_upstream_could_read_differently_are_refused(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, twice: bytes
) -> None:
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, _ = family.request()
        async with client.post(proxy.url + path, data=b'{%s,"messages":[]}' % twice) as response:
            assert response.status == 400
            check_refusal(family, await response.json(), status=400, words="two members")
    assert upstream.requests == []


async def test_a_body_over_the_limit_is_refused_with_413_announced_or_not(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    async def in_pieces() -> Any:
        for _ in range(4):
            yield b" " * 300

    config = family.config(upstream.url, top={"limits": {"request-body": 1000}})
    async with running_proxy(config) as proxy:
        path, _ = family.request()
        for data in (b" " * 1001, in_pieces()):
            async with client.post(proxy.url + path, data=data) as response:
                assert response.status == 413
                check_refusal(family, await response.json(), status=413, words="larger than 1000 bytes")
        _, body = family.request()
        async with client.post(proxy.url + path, data=body.ljust(1000)) as response:
            assert response.status == 200
    assert len(upstream.requests) == 1


async def test_a_small_body_that_unpacks_beyond_the_limit_is_refused_with_413(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    config = OPENAI.config(upstream.url, top={"limits": {"decoded-body": 10_000}})
    async with running_proxy(config) as proxy:
        for coding, encode in ENCODERS.items():
            bomb = encode(b'{"model":"m1","x":"' + b"a" * 1_000_000 + b'"}')
            path, _ = OPENAI.request()
            async with client.post(proxy.url + path, data=bomb, headers={"Content-Encoding": coding}) as response:
                assert response.status == 413, coding
    assert upstream.requests == []


async def test_a_body_of_several_megabytes_passes_both_ways(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with running_proxy(OPENAI.config(upstream.url)) as proxy:
        path, _ = OPENAI.request()
        body = json.dumps({"model": "m1", "messages": [{"role": "user", "content": "é" * 4_000_000}]}).encode()
        async with client.post(proxy.url + path, data=io.BytesIO(body)) as response:
            assert response.status == 200
    assert (await upstream.request()).body == body


async def test_a_model_that_is_no_text_is_refused(client: aiohttp.ClientSession, upstream: FakeUpstream) -> None:
    async with running_proxy(OPENAI.config(upstream.url)) as proxy:
        for body in (b'{"model":7,"messages":[]}', b'{"model":{},"messages":[]}'):
            async with client.post(f"{proxy.url}/v1/chat/completions", data=body) as response:
                assert response.status == 400
                assert (await response.json())["error"]["param"] == "model"


async def test_an_upstream_that_does_not_speak_the_clients_protocol_is_a_400_that_names_both(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with running_proxy(OPENAI.config(upstream.url)) as proxy:
        for family in (CLAUDE, GEMINI, RESPONSES):
            path, body = family.request()
            async with client.post(proxy.url + path, data=body) as response:
                assert response.status == 400
                message = (await response.json())["error"]["message"]
            assert "openai" in message
            assert {"claude": "claude", "gemini": "gemini", "responses": "openai-response"}[family.name] in message
    assert upstream.requests == []


async def test_an_unknown_gemini_action_is_a_404_in_geminis_shape(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with running_proxy(GEMINI.config(upstream.url)) as proxy:
        async with client.post(f"{proxy.url}/v1beta/models/m1:explodeContent", data=b"{}") as response:
            assert response.status == 404
            assert (await response.json())["error"]["status"] == "NOT_FOUND"


async def test_a_connection_is_used_for_many_requests_also_after_errors(
    upstream: FakeUpstream,
) -> None:
    connector = aiohttp.TCPConnector(limit=1)
    traced: list[str] = []
    trace = aiohttp.TraceConfig()

    async def created(*_: Any) -> None:
        traced.append("created")

    trace.on_connection_create_end.append(created)
    async with (
        running_proxy(OPENAI.config(upstream.url)) as proxy,
        aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session,
    ):
        path, good = OPENAI.request()
        _, streamed = OPENAI.request(stream=True)
        for body in (good, b"{", streamed, b'{"model":"unknown"}', good):
            async with session.post(proxy.url + path, data=body) as response:
                await response.read()
    assert traced == ["created"]
