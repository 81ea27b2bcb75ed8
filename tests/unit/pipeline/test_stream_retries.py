"""Retries of a stream before its first byte."""

import pytest

from host.config.model import Streaming
from host.errors import RequestError
from host.runtime.handle import Reply
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    client_request,
    compat_config,
    executor,
    raw_bytes,
    read_all,
    world,
)
from tests.support.streams import CHAT, chat_chunk, consume, sse, watcher


def failing_then(*answers: object, **fields: object) -> tuple[World, FakePlugin]:
    left = list(answers)
    plugin = executor(stream=lambda _: left.pop(0))
    return world(plugin, config=compat_config(**fields)), plugin


def upstream_error(status: int, **fields: object) -> FakeItems:
    return FakeItems([PluginError(ErrorBody(message="x", http_status=status, **fields))])


async def test_SB_01_SB_02_P128_a_bootstrap_retry_serves_the_stream_with_the_headers_of_the_attempt_that_worked():
    for passthrough, expected in ((True, {"x-up": ("2",)}), (False, {})):
        first = Reply(result=ExecutorResponse(headers={"x-up": ["1"]}), items=upstream_error(502, scope="connection"))
        second = Reply(result=ExecutorResponse(headers={"x-up": ["2"]}), items=FakeItems([CHAT]))
        w, plugin = failing_then(
            first, second, streaming=Streaming(bootstrap_retries=1), passthrough_headers=passthrough
        )
        stream = await w.gateway.execute_stream(client_request(stream=True))
        assert raw_bytes(await read_all(stream)) == CHAT
        assert dict(stream.headers) == expected
        assert len(plugin.seen("executor.execute_stream")) == 2


async def test_SB_03_P128_after_the_first_byte_nothing_is_retried():
    failing = FakeItems([sse(chat_chunk("partial")), PluginError("x", http_status=502)])
    w, plugin = failing_then(failing, streaming=Streaming(bootstrap_retries=1))
    out, error = await consume(w, "openai")
    assert (out, error.http_status) == (sse(chat_chunk("partial")), 502)
    assert len(plugin.seen("executor.execute_stream")) == 1


async def test_SB_04_P129_a_retry_without_any_credential_left_names_providers_and_model():
    w, plugin = failing_then(upstream_error(401), streaming=Streaming(bootstrap_retries=1))
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute_stream(client_request(stream=True))
    body = refused.value.body
    assert (body.http_status, body.code) == (503, "auth_unavailable")
    assert "(providers=openai-compatible-acme, model=m)" in body.message
    assert len(plugin.seen("executor.execute_stream")) == 1


async def test_a_retry_without_any_credential_left_yields_an_original_failure_of_500_or_above():
    w, _ = failing_then(upstream_error(500, code="boom"), streaming=Streaming(bootstrap_retries=1))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute_stream(client_request(stream=True))
    assert raised.value.code == "boom"


@pytest.mark.parametrize("status", [400, 404, 418])
async def test_F29_P128_other_statuses_are_not_retried(status):
    w, plugin = failing_then(upstream_error(status), streaming=Streaming(bootstrap_retries=2))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute_stream(client_request(stream=True))
    assert raised.value.http_status == status
    assert len(plugin.seen("executor.execute_stream")) == 1


async def test_a_bootstrap_retry_asks_router_and_before_interceptor_no_second_time():
    hooks = {
        "model.route": lambda _: None,
        "request.intercept_before": lambda _: None,
        "request.intercept_after": lambda _: None,
    }
    hook = FakePlugin(id="hook", hooks=hooks)
    answers = [upstream_error(502, scope="connection"), FakeItems([CHAT])]
    w = world(
        executor(stream=lambda _: answers.pop(0)),
        hook,
        config=compat_config(streaming=Streaming(bootstrap_retries=1)),
    )
    await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    assert [len(hook.seen(method)) for method in hooks] == [1, 1, 2]


async def test_SB_06_the_last_attempt_is_the_one_whose_credential_is_told():
    seen = watcher()
    answers = [upstream_error(503), FakeItems([CHAT])]
    plugin = executor(stream=lambda _: answers.pop(0))
    w = world(plugin, seen, config=compat_config(keys=("k1", "k2")))
    await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    await w.settled()
    second = plugin.seen("executor.execute_stream")[1]
    (complete,) = seen.seen("request.complete")
    assert complete.metadata["selected_auth_id"] == second.metadata["selected_auth_id"]
    assert [it.failed for it in seen.seen("usage.handle")] == [True, False]
