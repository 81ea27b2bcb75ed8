"""Answers that are wrong: each ends in its own error, in the right phase, and the connection is never used again."""

import asyncio

import pytest

from host.upstream import (
    InvalidRequest,
    UpstreamClient,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRequest,
)
from tests.support.upstream_client import MakeClient
from tests.support.upstream_servers import Script, ScriptedServer, ServerConnection, answer, within

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def get(url: str) -> UpstreamRequest:
    return UpstreamRequest(method="GET", url=url)


def sending(*parts: bytes) -> Script:
    """A script that sends these parts after the first request and then closes."""

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        for part in parts:
            await connection.send(part)

    return script


BAD_HEADS = {
    "garbage": b"\x16\x03\x01garbage\r\n\r\n",
    "not-http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "http-2": b"HTTP/2 200 OK\r\n\r\n",
    "status-too-short": b"HTTP/1.1 99 Low\r\n\r\n",
    "status-zero-padded": b"HTTP/1.1 099 Low\r\n\r\n",
    "status-too-long": b"HTTP/1.1 2000 OK\r\n\r\n",
    "length-and-chunked": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two-lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two-equal-lengths": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "length-list": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "length-signed": OK + b"Content-Length: +5\r\n\r\nhello",
    "length-negative": OK + b"Content-Length: -5\r\n\r\nhello",
    "length-overflow": OK + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "unknown-transfer-coding": OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "stacked-transfer-coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "repeated-transfer-coding": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-in-http-1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare-line-feed": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "folded-field": OK + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "blank-before-colon": OK + b"Content-Length : 0\r\n\r\n",
    "nul-in-value": OK + b"X-A: b\0c\r\n\r\n",
    "bare-carriage-return": OK + b"X-A: b\rc\r\n\r\n",
    "no-field-name": OK + b": b\r\n\r\n",
    "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "switching-protocols-silently": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "endless-interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + answer(),
    "one-huge-field": OK + b"X-A: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many-fields": OK + b"X-A: b\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.parametrize("wire", BAD_HEADS.values(), ids=BAD_HEADS.keys())
@pytest.mark.parametrize("bytewise", [False, True], ids=["at-once", "in-small-parts"])
async def test_a_malformed_head_is_a_protocol_error(client: UpstreamClient, wire: bytes, bytewise: bool) -> None:
    size = max(1, len(wire) // 50) if bytewise else len(wire)

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        for start in range(0, len(wire), size):
            await connection.send(wire[start : start + size])
            await asyncio.sleep(0)
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        with pytest.raises(UpstreamProtocolError) as caught:
            await within(client.send(get(server.url)))
    error = caught.value
    assert (error.phase, error.bytes_sent, error.response_started, error.timed_out) == ("head", True, True, False)
    assert client.stats().idle == 0


BAD_BODIES = {
    "chunk-size-not-hex": (CHUNKED + b"5\r\nhello\r\n", b"xyz\r\n"),
    "chunk-size-signed": (CHUNKED + b"5\r\nhello\r\n", b"-1\r\nx\r\n"),
    "chunk-size-prefixed": (CHUNKED + b"5\r\nhello\r\n", b"0x1\r\nx\r\n"),
    "chunk-size-overflow": (CHUNKED + b"5\r\nhello\r\n", b"fffffffffffffffff\r\nx\r\n"),
    "chunk-longer-than-its-size": (CHUNKED + b"5\r\nhello", b"!\r\n0\r\n\r\n"),
    "chunk-line-with-line-feed-only": (CHUNKED + b"5\r\nhello\r\n", b"1\nx\r\n"),
    "length-in-trailers": (CHUNKED + b"5\r\nhello\r\n", b"0\r\nContent-Length: 3\r\n\r\n"),
    "endless-trailers": (CHUNKED + b"5\r\nhello\r\n", b"0\r\n" + b"X-A: b\r\n" * 5_000),
    "endless-chunk-extension": (CHUNKED + b"5\r\nhello\r\n", b"1;" + b"a" * 40_000),
}


@pytest.mark.parametrize(("good", "bad"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_malformed_body_is_a_protocol_error_after_what_was_good(
    client: UpstreamClient, good: bytes, bad: bytes
) -> None:
    taken = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(good)
        await taken.wait()
        await connection.send(bad)
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url)))
        assert await within(anext(response)) == b"hello"
        taken.set()
        with pytest.raises(UpstreamProtocolError) as caught:
            await within(anext(response))
    assert (caught.value.phase, caught.value.response_started) == ("body", True)
    assert client.stats().idle == 0


async def test_a_body_that_is_malformed_from_the_start_still_lets_the_head_through(client: UpstreamClient) -> None:
    async with ScriptedServer(sending(CHUNKED + b"xyz\r\n")) as server:
        response = await within(client.send(get(server.url)))
        assert response.status == 200
        with pytest.raises(UpstreamProtocolError):
            await within(response.read())


CUTS = {
    "in-a-length-body": (OK + b"Content-Length: 10\r\n\r\nhello", b"hello"),
    "in-a-chunk": (CHUNKED + b"a\r\nhello", b"hello"),
    "between-chunks": (CHUNKED + b"5\r\nhello\r\n", b"hello"),
    "before-the-last-line-end": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello"),
}


@pytest.mark.parametrize(("wire", "before"), CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("hang_up", [False, True], ids=["end-of-file", "reset"])
async def test_a_body_cut_short_is_a_disconnection_after_what_arrived(
    client: UpstreamClient, wire: bytes, before: bytes, hang_up: bool
) -> None:
    taken = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(wire)
        await taken.wait()
        if hang_up:
            connection.hang_up()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url)))
        assert await within(anext(response)) == before
        taken.set()
        with pytest.raises(UpstreamDisconnected) as caught:
            await within(anext(response))
        with pytest.raises(UpstreamDisconnected):
            await within(response.read())
    assert (caught.value.phase, caught.value.response_started) == ("body", True)


