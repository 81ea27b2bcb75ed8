"""Well-formed exchanges: what is written, what is read, and where an answer ends."""

import asyncio

import pytest

from host.upstream import BodyTooLarge, UpstreamClient, UpstreamRequest, UpstreamResponse
from tests.support.upstream_servers import (
    ReceivedRequest,
    ScriptedServer,
    ServerConnection,
    answer,
    answering,
    repeating,
    within,
)


def post(url: str, body: bytes = b"{}", **more: object) -> UpstreamRequest:
    return UpstreamRequest(method="POST", url=url, body=body, **more)  # type: ignore[arg-type]


def get(url: str, method: str = "GET", **more: object) -> UpstreamRequest:
    return UpstreamRequest(method=method, url=url, **more)  # type: ignore[arg-type]


async def pieces_of(response: UpstreamResponse) -> list[bytes]:
    return [piece async for piece in response]


async def test_a_request_arrives_as_it_was_given_with_the_host_and_length_of_the_client(client: UpstreamClient) -> None:
    seen: list[ReceivedRequest] = []

    async def script(connection: ServerConnection) -> None:
        seen.append(await connection.request())
        await connection.send(answer(b"ok"))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        headers = [("Content-Type", "application/json"), ("X-Twice", "a"), ("X-Twice", "b"), ("Host", "evil")]
        request = post(f"{server.url}/v1/x?y=%20z#fragment", b'{"a":1}', headers=headers)
        response = await within(client.send(request))
        assert await within(response.read()) == b"ok"
    (received,) = seen
    assert (
        received.head
        == (
            f"POST /v1/x?y=%20z HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
            "X-Twice: a\r\nX-Twice: b\r\nContent-Length: 7\r\n\r\n"
        ).encode()
    )
    assert received.body == b'{"a":1}'


async def test_a_get_without_headers_is_a_valid_request_without_length(client: UpstreamClient) -> None:
    seen: list[ReceivedRequest] = []

    async def script(connection: ServerConnection) -> None:
        seen.append(await connection.request())
        await connection.send(answer())
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        await within(client.send(get(server.url)))
    assert seen[0].head == f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()


async def test_status_reason_and_lower_cased_headers_are_handed_on_in_order(client: UpstreamClient) -> None:
    one = answer(b"slow down", status="429 Too Many Requests", headers="Retry-After: 3 \r\nX-A: 1\r\nx-a: 2\r\n")
    async with ScriptedServer(answering(one)) as server:
        response = await within(client.send(post(server.url)))
        assert (response.status, response.reason) == (429, "Too Many Requests")
        assert response.headers == [("content-length", "9"), ("retry-after", "3"), ("x-a", "1"), ("x-a", "2")]
        assert await within(response.read()) == b"slow down"
        assert await within(response.read()) == b""


async def test_a_redirect_is_handed_to_the_caller(client: UpstreamClient) -> None:
    async with ScriptedServer(answering(answer(status="307 Moved", headers="Location: /other\r\n"))) as server:
        response = await within(client.send(post(server.url)))
        assert response.status == 307
        assert ("location", "/other") in response.headers
        assert client.stats().opened == 1


async def test_the_head_is_returned_before_the_body_has_arrived(client: UpstreamClient) -> None:
    head_read = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await head_read.wait()
        await connection.send(b"he")
        await connection.send(b"llo")
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(post(server.url)))
        head_read.set()
        assert await within(response.read()) == b"hello"


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
async def test_a_chunked_answer_is_the_same_however_the_network_cuts_it(client: UpstreamClient, cut: int) -> None:
    wire = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b'5\r\nhello\r\n1;ext="x"\r\n \r\n000A\r\nwide world\r\n0\r\nTrailer-Field: dropped\r\n\r\n'
    )

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        for start in range(0, len(wire), cut):
            await connection.send(wire[start : start + cut])
            await asyncio.sleep(0)
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(post(server.url)))
        assert await within(response.read()) == b"hello wide world"
        assert response.headers == [("transfer-encoding", "Chunked")]
        assert client.stats().idle == 1


