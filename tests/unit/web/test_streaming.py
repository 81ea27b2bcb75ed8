"""Streams of every family: framing, ends, errors, keep-alives, cancellation and back-pressure."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from host.config.model import Config, Streaming
from host.pipeline.request import ClientResponse
from tests.support.web import Proxy, event, failure, raw, running

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/g:streamGenerateContent"
STREAM = {"model": "m", "stream": True}


async def blocked() -> None:
    await asyncio.Event().wait()


# -- Anthropic


async def test_SB13_an_error_in_a_messages_stream_is_an_error_event(proxy: Proxy) -> None:
    start = 'event: message_start\ndata: {"type":"message_start"}\n\n'
    proxy.gateway.streams(raw(start), failure("busy", http_status=529))
    answer = await proxy.post(MESSAGES, STREAM)
    error = '{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
    assert answer.text == f"{start}event: error\ndata: {error}\n\n"


async def test_messages_events_are_named_even_when_the_item_is_not(proxy: Proxy) -> None:
    proxy.gateway.streams(
        event('{"type":"ping"}'), event('{"type":"x"}', "content_block_stop"), event('{"type":"message_stop"}')
    )
    assert (await proxy.post(MESSAGES, STREAM)).text == (
        'event: ping\ndata: {"type":"ping"}\n\n'
        'event: content_block_stop\ndata: {"type":"x"}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


async def test_a_messages_stream_of_events_that_ends_early_gets_its_message_stop(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"type":"ping"}'))
    answer = await proxy.post(MESSAGES, STREAM)
    assert answer.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def test_forwarded_messages_bytes_without_message_stop_end_with_an_error_event(proxy: Proxy) -> None:
    proxy.gateway.streams(raw('event: ping\ndata: {"type":"ping"}\n\nevent: content_bl'), marker="message_stop")
    first, second, rest = (await proxy.post(MESSAGES, STREAM)).text.split("\n\n")
    assert first == 'event: ping\ndata: {"type":"ping"}'
    assert second.startswith("event: error\n")
    assert rest == ""


@pytest.mark.parametrize(
    "stop",
    ['event: message_stop\ndata: {"type":"message_stop"}', 'data: {"type": "message_stop"}\nevent: message_stop'],
)
async def test_nothing_follows_message_stop(proxy: Proxy, stop: str) -> None:
    stream = proxy.gateway.streams(
        raw(f"{stop}\n\nevent: ping\ndata: {{}}\n\n"), failure("late", http_status=500), marker="message_stop"
    )
    answer = await proxy.post(MESSAGES, STREAM)
    assert answer.text == f"{stop}\n\n"
    await stream.closed.wait()


# -- Gemini


async def test_gemini_streams_have_data_lines_only(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"a":\n1}', "named"), event('{"b":2}'))
    answer = await proxy.post(GEMINI, {})
    assert answer.text == 'data: {"a": 1}\n\ndata: {"b":2}\n\n'
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert proxy.gateway.request.stream is True


async def test_a_gemini_error_in_a_stream_is_geminis_own(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"a":1}'), failure("slow", http_status=429))
    answer = await proxy.post(GEMINI + "?alt=sse", {})
    assert answer.text == (
        'data: {"a":1}\n\ndata: {"error":{"code":429,"message":"slow","status":"RESOURCE_EXHAUSTED"}}\n\n'
    )


@pytest.mark.parametrize("query", ["alt=sse", "alt=SSE", "", "%24alt=sse"])
async def test_SB14_alt_sse_is_an_event_stream(proxy: Proxy, query: str) -> None:
    proxy.gateway.streams(raw('data: {"a":1}\r\n\r\n'), marker="never")
    answer = await proxy.post(f"{GEMINI}?{query}", {})
    assert answer.text == 'data: {"a":1}\r\n\r\n'
    assert proxy.gateway.request.alt == ""


@pytest.mark.parametrize("query", ["alt=json", "$alt=json"])
async def test_SB14_another_alt_passes_raw_bytes_and_makes_an_array_of_events(proxy: Proxy, query: str) -> None:
    proxy.gateway.streams(raw('[{"a"'), raw(":1}]"), marker="never")
    answer = await proxy.post(f"{GEMINI}?{query}", {})
    assert (answer.text, answer.headers["Content-Type"]) == ('[{"a":1}]', "application/json")
    assert proxy.gateway.request.alt == "json"
    proxy.gateway.streams(event('{"a":1}'), event('{"b":2}'))
    assert (await proxy.post(f"{GEMINI}?{query}", {})).json() == [{"a": 1}, {"b": 2}]
    proxy.gateway.streams(event('{"a":1}'), failure("slow", http_status=429))
    assert (await proxy.post(f"{GEMINI}?{query}", {})).json()[1]["error"]["code"] == 429
    proxy.gateway.streams()
    assert (await proxy.post(f"{GEMINI}?{query}", {})).json() == []


# -- headers and first bytes


async def test_headers_are_withheld_until_the_first_deliverable_bytes(proxy: Proxy) -> None:
    """The first raw piece holds no whole event, so the error behind it still becomes a status."""
    proxy.gateway.streams(raw('data: {"c'), failure("gone", http_status=503, retry_after_ms=1), headers={"x-up": ["1"]})
    answer = await proxy.post(CHAT, STREAM)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert answer.headers["Content-Type"] == "application/json"
    assert "x-up" not in answer.headers


async def test_passthrough_headers_of_a_stream_are_sent_but_never_ours_overwritten(proxy: Proxy) -> None:
    proxy.gateway.streams(
        event("{}"), headers={"X-Up": ["1", "2"], "Content-Type": ["text/plain"], "X-Request-Id": ["theirs"]}
    )
    answer = await proxy.post(CHAT, STREAM)
    assert answer.headers.getall("X-Up") == ["1", "2"]
    assert answer.headers.getall("Content-Type") == ["text/event-stream"]
    assert answer.headers.getall("X-Request-Id") == [proxy.gateway.request.request_id]
    assert answer.headers["X-Upstream-Request-Id"] == "theirs"


async def test_a_stream_without_items_is_an_event_stream_with_its_end_only(proxy: Proxy) -> None:
    proxy.gateway.streams()
    answer = await proxy.post(CHAT, STREAM)
    assert (answer.status, answer.text) == (200, "data: [DONE]\n\n")
    proxy.gateway.streams()
    assert (await proxy.post(GEMINI, {})).text == ""


async def test_an_HTTP_1_0_client_gets_the_stream_without_chunks(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"c":1}'))
    reader, writer = await proxy.socket()
    body = json.dumps(STREAM).encode()
    writer.write(b"POST %b HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    async with asyncio.timeout(20):
        received = await reader.read()
    writer.close()
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert rest == b'data: {"c":1}\n\ndata: [DONE]\n\n'


async def test_each_event_is_sent_when_it_is_there(proxy: Proxy) -> None:
    goes_on = asyncio.Event()

    async def wait() -> None:
        await goes_on.wait()

    proxy.gateway.streams(event('{"c":1}'), wait, event('{"c":2}'))
    async with asyncio.timeout(20):
        async with proxy.client.post(proxy.url + CHAT, json=STREAM) as response:
            assert await response.content.readuntil(b"\n\n") == b'data: {"c":1}\n\n'
            goes_on.set()
            assert await response.content.readuntil(b"\n\n") == b'data: {"c":2}\n\n'


async def test_a_large_event_is_passed_on_in_pieces_and_no_error_lands_inside_it(proxy: Proxy) -> None:
    large = "x" * 3_000_000
    proxy.gateway.streams(raw(f'data: {{"c":"{large[:1_500_000]}'), raw(large[1_500_000:]), failure(http_status=502))
    answer = await proxy.post(CHAT, STREAM)
    first, second, rest = answer.text.split("\n\n")
    assert len(first) == len('data: {"c":"') + 3_000_000
    assert second.startswith('data: {"error":')
    assert rest == ""


# -- keep-alives


@pytest.fixture
def fast_keep_alives(proxy: Proxy) -> Proxy:
    proxy.config = Config(
        streaming=Streaming(keepalive_seconds=0.02),  # type: ignore[arg-type]
        nonstream_keepalive_interval=0.02,  # type: ignore[arg-type]
    )
    return proxy


def until(seen: Callable[[], bool], changed: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        while not seen():
            changed.clear()
            await changed.wait()

    return wait


async def read_scripted(proxy: Proxy, path: str, body: Any, heard: bytes, script: Callable[..., None]) -> bytes:
    """Run a scripted stream whose gate opens once the client has read `heard`; the whole body."""
    received = bytearray()
    changed = asyncio.Event()
    script(until(lambda: heard in received, changed))
    async with asyncio.timeout(30):
        async with proxy.client.post(proxy.url + path, json=body) as response:
            assert response.status == 200
            async for piece in response.content.iter_any():
                received += piece
                changed.set()
    return bytes(received)


async def test_SB16_comments_keep_a_silent_stream_open(fast_keep_alives: Proxy) -> None:
    proxy = fast_keep_alives
    received = await read_scripted(
        proxy,
        CHAT,
        STREAM,
        b": keep-alive\n\n: keep-alive\n\n",
        lambda gate: proxy.gateway.streams(event('{"c":1}'), gate, event('{"c":2}')),
    )
    assert received.startswith(b'data: {"c":1}\n\n: keep-alive\n\n')
    assert received.endswith(b': keep-alive\n\ndata: {"c":2}\n\ndata: [DONE]\n\n')


async def test_a_keep_alive_never_lands_inside_an_event(fast_keep_alives: Proxy) -> None:
    proxy = fast_keep_alives
    received = await read_scripted(
        proxy,
        CHAT,
        STREAM,
        b": keep-alive\n\n",
        lambda gate: proxy.gateway.streams(raw('data: {"c":1}\n\ndata: {"c"'), gate, raw(":2}\n\n")),
    )
    assert [part for part in received.split(b"\n\n") if part != b": keep-alive"] == [
        b'data: {"c":1}',
        b'data: {"c":2}',
        b"data: [DONE]",
        b"",
    ]


async def test_a_gemini_stream_is_kept_open_by_a_bare_newline(fast_keep_alives: Proxy) -> None:
    proxy = fast_keep_alives
    received = await read_scripted(
        proxy, GEMINI, {}, b"\n\n\n\n", lambda gate: proxy.gateway.streams(event("{}"), gate, event("{}"))
    )
    assert received.strip(b"\n").replace(b"\n\n\n", b"") != b""
    assert set(received.split(b"\n")) == {b"data: {}", b""}


async def scripted_answer(proxy: Proxy, path: str, answer: ClientResponse | BaseException) -> bytes:
    received = bytearray()
    changed = asyncio.Event()
    proxy.gateway.answer = answer
    proxy.gateway.before = until(lambda: received.count(b"\n") >= 2, changed)
    async with asyncio.timeout(30):
        async with proxy.client.post(proxy.url + path, json={"model": "m"}) as response:
            assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
            async for piece in response.content.iter_any():
                received += piece
                changed.set()
    return bytes(received)


@pytest.mark.parametrize(
    "path", [CHAT, MESSAGES, "/v1/responses", "/v1/responses/compact", "/v1beta/models/g:generateContent"]
)
async def test_SB17_newlines_keep_a_client_waiting_for_a_whole_answer(fast_keep_alives: Proxy, path: str) -> None:
    body = await scripted_answer(fast_keep_alives, path, ClientResponse(status=200, body=b'{"late":true}'))
    assert body.startswith(b"\n\n")
    assert json.loads(body) == {"late": True}


async def test_a_text_completion_behind_newlines_has_its_own_shape(fast_keep_alives: Proxy) -> None:
    chat = b'{"id":"c","choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
    body = await scripted_answer(fast_keep_alives, "/v1/completions", ClientResponse(status=200, body=chat))
    assert json.loads(body)["choices"][0]["text"] == "hi"


async def test_what_a_plugin_answers_itself_stays_as_it_is_behind_newlines(fast_keep_alives: Proxy) -> None:
    direct = ClientResponse(status=200, body=b'{"choices":[]}', direct=True)
    assert json.loads(await scripted_answer(fast_keep_alives, "/v1/completions", direct)) == {"choices": []}


async def test_SB18_an_error_behind_newlines_is_a_body_under_the_status_already_sent(fast_keep_alives: Proxy) -> None:
    body = await scripted_answer(fast_keep_alives, CHAT, failure("slow", http_status=429))
    assert json.loads(body)["error"]["message"] == "slow"


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1beta/models/g:countTokens"])
async def test_token_counts_are_not_kept_waiting_with_newlines(fast_keep_alives: Proxy, path: str) -> None:
    beats = 0

    async def before() -> None:
        nonlocal beats
        # Another request of the same proxy shows that time enough for a keep-alive has passed.
        proxy.gateway.before = None
        beats += (await scripted_answer(proxy, CHAT, ClientResponse(status=200, body=b"{}"))).count(b"\n")
        proxy.gateway.answer = ClientResponse(status=200, body=b'{"n":1}')

    proxy = fast_keep_alives
    proxy.gateway.before = before
    answer = await proxy.post(path, {"model": "m"})
    assert beats >= 2
    assert answer.body == b'{"n":1}'


# -- clients that leave, or do not read


async def test_SB19_a_client_that_leaves_stops_the_stream(proxy: Proxy) -> None:
    stream = proxy.gateway.streams(event('{"c":1}'), blocked)
    async with asyncio.timeout(20):
        response = await proxy.client.post(proxy.url + CHAT, json=STREAM)
        await response.content.readuntil(b"\n\n")
        response.close()
        await stream.closed.wait()
    assert stream.close_reason == "client_gone"
    assert stream.cancelled


@pytest.mark.parametrize("body", [{"model": "m"}, STREAM])
async def test_a_client_that_leaves_before_the_first_byte_cancels_the_call(proxy: Proxy, body: Any) -> None:
    called = asyncio.Event()

    async def before() -> None:
        called.set()
        await blocked()

    proxy.gateway.before = before
    _, writer = await proxy.socket()
    sent = json.dumps(body).encode()
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(sent), sent))
    async with asyncio.timeout(20):
        await called.wait()
        writer.transport.abort()
        await proxy.gateway.cancelled.wait()


async def test_a_client_that_does_not_read_stops_the_producer(proxy: Proxy) -> None:
    produced = 0
    stream = proxy.gateway.streams(*[event({"c": "x" * 50_000}) for _ in range(2000)])
    _, writer = await proxy.socket()
    sent = json.dumps(STREAM).encode()
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(sent), sent))
    async with asyncio.timeout(30):
        # The producer never waits by itself: it only stands still while the proxy does not take more.
        while stream.yielded == 0 or produced != stream.yielded:
            produced = stream.yielded
            for _ in range(50):
                await proxy.get("/healthz")
        assert 0 < stream.yielded < 2000
        writer.transport.abort()
        await stream.closed.wait()
    assert stream.close_reason == "client_gone"


async def test_a_server_that_stops_ends_open_streams_with_an_error_event() -> None:
    async with running() as proxy:
        stream = proxy.gateway.streams(event('{"c":1}'), blocked)
        reader, writer = await proxy.socket()
        sent = json.dumps(STREAM).encode()
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(sent), sent))
        async with asyncio.timeout(20):
            await reader.readuntil(b'data: {"c":1}\n\n')
    async with asyncio.timeout(20):
        rest = await reader.read()
        await stream.closed.wait()
    writer.close()
    assert b'"code":"shutdown"' in rest
    assert rest.endswith(b"0\r\n\r\n")


async def test_requests_on_one_connection_are_answered_in_order(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"c":1}'))
    reader, writer = await proxy.socket()
    sent = json.dumps(STREAM).encode()
    one = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(sent), sent)
    writer.write(one + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        received = await reader.read()
    writer.close()
    assert received.index(b"0\r\n\r\n") < received.index(b'{"status":"ok"}')