@pytest.mark.parametrize("wire", [b"", b"HTTP/1.1 200 OK\r\nContent-"], ids=["nothing", "half-a-head"])
async def test_a_connection_closed_before_the_head_is_a_disconnection(client: UpstreamClient, wire: bytes) -> None:
    async with ScriptedServer(sending(wire)) as server:
        with pytest.raises(UpstreamDisconnected) as caught:
            await within(client.send(get(server.url)))
    assert caught.value.phase == "head"
    assert caught.value.response_started is bool(wire)


async def test_a_head_just_within_its_bound_is_accepted(make_client: MakeClient) -> None:
    head = OK + b"Content-Length: 5\r\nX-Pad: " + b"a" * 1000 + b"\r\n\r\n"
    client = make_client(max_head_bytes=len(head))
    async with ScriptedServer(sending(head + b"hello")) as server:
        assert await within((await within(client.send(get(server.url)))).read()) == b"hello"
    strict = make_client(max_head_bytes=len(head) - 1)
    async with ScriptedServer(sending(head + b"hello")) as server:
        with pytest.raises(UpstreamProtocolError):
            await within(strict.send(get(server.url)))


@pytest.mark.parametrize(
    "headers",
    [
        [("X-A", "b\r\nX-Evil: 1")],
        [("X-A", "b\nX-Evil: 1")],
        [("X-A", "b\rX-Evil: 1")],
        [("X-A", "b\0")],
        [("X-A\r\nX-Evil", "1")],
        [("X-A ", "1")],
        [("", "1")],
        [("X-A", "snowman \u2603")],
    ],
)
async def test_a_header_that_could_become_another_is_refused_before_anything_is_sent(
    client: UpstreamClient, headers: list[tuple[str, str]]
) -> None:
    async with ScriptedServer(sending()) as server:
        with pytest.raises(InvalidRequest) as caught:
            await client.send(UpstreamRequest(method="POST", url=server.url, headers=headers))
        assert server.accepted == 0
    assert (caught.value.phase, caught.value.bytes_sent) == ("request", False)


@pytest.mark.parametrize("part", ["/a b", "/a\r\nX-Evil: 1", "/a\n", "/a\tb", "/\u00e9", "/a\x7f"])
async def test_a_url_that_could_break_the_request_line_is_refused(client: UpstreamClient, part: str) -> None:
    with pytest.raises(InvalidRequest):
        await client.send(get("http://127.0.0.1:9" + part))


@pytest.mark.parametrize("method", ["", "GET /evil", "GET\r\n", "CONNECT"])
async def test_a_method_that_is_none_is_refused(client: UpstreamClient, method: str) -> None:
    with pytest.raises(InvalidRequest):
        await client.send(UpstreamRequest(method=method, url="http://127.0.0.1:9/"))


async def test_no_error_message_shows_the_path_the_query_or_a_password(client: UpstreamClient) -> None:
    async with ScriptedServer(sending(b"garbage\r\n\r\n")) as server:
        with pytest.raises(UpstreamError) as caught:
            await within(client.send(get(f"{server.url}/secret-path?key=secret-key")))
    assert "secret" not in str(caught.value)
    assert f"127.0.0.1:{server.port}" in str(caught.value)
