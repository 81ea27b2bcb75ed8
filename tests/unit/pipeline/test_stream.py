"""Streams without hooks: pass-through, the first item, and truncation at any byte."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.pipeline.scan import MAX_FRAME_BYTES
from host.runtime.handle import Reply
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import (
    FakeItems,
    client_request,
    compat_config,
    executor,
    raw_bytes,
    read_all,
    streaming,
    world,
)
from tests.support.streams import CHAT, CLAUDE, STREAMS, chat_chunk, consume, one_stream, sse, watcher


@pytest.mark.parametrize("protocol", STREAMS)
async def test_a_raw_stream_passes_unchanged_in_every_protocol_and_its_usage_is_read(protocol):
    seen = watcher()
    w = one_stream(protocol, FakeItems([STREAMS[protocol]]), seen)
    out, error = await consume(w, protocol)
    await w.settled()
    assert (out, error) == (STREAMS[protocol], None)
    (used,) = seen.seen("usage.handle")
    assert (used.usage.input_tokens, used.usage.output_tokens) == (3, 5)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("protocol", STREAMS)
@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_split_of_the_bytes_does_not_matter(protocol, cuts):
    async def run():
        return await consume(one_stream(protocol, FakeItems(pieces_of(STREAMS[protocol], cuts))), protocol)

    assert asyncio.run(run()) == (STREAMS[protocol], None)


@pytest.mark.parametrize("protocol", STREAMS)
def test_a_stream_cut_at_any_byte_ends_once_and_is_settled_once(protocol):
    data = STREAMS[protocol]
    blocks = [block + b"\n\n" for block in data.split(b"\n\n") if block]
    boundaries = {sum(map(len, blocks[:count])) for count in range(len(blocks) + 1)}

    async def cut_at(offset: int) -> None:
        seen = watcher()
        w = one_stream(protocol, FakeItems([data[:offset]] if offset else []), seen)
        out, error = await consume(w, protocol)
        await w.settled()
        # A client never gets a part of an event.
        assert len(out.removesuffix(b"\n\n")) + 2 in {*boundaries, 2}
        if error is not None:
            assert error.code in ("upstream_stream_truncated", "empty_stream")
            assert error.http_status == 502
        (complete,) = seen.seen("request.complete")
        assert len(seen.seen("usage.handle")) == 1
        assert complete.outcome == ("succeeded" if error is None else "failed")

    async def run() -> None:
        for offset in range(len(data) + 1):
            await cut_at(offset)

    asyncio.run(run())


@pytest.mark.parametrize("protocol", STREAMS)
@pytest.mark.parametrize(
    "failure",
    [
        PluginError("slow", http_status=429, code="slow_down"),
        PluginTransportError("upstream", "executor.execute_stream", phase="exit", cause="gone"),
    ],
    ids=["error", "crash"],
)
def test_an_upstream_that_fails_at_any_byte_ends_the_stream_with_its_status(protocol, failure):
    data = STREAMS[protocol]

    async def run() -> None:
        for offset in range(0, len(data), 7):
            seen = watcher()
            w = one_stream(protocol, FakeItems([data[:offset], failure] if offset else [failure]), seen)
            _, error = await consume(w, protocol)
            await w.settled()
            assert error is failure
            assert len(seen.seen("usage.handle")) == 1
            assert [it.outcome for it in seen.seen("request.complete")] == ["failed"]

    asyncio.run(run())


@pytest.mark.parametrize("protocol", ["openai", "claude", "openai-response"])
async def test_what_follows_the_end_marker_is_discarded_even_an_error(protocol):
    items = FakeItems([STREAMS[protocol], b"data: more\n\n", PluginError("late", http_status=500)])
    seen = watcher()
    w = one_stream(protocol, items, seen)
    assert await consume(w, protocol) == (STREAMS[protocol], None)
    await w.settled()
    assert [it.outcome for it in seen.seen("request.complete")] == ["succeeded"]


async def test_an_end_marker_inside_of_text_is_not_one():
    text = sse(chat_chunk("data: [DONE]\n\ndata: [DONE]"), chat_chunk("x", "stop"))
    items = FakeItems([text, b"data: [DONE]\n\n"])
    w = one_stream("openai", items)
    assert await consume(w, "openai") == (text + b"data: [DONE]\n\n", None)


async def test_a_chat_stream_may_end_after_its_finish_reason_without_done():
    data = sse(chat_chunk("x", "stop"))
    w = one_stream("openai", FakeItems([data]))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    assert raw_bytes(await read_all(stream)) == data
    assert stream.terminal_seen is False


async def test_a_last_event_without_its_blank_line_is_completed():
    w = one_stream("openai", FakeItems([CHAT.removesuffix(b"\n\n")]))
    assert await consume(w, "openai") == (CHAT, None)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
async def test_other_line_ends_are_understood(line_end):
    data = CLAUDE.replace(b"\n", line_end)
    assert await consume(one_stream("claude", FakeItems([data])), "claude") == (data, None)


async def test_comments_before_the_first_event_do_not_commit_anything():
    failing = FakeItems([b": ping\n\n", b": ping\n\n", PluginError("busy", http_status=503)])
    answers = [failing, FakeItems([b": ping\n\n", CHAT])]
    plugin = executor(stream=lambda _: answers.pop(0))
    w = world(plugin, config=compat_config(keys=("k1", "k2")))
    assert await consume(w, "openai") == (b": ping\n\n" + CHAT, None)


async def test_progress_is_never_forwarded():
    items = FakeItems([StreamItem(), CHAT, StreamItem()])
    assert await consume(one_stream("openai", items), "openai") == (CHAT, None)


@pytest.mark.parametrize("script", [[], [StreamItem()], [b""], [b": only a comment\n\n"]])
async def test_I58_LS_06_a_stream_without_any_payload_is_an_error_before_the_first_byte(script):
    with pytest.raises(PluginError) as raised:
        await one_stream("openai", FakeItems(script)).gateway.execute_stream(client_request(stream=True))
    assert (raised.value.code, raised.value.http_status) == ("empty_stream", 502)


async def test_events_pass_as_they_are_and_the_end_of_the_plugin_is_the_end():
    chunk = chat_chunk("x")
    stream = await one_stream("openai", FakeItems([chunk])).gateway.execute_stream(client_request(stream=True))
    items = await read_all(stream)
    assert [item.body.value() for item in items] == [chunk]
    assert stream.terminal_seen is False


async def test_LS_02_a_responses_stream_of_events_needs_its_terminal_event():
    delta = {"type": "response.output_text.delta", "delta": "x"}
    w = one_stream("openai-response", FakeItems([delta]))
    stream = await w.gateway.execute_stream(client_request(protocol="openai-response", stream=True))
    got = []
    with pytest.raises(PluginError) as raised:
        async for item in stream:
            got.append(item.event)
    await stream.aclose("failed")
    assert got == ["response.output_text.delta"]
    assert (raised.value.http_status, raised.value.code) == (502, "upstream_stream_truncated")
    assert "response.output_text.delta" in str(raised.value)


async def test_SB_07_LS_05_invalid_json_in_a_responses_event_is_502_and_nothing_is_delivered():
    broken = b'event: response.completed\ndata: {"type"\n\n'
    with pytest.raises(PluginError) as raised:
        await one_stream("openai-response", FakeItems([broken])).gateway.execute_stream(
            client_request(protocol="openai-response", stream=True)
        )
    assert raised.value.http_status == 502
    assert "(len=7)" in str(raised.value)


async def test_SB_08_LS_04_an_event_may_arrive_line_by_line_and_over_several_data_lines():
    lines = [b"event: response.completed\n", b'data: {"type":\n', b'data: "response.completed"}\n', b"\n"]
    w = one_stream("openai-response", FakeItems(lines))
    assert await consume(w, "openai-response") == (b"".join(lines), None)


async def test_LS_03_a_malformed_event_after_a_valid_one_is_an_in_band_502():
    valid = b'data: {"type":"response.created"}\n\n'
    out, error = await consume(one_stream("openai-response", FakeItems([valid, b"data: {nope\n\n"])), "openai-response")
    assert (out, error.http_status, error.code) == (valid, 502, "upstream_stream_invalid")


@pytest.mark.parametrize(
    ("protocol", "event", "status"),
    [
        ("openai", {"error": {"message": "x", "type": "server_error", "code": None}}, 500),
        ("openai", {"error": {"message": "x", "code": 429}}, 429),
        ("claude", {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, 529),
        ("gemini", {"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}, 503),
        ("openai-response", {"type": "error", "code": "rate_limit_exceeded", "message": "x"}, 429),
    ],
)
async def test_an_error_as_the_first_event_is_an_ordinary_error_with_its_status(protocol, event, status):
    w = one_stream(protocol, FakeItems([sse(event)]))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute_stream(client_request(protocol=protocol, stream=True))
    assert (raised.value.http_status, raised.value.body.origin) == (status, "upstream")


async def test_LS_07_an_in_band_error_after_the_first_byte_is_passed_on_ends_the_stream_and_counts_as_failed():
    failed = {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "x"}}}
    created = {"type": "response.created"}
    data = sse(created, failed, names=True)
    seen = watcher()
    items = FakeItems([sse(created, names=True), sse(failed, names=True), b"data: {}\n\n"])
    w = one_stream("openai-response", items, seen)
    assert await consume(w, "openai-response") == (data, None)
    await w.settled()
    (complete,) = seen.seen("request.complete")
    assert (complete.outcome, complete.error.code) == ("failed", "server_error")


async def test_a_frame_that_never_ends_is_cut_off():
    huge = [b"data: " + b"x" * (MAX_FRAME_BYTES // 2)] * 3
    with pytest.raises(PluginError) as raised:
        await one_stream("openai", FakeItems(huge)).gateway.execute_stream(client_request(stream=True))
    assert raised.value.code == "upstream_stream_invalid"


async def test_an_executor_that_opens_no_stream_is_a_protocol_error():
    plugin = executor(stream=lambda _: ExecutorResponse())
    with pytest.raises(PluginError) as raised:
        await world(plugin).gateway.execute_stream(client_request(stream=True))
    assert (raised.value.http_status, raised.value.code) == (502, "plugin_protocol_error")


async def test_a_stream_that_opens_with_an_error_status_is_that_error_and_is_closed():
    items = FakeItems([CHAT])
    plugin = executor(stream=lambda _: Reply(result=ExecutorResponse(status=503), items=items))
    with pytest.raises(PluginError) as raised:
        await world(plugin).gateway.execute_stream(client_request(stream=True))
    assert raised.value.http_status == 503
    assert items.closed


async def test_the_usage_that_the_executor_reports_wins_over_the_scanned_one():
    reported = Usage(input_tokens=30)
    w = world(executor(stream=streaming(CHAT, usage=reported)))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    await read_all(stream)
    assert stream.usage == reported


@pytest.mark.parametrize("protocol", STREAMS)
async def test_SB_19_a_client_that_leaves_closes_the_upstream_and_settles_as_canceled(protocol):
    seen, more = watcher(), asyncio.Event()
    first = STREAMS[protocol].split(b"\n\n")[0] + b"\n\n"
    items = FakeItems([first, more])
    w = one_stream(protocol, items, seen)
    stream = await w.gateway.execute_stream(client_request(protocol=protocol, stream=True))
    assert (await anext(aiter(stream))).raw.to_bytes() == first
    await stream.aclose()
    await stream.aclose()
    await w.settled()
    assert items.closed == ["client_gone"]
    assert [(it.outcome, it.status) for it in seen.seen("request.complete")] == [("canceled", 0)]
    assert len(seen.seen("usage.handle")) == 1
    assert w.gateway.state.pool.book.empty


async def test_a_client_that_leaves_while_waiting_for_an_item_closes_the_upstream():
    more = asyncio.Event()
    items = FakeItems([sse(chat_chunk("x")), more])
    w = one_stream("openai", items)
    stream = await w.gateway.execute_stream(client_request(stream=True))
    await anext(aiter(stream))
    waiting = asyncio.create_task(anext(aiter(stream)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.aclose()
    assert items.closed == ["client_gone"]
    assert [it.outcome for it in w.completed] == ["canceled"]


async def test_a_client_that_leaves_before_the_first_item_closes_the_upstream():
    seen, entered = watcher(), asyncio.Event()
    items = FakeItems([asyncio.Event()])

    def open_stream(_):
        entered.set()
        return items

    w = world(executor(stream=open_stream), seen)
    task = asyncio.create_task(w.gateway.execute_stream(client_request(stream=True)))
    async with asyncio.timeout(5):
        await entered.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await w.settled()
    assert items.closed
    assert [it.outcome for it in seen.seen("request.complete")] == ["canceled"]


async def test_a_client_that_leaves_after_the_end_marker_got_everything():
    never = asyncio.Event()
    w = one_stream("openai", FakeItems([CHAT, never]))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    await anext(aiter(stream))
    await stream.aclose()
    assert [it.outcome for it in w.completed] == ["succeeded"]


async def test_text_items_of_a_process_reach_the_client_as_bytes():
    items = FakeItems([StreamItem(raw=Body(text=CHAT.decode()))])
    assert await consume(one_stream("openai", items), "openai") == (CHAT, None)
