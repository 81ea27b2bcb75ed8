"""The flow without hooks: bytes, errors, rotation, settlement."""

import asyncio

import msgspec
import pytest

from host.errors import RequestError
from host.pipeline.request import Operation
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    answering,
    client_request,
    compat_config,
    executor,
    raw_bytes,
    read_all,
    streaming,
    world,
)

CHAT_CHUNKS = (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b"data: [DONE]\n\n")


async def test_a_body_that_nobody_rewrites_reaches_the_executor_byte_for_byte():
    plugin = executor(answering())
    body = b'{"model" : "m", "n":1.0e2, "s":"\\u00e4",\n "unknown":[1 ,2]}'
    response = await world(plugin).gateway.execute(client_request(body))
    assert plugin.seen("executor.execute")[0].body.to_bytes() == body
    assert (response.status, response.body) == (200, b'{"id":"x"}')


async def test_an_answer_keeps_its_status_and_brings_no_upstream_headers_without_passthrough():
    plugin = executor(lambda _: ExecutorResponse(status=201, headers={"x-up": ["1"]}))
    response = await world(plugin).gateway.execute(client_request())
    assert (response.status, dict(response.headers), response.body) == (201, {}, b"")


async def test_MR_05_an_unknown_model_is_refused_by_name():
    with pytest.raises(RequestError) as refused:
        await world(executor(answering())).gateway.execute(client_request(model="unknown-model(8192)"))
    assert (refused.value.body.http_status, refused.value.body.code) == (400, "model_not_found")
    assert "unknown-model" in refused.value.body.message


async def test_a_request_without_a_model_is_told_so():
    with pytest.raises(RequestError) as refused:
        await world(executor(answering())).gateway.execute(client_request(model=""))
    assert (refused.value.body.http_status, refused.value.body.code) == (400, "model_not_found")
    assert refused.value.body.message == "the request names no model"


async def test_a_plugin_error_reaches_the_client_with_every_field():
    error = PluginError("teapot", code="short_and_stout", http_status=418, details={"k": 1}, headers={"x-q": ["0"]})
    with pytest.raises(PluginError) as raised:
        await world(executor(lambda _: error)).gateway.execute(client_request())
    assert (raised.value.body.http_status, raised.value.body.code) == (418, "short_and_stout")
    assert raised.value.body.details == {"k": 1}


async def test_round_robin_takes_the_credentials_in_order_of_their_ids():
    plugin = executor(answering())
    gateway = world(plugin, config=compat_config(keys=("k1", "k2", "k3"))).gateway
    for _ in range(4):
        await gateway.execute(client_request())
    used = [request.credential.handle for request in plugin.seen("executor.execute")]
    ids = {c.handle: c.id for c in gateway.state.pool.credentials}
    assert [ids[handle] for handle in used] == [*sorted(ids.values()), min(ids.values())]


async def test_P126_a_401_rests_the_credential_half_an_hour_and_the_next_one_answers():
    calls = []

    def execute(request):
        calls.append(request.credential.handle)
        return PluginError("no", http_status=401) if len(calls) == 1 else ExecutorResponse()

    w = world(executor(execute), config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    assert len(set(calls)) == 2
    for _ in range(3):
        await w.gateway.execute(client_request())
    assert calls[0] not in calls[1:]
    w.clock.now_s += 30 * 60 + 1
    for _ in range(2):
        await w.gateway.execute(client_request())
    assert calls[0] in calls[-2:]


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_P127_a_request_fault_stops_at_once_and_marks_nobody(status):
    plugin = executor(lambda _: PluginError("bad", http_status=status))
    w = world(plugin, config=compat_config(keys=("k1", "k2")))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert len(plugin.seen("executor.execute")) == 1
    assert w.gateway.state.pool.book.empty


@pytest.mark.parametrize("phase", ["exit", "wait", "decode", "send", "stream"])
async def test_a_call_that_a_broken_plugin_may_have_begun_is_never_replayed(phase):
    plugin = executor(lambda _: PluginTransportError("upstream", "executor.execute", phase=phase, cause="gone"))
    w = world(plugin, config=compat_config(keys=("k1", "k2")))
    with pytest.raises(PluginTransportError):
        await w.gateway.execute(client_request())
    assert len(plugin.seen("executor.execute")) == 1
    assert w.gateway.state.pool.book.empty


async def test_all_credentials_cooling_is_429_with_the_seconds_to_wait():
    w = world(executor(lambda _: PluginError("slow", http_status=429, retry_after_ms=90_000)))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    w.clock.now_s += 29.5
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request())
    body = refused.value.body
    assert (body.http_status, body.code, body.retry_after_ms) == (429, "model_cooldown", 61_000)
    error = body.body.value()["error"]
    assert (error["reset_seconds"], error["reset_time"], error["provider"]) == (61, "1m1s", "openai-compatible-acme")


