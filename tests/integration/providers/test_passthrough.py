"""Between a client and an upstream of the same protocol nothing is rewritten: every byte arrives as it was sent."""

import asyncio

import aiohttp
import pytest

from tests.support.fake_upstream import FakeUpstream
from tests.support.families import CLAUDE, GEMINI, MODEL, OPENAI, RESPONSES, Family
from tests.support.proxy import running_proxy
from tests.support.upstream_servers import ReceivedRequest, ScriptedServer, ServerConnection, answer, repeating

ODD_MEMBERS = (
    b'"zz" : 1,\t"a\\u0062c":"\\u00e9 \xc3\xa9 \\/ \\ud83d\\ude00",\r\n "big":123456789012345678901234567890,'
    b'"precise":0.30000000000000004000,"e":1E+2,"twice":1,"twice":2,"nested":{"model":"other","b":[null, true ,{}]}'
)
ODD_BODIES = {
    "openai": b' \n{%s , "messages":[{"role":"user","content":"Hi"}], "model" :"m1" }\n\n' % ODD_MEMBERS,
    "responses": b'{"model":"m1", "input":[ ],%s}' % ODD_MEMBERS,
    "claude": b'{"max_tokens":1,%s,"messages":[],"model":"m1"}  ' % ODD_MEMBERS,
    "gemini": b'{"contents":[],%s}' % ODD_MEMBERS,
}
ODD_ANSWER = b'\n {%s , "usage":{"total_tokens" : 3}}\n' % ODD_MEMBERS
DELTA = (
    b'{"choices":[{"index":0,"delta":{"content":"\\u00e9 \xc3\xa9 \xf0\x9f\x98\x80"},"finish_reason":null}],"zz" : 1}'
)
STREAMS = {
    "openai": b": waiting\n\ndata: " + DELTA + b"\n\ndata:" + DELTA + b"\r\n\r\nid: 7\nretry: 10\ndata: "
    b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n: bye\n\ndata: [DONE]\n\n',
    "responses": b'event: response.created\ndata: {"type":"response.created" , "zz":1.50,"response":{"id":"r"}}\n\n'
    b'event: response.future\ndata: {"big":12345678901234567890123,"type":"response.future","x":"\\u00e9 \xc3\xa9"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed", "response":{"id":"r","output":[ {}]}}\n\n',
    "claude": b'event: message_start\ndata: {"type": "message_start", "message":{"usage":{"input_tokens":3}}}\n\n'
    b'event: ping\ndata: {"type":"ping"}\n\nevent: future_event\ndata: {"type":"future_event","zz":1.50}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "gemini": b'data: {"candidates":[{"content":{"parts":[{"text":"\\u00e9 \xc3\xa9"}]}}],"zz" : 1}\r\n\r\n'
    b'data: {"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"totalTokenCount":3}}\r\n\r\n',
}


async def test_a_request_body_reaches_the_upstream_byte_for_byte(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, _ = family.request()
        async with client.post(proxy.url + path, data=ODD_BODIES[family.name]) as response:
            assert response.status == 200
    sent = await upstream.request()
    assert sent.body == ODD_BODIES[family.name]
    assert sent.path == family.upstream_path(MODEL, False)


async def test_an_answer_reaches_the_client_byte_for_byte(client: aiohttp.ClientSession, family: Family) -> None:
    async with ScriptedServer(repeating(answer(ODD_ANSWER, headers="Content-Type: text/weird\r\n"))) as server:
        async with running_proxy(family.config(server.url)) as proxy:
            path, body = family.request()
            async with client.post(proxy.url + path, data=body) as response:
                assert await response.read() == ODD_ANSWER
                assert (response.status, response.headers["Content-Type"]) == (200, "application/json")


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
async def test_a_stream_reaches_the_client_byte_for_byte_however_it_was_split(
    client: aiohttp.ClientSession, family: Family, piece_bytes: int
) -> None:
    stream = STREAMS[family.name]

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(stream), piece_bytes):
            piece = stream[start : start + piece_bytes]
            await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await connection.send(b"0\r\n\r\n")
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server, running_proxy(family.config(server.url)) as proxy:
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            assert await response.read() == stream
            assert response.headers["Content-Type"] == "text/event-stream"


async def test_oddly_framed_responses_events_keep_names_and_data_and_comments_pass(
    client: aiohttp.ClientSession,
) -> None:
    has_event, has_comment = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        await connection.send(
            b'id: 1\r\nevent: response.created\r\ndata: {"type":"response.created",\r\ndata:  "zz":1}\r\n\r\n'
        )
        await has_event.wait()
        await connection.send(b": still thinking\n\n")
        await has_comment.wait()
        await connection.send(b'data: {"type":"response.completed"}')

    async with ScriptedServer(script) as server, running_proxy(RESPONSES.config(server.url)) as proxy:
        path, body = RESPONSES.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            first = await response.content.readuntil(b"}\n\n")
            has_event.set()
            comment = await response.content.readuntil(b"\n\n")
            has_comment.set()
            rest = await response.read()
    assert first == b'event: response.created\ndata: {"type":"response.created",\ndata:  "zz":1}\n\n'
    assert comment == b": still thinking\n\n"
    assert rest == b'data: {"type":"response.completed"}\n\n'


