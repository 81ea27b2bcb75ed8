"""Kept-alive connections: when they are used again, when not, and the one case in which a request is written twice."""

import asyncio

import pytest

from host.upstream import ConnectError, UpstreamClient, UpstreamDisconnected, UpstreamRequest
from tests.support.upstream_client import MakeClient, ManualClock
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answer, answering, repeating, within


def post(url: str) -> UpstreamRequest:
    return UpstreamRequest(method="POST", url=url, body=b"{}")


async def exchange(client: UpstreamClient, url: str) -> bytes:
    response = await within(client.send(post(url)))
    return await within(response.read())


async def lost_all(client: UpstreamClient) -> None:
    """Returns when the event loop has told the client about every closed connection."""
    while client.stats().open:  # noqa: ASYNC110 - the loop's own bookkeeping has no event
        await asyncio.sleep(0)


async def test_requests_in_sequence_share_one_connection(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"ok"))) as server:
        for _ in range(5):
            await exchange(client, f"{server.url}/a")
        assert server.accepted == 1
    stats = client.stats()
    assert (stats.opened, stats.reused, stats.retried) == (1, 4, 0)


async def test_the_same_origin_written_differently_shares_a_connection(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"ok"))) as server:
        await exchange(client, server.url)
        await exchange(client, server.url.upper().replace("HTTP", "http") + "/path")
        await exchange(client, server.url + "?query")
        assert server.accepted == 1


async def test_different_ports_never_share_a_connection(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"1"))) as one, ScriptedServer(repeating(answer(b"2"))) as two:
        answers = [await exchange(client, server.url) for server in (one, two, one, two)]
        assert answers == [b"1", b"2", b"1", b"2"]
        assert (one.accepted, two.accepted) == (1, 1)


@pytest.mark.parametrize(
    "one",
    [
        answer(b"ok", headers="Connection: close\r\n"),
        answer(b"ok", headers="Connection: Keep-Alive, Close\r\n"),
        answer(b"ok", version="1.0"),
        answer(b"ok", headers="Keep-Alive: timeout=1\r\n"),
        answer(b"ok") + b"surplus",
        answer(b"ok") + answer(b"a second answer nobody asked for"),
    ],
    ids=["close", "close-in-list", "http-1.0", "announces-one-second", "surplus-bytes", "second-answer"],
)
async def test_a_connection_is_not_reused_after(client: UpstreamClient, one: bytes) -> None:
    async with ScriptedServer(repeating(one)) as server:
        for _ in range(2):
            assert await exchange(client, server.url) == b"ok"
        assert server.accepted == 2
        assert client.stats().reused == 0


async def test_an_http_1_0_server_that_asks_for_keep_alive_is_reused(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"ok", version="1.0", headers="Connection: keep-alive\r\n"))) as server:
        for _ in range(2):
            await exchange(client, server.url)
        assert server.accepted == 1