async def test_events_are_delivered_as_they_arrive_and_the_stream_ends_with_the_last_chunk(
    client: UpstreamClient,
) -> None:
    taken = [asyncio.Event() for _ in range(3)]

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, event in enumerate(taken):
            await connection.send(b"9\r\ndata: %d\n\n\r\n" % number)
            await event.wait()
        await connection.send(b"0\r\n\r\n")
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(post(server.url)))
        for number, event in enumerate(taken):
            assert await within(anext(response)) == b"data: %d\n\n" % number
            event.set()
        with pytest.raises(StopAsyncIteration):
            await within(anext(response))
        with pytest.raises(StopAsyncIteration):
            await within(anext(response))
        assert client.stats().idle == 1


async def test_an_answer_without_length_ends_when_the_server_closes(client: UpstreamClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello ")
        await connection.send(b"world")

    async with ScriptedServer(script) as server:
        response = await within(client.send(post(server.url)))
        assert await within(response.read()) == b"hello world"
        assert client.stats().idle == 0


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Encoding: gzip\r\n\r\n"),
        ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_an_answer_that_has_no_body_is_complete_with_its_head(
    client: UpstreamClient, method: str, head: bytes
) -> None:
    async with ScriptedServer(repeating(head)) as server:
        for _ in range(2):
            response = await within(client.send(get(server.url, method)))
            assert await within(response.read()) == b""


async def test_interim_answers_are_skipped(client: UpstreamClient) -> None:
    one = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 4\r\n\r\n" + answer(
        b"ok", headers="X-Final: yes\r\n"
    )
    async with ScriptedServer(answering(one, one)) as server:
        for _ in range(2):
            response = await within(client.send(post(server.url)))
            assert response.status == 200
            assert response.headers == [("content-length", "2"), ("x-final", "yes")]
            assert await within(response.read()) == b"ok"
        assert client.stats().opened == 1


async def test_a_large_request_body_arrives_whole(client: UpstreamClient) -> None:
    body = bytes(range(256)) * 20_000
    seen: list[bytes] = []

    async def script(connection: ServerConnection) -> None:
        seen.append((await connection.request()).body)
        await connection.send(answer(b"ok"))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        await within(client.send(post(server.url, body)))
        assert client.stats().idle == 1
    assert seen == [body]


async def test_a_large_answer_is_read_whole_and_the_connection_is_kept(client: UpstreamClient) -> None:
    body = bytes(range(256)) * 20_000
    async with ScriptedServer(repeating(answer(body))) as server:
        for _ in range(2):
            response = await within(client.send(get(server.url)))
            assert await within(response.read()) == body
        assert client.stats().opened == 1


@pytest.mark.parametrize("body_bytes", [11, 3_000_000])
async def test_read_refuses_a_body_beyond_its_bound_and_the_client_stays_usable(
    client: UpstreamClient, body_bytes: int
) -> None:
    async with ScriptedServer(repeating(answer(b"x" * body_bytes))) as server:
        response = await within(client.send(get(server.url)))
        with pytest.raises(BodyTooLarge) as caught:
            await within(response.read(max_bytes=10))
        assert caught.value.limit_bytes == 10
        again = await within(client.send(get(server.url)))
        assert len(await within(again.read(max_bytes=body_bytes))) == body_bytes


async def test_read_stops_receiving_a_chunked_body_beyond_its_bound(client: UpstreamClient) -> None:
    gone = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n")
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url)))
        with pytest.raises(BodyTooLarge):
            await within(response.read(max_bytes=10))
        await within(gone.wait())


async def test_many_requests_at_once_get_each_their_own_answer(client: UpstreamClient) -> None:
    async def script(connection: ServerConnection) -> None:
        while True:
            await connection.send(answer((await connection.request()).body))

    async def one(url: str, number: int) -> bytes:
        return await (await client.send(post(url, b"%d" % number))).read()

    async with ScriptedServer(script) as server:
        for _ in range(3):
            answers = await within(asyncio.gather(*(one(server.url, number) for number in range(50))))
            assert answers == [b"%d" % number for number in range(50)]
        assert client.stats().opened <= 50
        assert client.stats().reused >= 100
