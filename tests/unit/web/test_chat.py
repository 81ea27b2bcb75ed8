"""POST /v1/chat/completions over a real socket."""

from typing import Any

import pytest

from host.pipeline.request import ClientResponse
from tests.support.web import Proxy, event, failure, raw

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}


async def test_a_whole_answer_arrives_with_its_bytes_and_our_request_id(proxy: Proxy) -> None:
    proxy.gateway.answer = ClientResponse(status=200, body=b'{"id": 1.0,\n "x":"\\u00e4"}')
    answer = await proxy.post("/v1/chat/completions", ASK)
    assert (answer.status, answer.body) == (200, b'{"id": 1.0,\n "x":"\\u00e4"}')
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-Id"] == proxy.gateway.request.request_id
    assert proxy.gateway.request.model == "m"
    assert proxy.gateway.request.endpoint == "POST /v1/chat/completions"


async def test_SB11_chunks_are_framed_and_the_end_is_marked(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"c":1}'), event('{"c":2}'))
    answer = await proxy.post("/v1/chat/completions", STREAM)
    assert answer.text == 'data: {"c":1}\n\ndata: {"c":2}\n\ndata: [DONE]\n\n'
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-cache"


async def test_SB12_an_error_after_the_first_chunk_is_written_in_band_without_DONE(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"c":1}'), failure("slow", http_status=429))
    answer = await proxy.post("/v1/chat/completions", STREAM)
    assert answer.status == 200
    assert answer.text == (
        'data: {"c":1}\n\ndata: {"error":{"message":"slow","type":"rate_limit_error","code":"rate_limit_exceeded"}}\n\n'
    )


@pytest.mark.parametrize("steps", [[failure("bad", http_status=400)], []], ids=["SB-09", "LS-01"])
async def test_an_error_before_the_first_chunk_is_a_status(proxy: Proxy, steps: list[Any]) -> None:
    if steps:
        proxy.gateway.streams(*steps)
    else:
        proxy.gateway.stream = failure("bad", http_status=400)
    answer = await proxy.post("/v1/chat/completions", STREAM)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_raw_bytes_pass_unchanged_and_nothing_follows_their_end_marker(proxy: Proxy) -> None:
    stream = proxy.gateway.streams(
        raw(': hello\n\ndata: {"c"'), raw(":1}\r\n\r\ndata: [DO"), raw("NE]\n\ndata: late\n\n"), raw("data: later\n\n")
    )
    answer = await proxy.post("/v1/chat/completions", STREAM)
    assert answer.text == ': hello\n\ndata: {"c":1}\r\n\r\ndata: [DONE]\n\n'
    await stream.closed.wait()
    assert stream.close_reason == "finished"


async def test_raw_bytes_cut_inside_an_event_end_with_an_error_event(proxy: Proxy) -> None:
    proxy.gateway.streams(raw('data: {"c":1}\n\ndata: {"c'))
    answer = await proxy.post("/v1/chat/completions", STREAM)
    first, second, rest = answer.text.split("\n\n")
    assert first == 'data: {"c":1}'
    assert '"upstream_stream_broken"' in second
    assert rest == ""


async def test_CH05_only_the_literal_true_streams(proxy: Proxy) -> None:
    await proxy.post("/v1/chat/completions", {**ASK, "stream": "true"})
    assert proxy.gateway.request.stream is False
