"""Many clients at once, and clients that do not read: answers stay apart, and nobody's memory grows without end."""

import asyncio
import io
import json
import re

import aiohttp

from tests.support.fake_upstream import FakeUpstream
from tests.support.families import FAMILIES, OPENAI, Family
from tests.support.proxy import running_proxy
from tests.support.upstream_servers import ScriptedServer, ServerConnection

PARALLEL = 200


async def test_answers_of_parallel_requests_of_all_families_are_never_mixed(client: aiohttp.ClientSession) -> None:
    request_ids: set[str] = set()

    async def ask(number: int, family: Family, url: str) -> None:
        path, body = family.request(model="demo-1", stream=number % 8 >= 4)
        body = body.replace(b'"Hi"', b'"unique-%d"' % number)
        async with client.post(url + path, data=body) as response:
            text = await response.text()
            assert response.status == 200
            request_ids.add(response.headers["X-Request-Id"])
        assert set(re.findall(r"unique-\d+", text)) == {f"unique-{number}"}

    async with running_proxy(demo=True) as proxy, asyncio.TaskGroup() as group:
        asking = [
            group.create_task(ask(number, FAMILIES[number % len(FAMILIES)], proxy.url)) for number in range(PARALLEL)
        ]
        # The proxy must not stop before everybody was served.
        await asyncio.gather(*asking)
    assert len(request_ids) == PARALLEL


async def test_a_client_that_does_not_read_stops_its_own_upstream_and_nobody_else(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "x" * 10_000}, "finish_reason": None}]}
    piece = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    total_bytes = 40_000 * len(piece)
    sent_bytes = 0

    async def script(connection: ServerConnection) -> None:
        nonlocal sent_bytes
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while sent_bytes < total_bytes:
            await connection.send(piece)
            sent_bytes += len(piece)

    async with ScriptedServer(script) as server:
        entries = [
            *OPENAI.entries(server.url, ["k"], models=[{"name": "endless"}]),
            *OPENAI.entries(upstream.url, ["k"]),
        ]
        entries[-1]["name"] = "other"
        async with running_proxy(json.dumps({"openai-compatibility": entries})) as proxy:
            path, body = OPENAI.request(model="endless", stream=True)
            reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]), limit=1024)
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.readuntil(b"\r\n\r\n")
            # As many turns of the event loop as it takes to serve others; without back-pressure all would be sent now.
            for stream in (False, True) * 50:
                path, body = OPENAI.request(stream=stream)
                async with client.post(proxy.url + path, data=body) as response:
                    assert response.status == 200
                    await response.read()
            assert 0 < sent_bytes < total_bytes / 10
            writer.transport.abort()


async def test_an_upstream_may_answer_before_it_has_read_the_whole_request(client: aiohttp.ClientSession) -> None:
    refusal = b'{"error":{"message":"too much for me"}}'

    async def script(connection: ServerConnection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(
            b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(refusal) + refusal
        )

    async with ScriptedServer(script) as server, running_proxy(OPENAI.config(server.url)) as proxy:
        path, _ = OPENAI.request()
        body = json.dumps({"model": "m1", "messages": [{"role": "user", "content": "x" * 8_000_000}]}).encode()
        async with client.post(proxy.url + path, data=io.BytesIO(body)) as response:
            assert (response.status, await response.read()) == (413, refusal)
