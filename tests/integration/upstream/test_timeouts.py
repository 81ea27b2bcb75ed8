"""Time limits: each ends the request in the phase that was late, and none fires while things move."""

import asyncio
import socket

import pytest

from host.upstream import UpstreamClient, UpstreamRequest, UpstreamTimeout
from tests.support.proxies import ConnectProxy, Socks5Proxy
from tests.support.upstream_client import LocalCa, MakeClient, ManualClock
from tests.support.upstream_servers import ScriptedServer, ServerConnection, within

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def get(url: str, **more: object) -> UpstreamRequest:
    return UpstreamRequest(method="GET", url=url, **more)  # type: ignore[arg-type]


async def sweeps(client: UpstreamClient, clock: ManualClock) -> None:
    """Returns after the client has compared its deadlines with the clock at least twice."""
    for _ in range(2):
        before = clock.calls
        while clock.calls == before:  # noqa: ASYNC110 - the clock being read is the event
            await asyncio.sleep(0)


@pytest.mark.parametrize("first_bytes", [b"", b"HTTP/1.1 200 OK\r\nX-Slow"], ids=["silence", "slow-head"])
async def test_a_head_that_does_not_come_in_time_is_a_timeout_of_the_head(
    client: UpstreamClient, clock: ManualClock, first_bytes: bytes
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(first_bytes)
        asked.set()
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        sending = asyncio.create_task(client.send(get(server.url, first_byte_timeout_s=30.0)), name="send")
        await within(asked.wait())
        clock.advance(29)
        await within(sweeps(client, clock))
        assert not sending.done()
        clock.advance(2)
        with pytest.raises(UpstreamTimeout) as caught:
            await within(sending)
        await within(gone.wait())
    assert (caught.value.phase, caught.value.timed_out, caught.value.bytes_sent) == ("head", True, True)


async def test_interim_answers_do_not_extend_the_time_for_the_head(client: UpstreamClient, clock: ManualClock) -> None:
    asked = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        asked.set()
        for _ in range(3):
            clock.advance(15)
            await connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        with pytest.raises(UpstreamTimeout):
            await within(client.send(get(server.url, first_byte_timeout_s=30.0)))


async def test_a_request_the_server_does_not_take_in_time_is_a_timeout_of_the_sending(
    client: UpstreamClient, clock: ManualClock
) -> None:
    asked = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.reader.read(1)  # the reader stops by itself once its buffer is full
        asked.set()
        await asyncio.Event().wait()

    async with ScriptedServer(script) as server:
        request = UpstreamRequest(method="POST", url=server.url, body=b"x" * 30_000_000, first_byte_timeout_s=30.0)
        sending = asyncio.create_task(client.send(request), name="send")
        await within(asked.wait())
        clock.advance(31)
        with pytest.raises(UpstreamTimeout) as caught:
            await within(sending)
    assert caught.value.phase == "send"


async def test_a_body_that_falls_silent_is_a_timeout_of_the_body(client: UpstreamClient, clock: ManualClock) -> None:
    gone = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD + b"5\r\nhello\r\n")
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url, idle_timeout_s=20.0, first_byte_timeout_s=1.0)))
        assert await within(anext(response)) == b"hello"
        await within(sweeps(client, clock))
        clock.advance(19)
        await within(sweeps(client, clock))
        reading = asyncio.create_task(anext(response), name="read")
        await within(sweeps(client, clock))
        assert not reading.done()
        clock.advance(2)
        with pytest.raises(UpstreamTimeout) as caught:
            await within(reading)
        await within(gone.wait())
    assert (caught.value.phase, caught.value.response_started) == ("body", True)


async def test_a_stream_that_keeps_moving_has_no_total_limit(client: UpstreamClient, clock: ManualClock) -> None:
    taken = asyncio.Queue[None]()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD)
        for _ in range(10):
            await connection.send(b"5\r\nhello\r\n")
            await taken.get()
        await connection.send(b"0\r\n\r\n")
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url, idle_timeout_s=20.0, first_byte_timeout_s=20.0)))
        count = 0
        async for _ in response:
            count += 1
            await within(sweeps(client, clock))
            clock.advance(15)
            await within(sweeps(client, clock))
            taken.put_nowait(None)
        assert count == 10


async def test_a_reader_that_takes_long_does_not_make_the_upstream_time_out(
    make_client: MakeClient, clock: ManualClock
) -> None:
    client = make_client(high_water_bytes=1000)
    body = b"x" * 20_000_000  # more than the kernel takes in

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
        await connection.send(body)
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(server.url, idle_timeout_s=20.0)))
        first = await within(anext(response))
        for _ in range(5):
            clock.advance(60)
            await within(sweeps(client, clock))
        assert first + await within(response.read()) == body


async def test_no_limit_means_no_limit(client: UpstreamClient, clock: ManualClock) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        asked.set()
        await go_on.wait()
        await connection.send(STREAM_HEAD)
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        request = get(server.url, first_byte_timeout_s=None, idle_timeout_s=None)
        sending = asyncio.create_task(client.send(request), name="send")
        await within(asked.wait())
        clock.advance(1_000_000)
        await within(sweeps(client, clock))
        go_on.set()
        response = await within(sending)
        await within(sweeps(client, clock))
        clock.advance(1_000_000)
        await within(sweeps(client, clock))
        reading = asyncio.create_task(anext(response), name="read")
        await within(sweeps(client, clock))
        assert not reading.done()
        reading.cancel()
        await asyncio.wait([reading])


async def test_a_tls_handshake_that_stalls_is_a_timeout_of_tls(make_client: MakeClient, local_ca: LocalCa) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    gone = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        url = server.url.replace("http://", "https://")
        with pytest.raises(UpstreamTimeout) as caught:
            await within(client.send(get(url, connect_timeout_s=1.0)))
        await within(gone.wait())
    assert (caught.value.phase, caught.value.bytes_sent) == ("tls", False)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_stalls_is_a_timeout_of_the_proxy_and_is_left(client: UpstreamClient, scheme: str) -> None:
    async with ConnectProxy(stall=True) if scheme == "http" else Socks5Proxy(stall=True) as proxy:
        request = get("http://127.0.0.1:9/", proxy_url=f"{scheme}://127.0.0.1:{proxy.port}", connect_timeout_s=1.0)
        with pytest.raises(UpstreamTimeout) as caught:
            await within(client.send(request))
        await within(proxy.client_gone.wait())
    assert caught.value.phase == "proxy"


async def test_a_tcp_connection_that_stalls_is_a_timeout_of_connecting(client: UpstreamClient) -> None:
    with socket.socket() as listener, socket.socket() as filler:
        # One connection fills the queue of a listener with backlog 0; the kernel then ignores further ones.
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.connect(listener.getsockname())
        with pytest.raises(UpstreamTimeout) as caught:
            await within(client.send(get(f"http://127.0.0.1:{listener.getsockname()[1]}/", connect_timeout_s=1.0)))
    assert caught.value.phase == "connect"