async def test_D10_credentials_out_of_order_are_503_and_name_provider_and_model():
    w = world(executor(lambda _: PluginError("no", http_status=401)))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request())
    body = refused.value.body
    assert (body.http_status, body.code) == (503, "auth_unavailable")
    assert "(providers=openai-compatible-acme, model=m)" in body.message


async def test_the_upstreams_error_is_worth_more_than_that_nobody_is_left():
    plugin = executor(lambda _: PluginError("boom", http_status=500, code="upstream_boom"))
    with pytest.raises(PluginError) as raised:
        await world(plugin, config=compat_config(keys=("k1", "k2"))).gateway.execute(client_request())
    assert raised.value.code == "upstream_boom"
    assert len(plugin.seen("executor.execute")) == 2


async def test_a_count_request_goes_to_count_tokens():
    plugin = executor(answering(), count=answering({"input_tokens": 3}))
    response = await world(plugin).gateway.execute(client_request(operation=Operation.COUNT))
    assert msgspec.json.decode(response.body) == {"input_tokens": 3}


async def test_an_executor_status_that_is_an_error_is_an_error():
    plugin = executor(lambda _: ExecutorResponse(status=429))
    with pytest.raises(PluginError) as raised:
        await world(plugin).gateway.execute(client_request())
    assert raised.value.http_status == 429


async def test_raw_stream_items_pass_as_the_very_objects_the_executor_gave():
    given = FakeItems(CHAT_CHUNKS)
    plugin = executor(stream=lambda _: given)
    stream = await world(plugin).gateway.execute_stream(client_request(stream=True))
    items = await read_all(stream)
    assert raw_bytes(items) == b"".join(CHAT_CHUNKS)
    assert stream.terminal_seen


async def test_usage_and_completion_are_told_exactly_once_after_a_stream():
    usage = Usage(input_tokens=3, output_tokens=5)
    watcher = FakePlugin(id="watcher", hooks={"usage.handle": lambda _: None, "request.complete": lambda _: None})
    w = world(executor(stream=streaming(*CHAT_CHUNKS, usage=usage)), watcher)
    await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    await w.settled()
    assert [seen.usage for seen in watcher.seen("usage.handle")] == [usage]
    assert [(seen.outcome, seen.status) for seen in watcher.seen("request.complete")] == [("succeeded", 200)]


async def test_cancelling_a_waiting_request_settles_it_as_canceled():
    entered, never = asyncio.Event(), asyncio.Event()

    async def execute(_):
        entered.set()
        await never.wait()

    watcher = FakePlugin(id="watcher", hooks={"request.complete": lambda _: None})
    w = world(executor(execute), watcher)
    task = asyncio.create_task(w.gateway.execute(client_request()))
    async with asyncio.timeout(5):
        await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await w.settled()
    assert [seen.outcome for seen in watcher.seen("request.complete")] == ["canceled"]
    assert w.gateway.state.pool.book.empty


async def test_F26_a_stream_that_fails_before_its_first_byte_is_served_by_the_next_credential():
    scripts = [FakeItems([PluginError("busy", http_status=503)]), FakeItems(CHAT_CHUNKS)]
    plugin = executor(stream=lambda _: scripts[len(plugin.seen("executor.execute_stream")) - 1])
    w = world(plugin, config=compat_config(keys=("k1", "k2")))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    assert raw_bytes(await read_all(stream)) == b"".join(CHAT_CHUNKS)


async def test_a_failure_after_the_first_byte_is_raised_in_the_middle_with_its_status():
    failing = FakeItems([CHAT_CHUNKS[0], PluginError("slow", http_status=429)])
    w = world(executor(stream=lambda _: failing), config=compat_config(keys=("k1", "k2")))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    got = []
    with pytest.raises(PluginError) as raised:
        async for item in stream:
            got.append(item)
    await stream.aclose()
    assert (len(got), raised.value.http_status) == (1, 429)