async def test_a_connection_the_server_closed_while_idle_is_forgotten(client: UpstreamClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(answer(b"ok"))

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        await within(lost_all(client))
        assert client.stats().idle == 0
        assert await exchange(client, server.url) == b"ok"
    assert client.stats().retried == 0


async def test_bytes_on_an_idle_connection_close_it(client: UpstreamClient) -> None:
    quiet = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(answer(b"ok"))
        if connection.number == 1:
            await quiet.wait()
            await connection.send(answer(b"poison"))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        quiet.set()
        await within(lost_all(client))
        assert await exchange(client, server.url) == b"ok"
        assert server.accepted == 2


async def test_a_request_on_a_reused_connection_that_dies_without_a_byte_is_written_once_more(
    client: UpstreamClient,
) -> None:
    bodies: list[bytes] = []

    async def script(connection: ServerConnection) -> None:
        bodies.append((await connection.request()).body)
        await connection.send(answer(b"ok"))
        if connection.number == 1:
            bodies.append((await connection.request()).body)
            connection.hang_up()
        else:
            await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        assert await exchange(client, server.url) == b"ok"
        assert server.accepted == 2
    assert bodies == [b"{}"] * 3
    assert client.stats().retried == 1


async def test_the_second_try_is_the_last_one(client: UpstreamClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        if connection.number == 1:
            await connection.send(answer(b"ok"))
            await connection.request()
        connection.hang_up()

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        with pytest.raises(UpstreamDisconnected) as caught:
            await exchange(client, server.url)
        assert server.accepted == 2
    assert caught.value.phase == "head"
    assert caught.value.bytes_sent
    assert not caught.value.response_started


async def test_a_loss_later_than_the_window_is_not_retried(client: UpstreamClient, clock: ManualClock) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(answer(b"ok"))
        await connection.request()
        clock.advance(1.5)
        connection.hang_up()

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        with pytest.raises(UpstreamDisconnected):
            await exchange(client, server.url)
        assert server.accepted == 1


async def test_a_loss_after_a_first_byte_is_not_retried(client: UpstreamClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(answer(b"ok"))
        await connection.request()
        await connection.send(b"H")

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        with pytest.raises(UpstreamDisconnected) as caught:
            await exchange(client, server.url)
        assert server.accepted == 1
    assert caught.value.response_started


async def test_a_loss_on_a_new_connection_is_not_retried(client: UpstreamClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        connection.hang_up()

    async with ScriptedServer(script) as server:
        with pytest.raises(UpstreamDisconnected):
            await exchange(client, server.url)
        assert server.accepted == 1
    assert client.stats().retried == 0


async def test_an_unused_connection_expires(client: UpstreamClient, clock: ManualClock) -> None:
    gone = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(answer(b"ok"))
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        clock.advance(46)
        await within(gone.wait())
        assert client.stats().idle == 0


async def test_a_shorter_announced_keep_alive_is_respected_with_a_second_to_spare(
    client: UpstreamClient, clock: ManualClock
) -> None:
    gone = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        for _ in range(2):
            await connection.request()
            await connection.send(answer(b"ok", headers="Keep-Alive: timeout=5, max=100\r\n"))
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        await exchange(client, server.url)
        clock.advance(3.9)
        await exchange(client, server.url)
        assert server.accepted == 1
        clock.advance(4.1)
        await within(gone.wait())


async def test_idle_connections_are_capped_per_origin(make_client: MakeClient) -> None:
    client = make_client(max_idle_per_origin=2)
    arrived: list[int] = []
    together = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        arrived.append(connection.number)
        if len(arrived) == 5:
            together.set()
        await together.wait()
        await connection.send(answer(b"ok"))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        await within(asyncio.gather(*(exchange(client, server.url) for _ in range(5))))
        assert client.stats().opened == 5
        assert client.stats().idle == 2


async def test_idle_connections_are_capped_in_total(make_client: MakeClient) -> None:
    client = make_client(max_idle_total=1)
    async with ScriptedServer(repeating(answer(b"1"))) as one, ScriptedServer(repeating(answer(b"2"))) as two:
        await exchange(client, one.url)
        await exchange(client, two.url)
        assert client.stats().idle == 1


async def test_a_refusal_before_the_whole_request_was_taken_is_delivered_and_the_connection_closed(
    client: UpstreamClient,
) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(answer(b"too long", status="413 Content Too Large"))
        await connection.closed_by_peer()

    request_body = b"x" * 30_000_000
    async with ScriptedServer(script) as server:
        response = await within(client.send(UpstreamRequest(method="POST", url=server.url, body=request_body)))
        assert (response.status, await within(response.read())) == (413, b"too long")
        assert client.stats().idle == 0


async def test_close_fails_what_is_in_progress_and_refuses_what_comes_later(make_client: MakeClient) -> None:
    client = make_client()
    received = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        if connection.number == 1:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        received.set()
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(post(server.url)))
        received.clear()
        waiting = asyncio.create_task(client.send(post(server.url)), name="second")
        await within(received.wait())
        await within(client.close())
        with pytest.raises(UpstreamDisconnected):
            await within(waiting)
        assert await within(anext(response)) == b"half"
        with pytest.raises(UpstreamDisconnected):
            await within(anext(response))
        with pytest.raises(ConnectError):
            await within(client.send(post(server.url)))
        await within(client.close())


async def test_the_answers_of_one_connection_do_not_leak_into_each_other(client: UpstreamClient) -> None:
    answers = [
        answer(b"first", headers="X-One: 1\r\nContent-Encoding: identity\r\n"),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthird\r\n0\r\n\r\n",
        answer(b"fourth", status="500 Oops"),
    ]
    async with ScriptedServer(answering(*answers)) as server:
        seen = []
        for _ in answers:
            response = await within(client.send(post(server.url)))
            seen.append((response.status, await within(response.read()), dict(response.headers).get("x-one")))
        assert seen == [(200, b"first", "1"), (204, b"", None), (200, b"third", None), (500, b"fourth", None)]
        assert server.accepted == 1
