"""Retries of a stream before its first byte."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

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
from tests.support.streams import CHAT, CLAUDE, RESPONSES, STREAMS, chat_chunk, config_for, consume, sse, watcher


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


OPENINGS = {
    "openai": sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}),
    "claude": b"\n\n".join(CLAUDE.split(b"\n\n")[:2]) + b"\n\n",
    "openai-response": RESPONSES.split(b"\n\n")[0] + b"\n\n",
}
OVERLOADS = {
    "openai": sse({"error": {"message": "busy", "type": "server_error"}}),
    "claude": sse({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, names=True),
    "openai-response": sse({"type": "error", "code": "server_error", "message": "busy"}, names=True),
}


def overloaded_then_fine(protocol: str, opening: list[bytes], **fields: object) -> tuple[World, list[FakeItems]]:
    """Two keys: the first upstream opens the stream and then reports an overload."""
    given: list[FakeItems] = []

    def answer(_: object) -> FakeItems:
        script = [STREAMS[protocol]] if given else [*opening, OVERLOADS[protocol]]
        given.append(FakeItems(script))
        return given[-1]

    config = config_for(protocol, **fields)
    if config.claude_api_key:
        keys = [*config.claude_api_key, replace(config.claude_api_key[0], api_key="k2")]
        config = replace(config, claude_api_key=keys)
    else:
        config = compat_config(keys=("k1", "k2"), **fields)  # type: ignore[arg-type]
    return world(executor(stream=answer, providers=["claude", "openai-compatible-*"]), config=config), given


@pytest.mark.parametrize("protocol", OPENINGS)
@pytest.mark.parametrize("pieces", ["together", "apart"])
async def test_12_10_an_overload_after_the_opening_events_is_served_by_another_credential(protocol, pieces):
    opening = OPENINGS[protocol]
    parts = [opening] if pieces == "together" else [it + b"\n\n" for it in opening.split(b"\n\n") if it]
    w, given = overloaded_then_fine(protocol, parts, streaming=Streaming(buffer_handshake=True))
    assert await consume(w, protocol) == (STREAMS[protocol], None)
    assert len(given) == 2


@pytest.mark.parametrize("protocol", OPENINGS)
async def test_12_10_opening_events_are_not_held_back_unless_that_is_wanted(protocol):
    w, given = overloaded_then_fine(protocol, [OPENINGS[protocol]])
    out, _ = await consume(w, protocol)
    assert out.startswith(OPENINGS[protocol])
    assert len(given) == 1


async def test_12_10_only_so_much_is_held_back_and_nothing_of_it_is_lost():
    ping = b'event: ping\ndata: {"type":"ping","pad":"' + b"x" * 1000 + b'"}\n\n'
    pings = [ping] * 100
    w, given = overloaded_then_fine("claude", pings, streaming=Streaming(buffer_handshake=True))
    out, _ = await consume(w, "claude")
    assert out == b"".join(pings) + OVERLOADS["claude"]
    assert len(given) == 1


@pytest.mark.parametrize("kind", [{}, [], None, 7])
async def test_12_10_an_event_of_a_type_that_is_no_name_is_not_held_back(kind: Any):
    odd = sse({"type": kind})
    w, _ = overloaded_then_fine("claude", [odd], streaming=Streaming(buffer_handshake=True))
    assert (await consume(w, "claude"))[0].startswith(odd)


SHORT_CHAT = [
    sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}),
    sse(chat_chunk("whole answer", "stop"), b"data: [DONE]\n\n"),
]


async def test_12_10_the_end_is_seen_when_it_is_handed_out_and_not_while_it_is_held_back():
    config = compat_config(streaming=Streaming(buffer_handshake=True))
    w = world(executor(stream=lambda _: FakeItems(SHORT_CHAT)), config=config)
    stream = await w.gateway.execute_stream(client_request(stream=True))
    seen = [(item.raw.to_bytes(), stream.terminal_seen) async for item in stream]
    assert seen == [(SHORT_CHAT[0], False), (SHORT_CHAT[1], True)]


async def test_12_10_a_client_that_leaves_before_it_got_what_was_held_back_has_no_whole_answer():
    config = compat_config(streaming=Streaming(buffer_handshake=True))
    w = world(executor(stream=lambda _: FakeItems(SHORT_CHAT)), config=config)
    stream = await w.gateway.execute_stream(client_request(stream=True))
    await anext(stream)
    await stream.aclose("client_gone")
    assert [done.outcome for done in w.completed] == ["canceled"]


class Silence(asyncio.Event):
    """Never ends; tells when somebody waits for its end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def wait(self) -> Any:
        self.begun.set()
        return await super().wait()


async def test_12_10_a_client_that_leaves_while_the_opening_is_held_back_closes_the_upstream():
    silence = Silence()
    items = FakeItems([OPENINGS["claude"], silence])
    config = config_for("claude", streaming=Streaming(buffer_handshake=True))
    w = world(executor(stream=lambda _: items, providers=["claude"]), config=config)
    request = asyncio.create_task(w.gateway.execute_stream(client_request(stream=True, protocol="claude")))
    async with asyncio.timeout(5):
        await silence.begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert items.closed
    assert w.gateway.state.pool.book.empty