@pytest.mark.parametrize("status", [400, 418, 429, 500, 529])
async def test_an_error_body_in_the_clients_protocol_reaches_it_byte_for_byte(
    client: aiohttp.ClientSession, family: Family, status: int
) -> None:
    body = b'{"error" : {"message":"\\u00e9 \xc3\xa9","code":%d, "big":12345678901234567890123}, "zz": 1.50}' % status
    async with ScriptedServer(repeating(answer(body, status=f"{status} Odd"))) as server:
        async with running_proxy(family.config(server.url)) as proxy:
            path, asked = family.request(stream=True)
            async with client.post(proxy.url + path, data=asked) as response:
                assert (response.status, await response.read()) == (status, body)


async def test_an_upstreams_own_kind_of_success_is_a_200(client: aiohttp.ClientSession) -> None:
    async with ScriptedServer(repeating(answer(b"{}", status="202 Accepted"))) as server:
        async with running_proxy(OPENAI.config(server.url)) as proxy:
            path, body = OPENAI.request()
            async with client.post(proxy.url + path, data=body) as response:
                assert (response.status, await response.read()) == (200, b"{}")


async def test_the_upstream_gets_the_clients_headers_but_nothing_that_is_between_client_and_proxy(
    client: aiohttp.ClientSession,
) -> None:
    received: list[ReceivedRequest] = []

    async def script(connection: ServerConnection) -> None:
        received.append(await connection.request())
        await connection.send(answer(b"{}"))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server, running_proxy(CLAUDE.config(server.url)) as proxy:
        path, body = CLAUDE.request()
        headers = {
            "Anthropic-Version": "2099-01-01",
            "Anthropic-Beta": "one,two",
            "X-Of-The-Client": "yes",
            "X-Forwarded-For": "10.0.0.1",
            "Cookie": "secret-cookie=1",
            "Connection": "keep-alive, X-Hop",
            "TE": "trailers",
        }
        async with client.post(f"{proxy.url}{path}?beta=true", data=body, headers=headers) as response:
            assert response.status == 200
    (request,) = received
    assert request.target == "/v1/messages"
    assert request.header("anthropic-version") == "2099-01-01"
    assert request.header("anthropic-beta") == "one,two"
    assert request.header("x-of-the-client") == "yes"
    assert request.header("content-type") == "application/json"
    assert request.header("host") == server.url.removeprefix("http://")
    for name in ("x-forwarded-for", "cookie", "te", "x-hop", "transfer-encoding", "authorization"):
        assert request.header(name) is None, name
    assert [value for name, value in request.headers if name.lower() == "content-length"] == [str(len(body))]


async def test_a_version_header_is_added_for_clients_that_send_none(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with running_proxy(CLAUDE.config(upstream.url)) as proxy:
        path, body = CLAUDE.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 200
    assert (await upstream.request()).headers["anthropic-version"] == "2023-06-01"


async def test_upstream_headers_stay_behind_unless_the_operator_passes_them_through(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    headers = (
        "X-Quota: 5\r\nX-Request-Id: theirs\r\nSet-Cookie: a=b\r\nServer: theirs\r\nAccess-Control-Allow-Origin: x\r\n"
    )
    async with ScriptedServer(repeating(answer(b"{}", headers=headers))) as server:
        seen = []
        for top in ({}, {"passthrough-headers": True}):
            async with running_proxy(OPENAI.config(server.url, top=top)) as proxy:
                path, body = OPENAI.request()
                async with client.post(proxy.url + path, data=body) as response:
                    assert response.status == 200
                    seen.append(response.headers)
    off, on = seen
    assert "X-Quota" not in off and "X-Upstream-Request-Id" not in off
    assert (on["X-Quota"], on["X-Upstream-Request-Id"]) == ("5", "theirs")
    for headers_seen in seen:
        assert "Set-Cookie" not in headers_seen and "Server" not in headers_seen
        assert headers_seen["X-Request-Id"] not in ("", "theirs")
        assert headers_seen["Access-Control-Allow-Origin"] == "*"


async def test_gemini_streams_as_one_array_when_the_client_asks_for_json(client: aiohttp.ClientSession) -> None:
    body = b'[{"candidates":[]}\r\n,\r\n{"candidates":[{"finishReason":"STOP"}]}\r\n]'
    targets: list[str] = []

    async def script(connection: ServerConnection) -> None:
        targets.append((await connection.request()).target)
        await connection.send(answer(body))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server, running_proxy(GEMINI.config(server.url)) as proxy:
        _, asked = GEMINI.request()
        url = f"{proxy.url}/v1beta/models/{MODEL}:streamGenerateContent?alt=json"
        async with client.post(url, data=asked) as response:
            assert await response.read() == body
            assert response.headers["Content-Type"] == "application/json"
    assert targets == [f"/v1beta/models/{MODEL}:streamGenerateContent?alt=json"]


async def test_the_compact_endpoint_of_responses_is_forwarded(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with running_proxy(RESPONSES.config(upstream.url)) as proxy:
        body = b'{"model":"m1","input":[ ],"zz" :1}'
        async with client.post(f"{proxy.url}/v1/responses/compact", data=body) as response:
            assert (await response.json())["object"] == "response.compaction"
    sent = await upstream.request()
    assert (sent.path, sent.body) == ("/v1/responses/compact", body)
