"""The gateway against a real HTTP provider: bytes, secrets, failover, cancellation, reload."""

import asyncio
import json

import pytest

from host.pipeline.request import ClientRequest
from pluginabi.errors import PluginError
from tests.integration.pipeline.conftest import config_for
from tests.support.fake_upstream import Behaviour
from tests.support.pipeline import client_request, raw_bytes, read_all

BODY = b'{"model" : "m", "messages":[{"role":"user","content":"\\u00e4 \xc3\xa4"}], "n":1.0e0}'


def chat(body: bytes = BODY, **fields: object) -> ClientRequest:
    return client_request(body, **fields)


async def test_the_clients_bytes_reach_the_provider_unchanged_with_the_credentials_secret_only(rig):
    r = await rig()
    response = await r.gateway.execute(
        chat(headers={"Authorization": "Bearer client-secret", "X-Api-Key": "client-secret", "Cookie": "client-secret"})
    )
    (seen,) = r.upstream.requests
    assert seen.body == BODY
    assert seen.headers["Authorization"] == "Bearer key-a"
    assert "client-secret" not in repr(seen.headers)
    assert json.loads(response.body)["choices"][0]["message"]["content"] == "Hello from upstream"
    assert [(it.outcome, it.usage.total_tokens) for it in r.completed] == [("succeeded", 12)]


@pytest.mark.parametrize(
    ("protocol", "model", "header", "key"),
    [
        ("openai-response", "m", "Authorization", "Bearer key-a"),
        ("claude", "claude-new", "x-api-key", "key-claude"),
        ("gemini", "gemini-new", "x-goog-api-key", "key-gemini"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_each_protocol_reaches_its_provider_and_is_accounted(rig, protocol, model, header, key, stream):
    r = await rig()
    document = {"contents": []} if protocol == "gemini" else {"model": model, "stream": stream}
    request = client_request(document, model=model, protocol=protocol, stream=stream)
    if stream:
        opened = await r.gateway.execute_stream(request)
        assert b"Hello" in raw_bytes(await read_all(opened))
    else:
        assert b"Hello from upstream" in (await r.gateway.execute(request)).body
    (seen,) = r.upstream.requests
    assert seen.headers[header] == key
    assert [(it.outcome, it.usage.output_tokens) for it in r.completed] == [("succeeded", 7)]


async def test_an_upstream_error_keeps_status_body_and_delay(rig):
    r = await rig()
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
    r.upstream.behave("m", Behaviour(status=429, error=error, headers={"Retry-After": "7"}))
    with pytest.raises(PluginError) as raised:
        await r.gateway.execute(chat())
    body = raised.value.body
    assert (body.http_status, body.code, body.retry_after_ms) == (429, "rate_limit_exceeded", 7000)
    assert body.body.value() == error
    assert body.body_protocol == "openai"


async def test_a_key_that_is_refused_is_replaced_by_the_next_and_rests(rig, upstream):
    r = await rig(config_for(upstream, keys=("bad", "good")))
    upstream.behave_for_key("bad", Behaviour(status=401))
    for _ in range(4):
        assert (await r.gateway.execute(chat())).status == 200
    keys = [seen.headers["Authorization"] for seen in upstream.requests]
    assert keys.count("Bearer bad") <= 1
    assert len(keys) == 4 + keys.count("Bearer bad")


async def test_a_stream_reaches_the_client_with_the_providers_very_bytes(rig):
    r = await rig()
    stream = await r.gateway.execute_stream(chat(b'{"model":"m","stream":true}', stream=True))
    data = raw_bytes(await read_all(stream))
    assert data.endswith(b"data: [DONE]\n\n")
    assert stream.terminal_seen
    assert [it.usage.total_tokens for it in r.completed] == [12]


@pytest.mark.parametrize("how", ["cut_after_events", "end_after_events"])
@pytest.mark.parametrize(("protocol", "model"), [("openai", "m"), ("claude", "claude-new"), ("openai-response", "m")])
async def test_a_provider_that_stops_in_the_middle_is_an_in_band_error(rig, how, protocol, model):
    r = await rig()
    r.upstream.behave(model, Behaviour(**{how: 2}))
    stream = await r.gateway.execute_stream(
        client_request({"model": model, "stream": True}, model=model, protocol=protocol, stream=True)
    )
    with pytest.raises(PluginError) as raised:
        await read_all(stream)
    assert raised.value.http_status == 502
    assert [it.outcome for it in r.completed] == ["failed"]


async def test_a_provider_that_stops_before_the_first_event_is_tried_with_the_next_key(rig, upstream):
    r = await rig(config_for(upstream, keys=("bad", "good")))
    upstream.behave_for_key("bad", Behaviour(end_after_events=0))
    for _ in range(2):
        stream = await r.gateway.execute_stream(chat(b'{"model":"m","stream":true}', stream=True))
        assert raw_bytes(await read_all(stream)).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_closes_the_providers_connection(rig):
    r = await rig()
    r.upstream.behave("m", Behaviour(hang_after_events=2))
    stream = await r.gateway.execute_stream(chat(b'{"model":"m","stream":true}', stream=True))
    await anext(aiter(stream))
    await stream.aclose()
    seen = await r.upstream.request()
    async with asyncio.timeout(20):
        await seen.client_left.wait()
    assert [it.outcome for it in r.completed] == ["canceled"]


async def test_a_cancelled_request_closes_the_providers_connection(rig):
    r = await rig()
    r.upstream.behave("m", Behaviour(hang=True))
    task = asyncio.create_task(r.gateway.execute(chat()))
    seen = await r.upstream.request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        await seen.client_left.wait()


async def test_a_provider_that_is_not_there_is_502_and_no_credential_rests(rig, upstream):
    url, upstream.url = upstream.url, "http://127.0.0.1:9"
    r = await rig(config_for(upstream))
    for _ in range(2):
        with pytest.raises(PluginError) as raised:
            await r.gateway.execute(chat())
        assert raised.value.http_status == 502
    assert r.gateway.state.pool.book.empty
    upstream.url = url


async def test_a_reload_in_the_middle_of_a_stream_does_not_touch_it(rig, upstream):
    r = await rig()
    stream = await r.gateway.execute_stream(chat(b'{"model":"m","stream":true}', stream=True))
    await anext(aiter(stream))
    await r.apply(config_for(upstream, keys=("other",)))
    await read_all(stream)
    await r.gateway.execute(chat())
    assert [seen.headers["Authorization"] for seen in upstream.requests] == ["Bearer key-a", "Bearer other"]
    assert [it.outcome for it in r.completed] == ["succeeded", "succeeded"]
