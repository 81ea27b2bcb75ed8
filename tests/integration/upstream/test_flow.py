"""Who stops whom: cancellation reaches the server, a slow reader slows it, abandoned responses are cleaned up."""

import asyncio
import gc

import pytest

from host.upstream import UpstreamClient, UpstreamDisconnected, UpstreamRequest
from tests.support.upstream_client import MakeClient
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answer, within

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def get(url: str) -> UpstreamRequest:
    return UpstreamRequest(method="GET", url=url)


class StreamingServer(ScriptedServer):
    """Answers with `first` and then waits for the client to leave."""

    def __init__(self, first: bytes) -> None:
        self.asked = asyncio.Event()
        self.client_gone = asyncio.Event()
        self._first = first
        super().__init__(self._stream)

    async def _stream(self, connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(self._first)
        self.asked.set()
        await connection.closed_by_peer()
        self.client_gone.set()


async def test_cancelling_send_closes_the_connection(client: UpstreamClient) -> None:
    async with StreamingServer(b"") as server:
        sending = asyncio.create_task(client.send(get(server.url)), name="send")
        await within(server.asked.wait())
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(sending)
        await within(server.client_gone.wait())
    assert client.stats().idle == 0


async def test_cancelling_an_iteration_step_closes_the_connection(client: UpstreamClient) -> None:
    async with StreamingServer(STREAM_HEAD + b"5\r\nhello\r\n") as server:
        response = await within(client.send(get(server.url)))
        assert await within(anext(response)) == b"hello"
        step = asyncio.create_task(anext(response), name="step")
        await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(step)
        await within(server.client_gone.wait())
        with pytest.raises(UpstreamDisconnected):
            await within(anext(response))


async def test_cancelling_read_closes_the_connection(client: UpstreamClient) -> None:
    async with StreamingServer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello") as server:
        response = await within(client.send(get(server.url)))
        reading = asyncio.create_task(response.read(), name="read")
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(reading)
        await within(server.client_gone.wait())


async def test_cancelling_while_connecting_closes_the_socket(client: UpstreamClient) -> None:
    accepted, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        accepted.set()
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script) as server:
        url = server.url.replace("http://", "https://")
        sending = asyncio.create_task(client.send(get(url)), name="send")
        await within(accepted.wait())
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(sending)
        await within(gone.wait())


async def test_closing_an_unfinished_response_closes_the_connection_and_may_be_repeated(
    client: UpstreamClient,
) -> None:
    async with StreamingServer(STREAM_HEAD + b"5\r\nhello\r\n") as server:
        response = await within(client.send(get(server.url)))
        await response.aclose()
        await response.aclose()
        await within(server.client_gone.wait())
        with pytest.raises(UpstreamDisconnected):
            await within(response.read())


async def test_leaving_the_async_with_block_closes_an_unfinished_response(client: UpstreamClient) -> None:
    async with StreamingServer(STREAM_HEAD) as server:
        async with await within(client.send(get(server.url))) as response:
            assert response.status == 200
        await within(server.client_gone.wait())


async def test_closing_a_finished_response_keeps_the_connection(client: UpstreamClient) -> None:
    async with StreamingServer(answer(b"ok")) as server:
        response = await within(client.send(get(server.url)))
        await response.aclose()
        assert client.stats().idle == 1


async def test_a_response_that_is_dropped_unread_closes_its_connection(client: UpstreamClient) -> None:
    async with StreamingServer(STREAM_HEAD) as server:
        response = await within(client.send(get(server.url)))
        del response
        gc.collect()
        await within(server.client_gone.wait())


async def test_a_cancellation_that_meets_the_answer_never_harms_another_request(client: UpstreamClient) -> None:
    """The answer may arrive in the loop turn of the cancellation; its connection may then be another request's."""
    go_on = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        for _ in range(2):
            await connection.request()
            await connection.send(answer(b"ok"))
            go_on.set()
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        sending = asyncio.create_task(client.send(get(server.url)), name="first")
        await within(go_on.wait())
        while not client.stats().idle:  # noqa: ASYNC110 - the answer has been parsed, the task has not run yet
            await asyncio.sleep(0)
        sending.cancel()
        other = await within(client.send(get(server.url)))
        assert await within(other.read()) == b"ok"
        await asyncio.wait([sending])


async def test_a_cancellation_that_meets_the_head_of_a_stream_closes_the_connection(client: UpstreamClient) -> None:
    async with StreamingServer(STREAM_HEAD) as server:
        sending = asyncio.create_task(client.send(get(server.url)), name="send")
        await within(server.asked.wait())
        for _ in range(5):  # some turns before, in and after the one in which the head is parsed
            await asyncio.sleep(0)
            sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled():
            await (await sending).aclose()
        await within(server.client_gone.wait())


async def test_a_reader_that_does_not_read_stops_the_server(make_client: MakeClient) -> None:
    client = make_client(high_water_bytes=64 * 1024)
    total_bytes = 64 * 1024 * 1024
    blocked, all_sent = asyncio.Event(), asyncio.Event()
    sent_bytes = 0

    async def script(connection: ServerConnection) -> None:
        nonlocal sent_bytes
        target = (await connection.request()).target
        if target == "/echo":
            while True:
                await connection.send(answer(b"echo"))
                await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total_bytes)
        # From here drain() waits as soon as the kernel takes no more.
        connection.writer.transport.set_write_buffer_limits(high=0)
        while sent_bytes < total_bytes:
            connection.writer.write(b"x" * 65536)
            if connection.writer.transport.get_write_buffer_size():
                blocked.set()
            await connection.writer.drain()
            sent_bytes += 65536
        all_sent.set()
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        response = await within(client.send(get(f"{server.url}/big")))
        await within(blocked.wait())
        # Hundreds of turns of the same loop, in which a client that kept reading would let the server go on.
        for _ in range(300):
            echo = await within(client.send(get(f"{server.url}/echo")))
            assert await within(echo.read()) == b"echo"
        stopped_at = sent_bytes
        for _ in range(300):
            echo = await within(client.send(get(f"{server.url}/echo")))
            assert await within(echo.read()) == b"echo"
        assert sent_bytes == stopped_at < total_bytes
        assert not all_sent.is_set()
        received = 0
        async for piece in response:
            received += len(piece)
        assert received == total_bytes
        await within(all_sent.wait())
        assert client.stats().idle == 2


async def test_two_readers_of_one_response_are_a_mistake_that_is_told(client: UpstreamClient) -> None:
    async with StreamingServer(STREAM_HEAD) as server:
        response = await within(client.send(get(server.url)))
        first = asyncio.create_task(anext(response), name="first")
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await within(anext(response))
        first.cancel()
        await asyncio.wait([first])
