"""response.intercept_stream_chunk, and normalisers and translators of streams."""

from typing import Any

import msgspec
import pytest

from host.config.model import Config, ModelEntry, ProviderKey
from host.errors import RequestError
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.common import StreamEnd
from pluginabi.payloads.intercept import StreamInterceptResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.translate import RequestTranslateResponse, ResponseTranslateResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    as_item,
    client_request,
    compat_config,
    executor,
    read_all,
    streaming,
    world,
)

CHUNK = "response.intercept_stream_chunk"


def events(*texts: str) -> list[dict[str, str]]:
    return [{"t": text} for text in texts]


def texts(items: Any) -> list[str]:
    return [item.body.value()["t"] for item in items]


def hook(name: str, answer: Any = None, *, priority: int = 0, **fields: Any) -> FakePlugin:
    respond = answer if callable(answer) else lambda _: answer
    return FakePlugin(id=name, hooks={CHUNK: respond}, priority=priority, **fields)


def world_of(*plugins: FakePlugin, script: Any = None, headers: Any = None, **config: Any) -> World:
    upstream = executor(stream=streaming(*(script or events("a", "b", "c")), headers=headers))
    return world(upstream, *plugins, config=compat_config(**config))


async def stream_of(w: World, **fields: Any) -> tuple[Any, list[StreamItem]]:
    stream = await w.gateway.execute_stream(client_request(stream=True, **fields))
    return stream, await read_all(stream)


def keep(items: Any) -> StreamInterceptResponse:
    return StreamInterceptResponse(items=tuple(as_item(item) for item in items))


async def test_I54_a_stream_of_three_items_is_a_header_call_three_calls_and_a_last_one():
    p1 = hook("p1")
    _, items = await stream_of(world_of(p1))
    assert texts(items) == ["a", "b", "c"]
    assert [(seen.index, seen.last, len(seen.items)) for seen in p1.seen(CHUNK)] == [
        (-1, False, 0),
        (0, False, 1),
        (1, False, 1),
        (2, False, 1),
        (3, True, 0),
    ]


async def test_IN_07_an_item_can_be_changed_and_dropped_and_the_history_holds_what_was_delivered():
    def respond(seen):
        if not seen.items:
            return None
        (text,) = texts(seen.items)
        return keep([]) if text == "drop" else keep(events(text + "+plugin"))

    p1 = hook("p1", respond, inputs={CHUNK: ["body", "history"]})
    _, items = await stream_of(world_of(p1, script=events("first", "drop", "second")))
    assert texts(items) == ["first+plugin", "second+plugin"]
    assert [seen.index for seen in p1.seen(CHUNK)][:4] == [-1, 0, 1, 2]
    assert texts(p1.seen(CHUNK)[3].history) == ["first+plugin"]


async def test_I56_a_dropped_item_is_not_shown_to_the_next_hook_and_header_changes_count():
    p1 = hook(
        "p1", lambda s: StreamInterceptResponse(items=(), headers={"X-P1": ["1"]}) if s.items else None, priority=1
    )
    p2 = hook("p2")
    stream, items = await stream_of(world_of(p1, p2, script=events("a")))
    assert (items, dict(stream.headers)) == ([], {"x-p1": ("1",)})
    assert [(seen.index, seen.last) for seen in p2.seen(CHUNK)] == [(-1, False), (1, True)]


async def test_I57_headers_count_until_the_first_delivered_item_and_later_changes_are_seen_by_hooks_only():
    def respond(seen):
        return StreamInterceptResponse(headers={f"x-{seen.index}": ["1"]})

    p1 = hook("p1", respond)
    stream, _ = await stream_of(world_of(p1))
    assert dict(stream.headers) == {"x--1": ("1",), "x-0": ("1",)}
    assert set(p1.seen(CHUNK)[3].headers) == {"x--1", "x-0", "x-1"}


async def test_I58_IN_08_one_item_is_one_header_call_and_one_call_that_sees_the_header():
    p1 = hook("p1", lambda seen: StreamInterceptResponse(headers={"x-h": ["1"]}) if seen.index < 0 else None)
    w = world_of(p1, script=events("a"))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    assert [seen.index for seen in p1.seen(CHUNK)] == [-1, 0]
    assert dict(p1.seen(CHUNK)[1].headers) == {"x-h": ("1",)}
    await read_all(stream)


async def test_I53_hooks_see_the_upstreams_headers_and_the_client_only_what_they_changed():
    p1 = hook("p1", lambda seen: StreamInterceptResponse(headers={"X-Mod": ["1"]}))
    stream, _ = await stream_of(world_of(p1, headers={"x-up": ["1"]}))
    assert dict(p1.seen(CHUNK)[0].headers) == {"x-up": ["1"]}
    assert dict(stream.headers) == {"x-mod": ("1",)}


async def test_I59_IN_10_the_history_is_bounded_by_64_items():
    p1 = hook("p1", inputs={CHUNK: ["body", "history"]})
    await stream_of(world_of(p1, script=events(*map(str, range(74)))))
    history = p1.seen(CHUNK)[-1].history
    assert (len(history), texts(history)[0]) == (64, "10")


async def test_the_history_is_bounded_by_one_mebibyte():
    p1 = hook("p1", inputs={CHUNK: ["body", "history"]})
    await stream_of(world_of(p1, script=events(*[letter * 400_000 for letter in "abcd"])))
    assert [text[0] for text in texts(p1.seen(CHUNK)[-1].history)] == ["c", "d"]


async def test_a_hook_that_does_not_ask_for_history_gets_none():
    p1 = hook("p1")
    await stream_of(world_of(p1))
    assert all(seen.history == () for seen in p1.seen(CHUNK))


async def test_IN_09_I61_without_hooks_nothing_is_added():
    stream, items = await stream_of(world_of())
    assert (texts(items), dict(stream.headers)) == (["a", "b", "c"], {})


async def test_request_bodies_come_with_the_header_call_only_and_only_for_those_who_ask():
    p1, p2 = hook("p1", inputs={CHUNK: ["body", "request_body", "client_body"]}), hook("p2")
    await stream_of(world_of(p1, p2))
    first, *later = p1.seen(CHUNK)
    assert (first.request_body.value()["model"], first.client_body.value()["model"]) == ("m", "m")
    assert all(seen.request_body is msgspec.UNSET and seen.client_body is msgspec.UNSET for seen in later)
    assert all(seen.request_body is msgspec.UNSET for seen in p2.seen(CHUNK))


async def test_an_item_can_become_several():
    p1 = hook("p1", lambda seen: keep(events(*(text * n for text in texts(seen.items) for n in (1, 2)))))
    _, items = await stream_of(world_of(p1, script=events("a", "b")))
    assert texts(items) == ["a", "aa", "b", "bb"]


async def test_what_was_held_back_is_flushed_by_the_last_call_and_passes_the_next_hook():
    held: list[str] = []

    def hold(seen):
        held.extend(texts(seen.items))
        return keep(events("".join(held))) if seen.last else keep([])

    p2 = hook("p2", lambda seen: keep(events(*(text.upper() for text in texts(seen.items)))))
    _, items = await stream_of(world_of(hook("p1", hold, priority=1), p2))
    assert texts(items) == ["ABC"]


async def test_a_hook_may_end_the_stream_with_an_error_in_band():
    def respond(seen):
        stop = StreamEnd(error=ErrorBody(message="blocked", code="blocked", http_status=451))
        return StreamInterceptResponse(end=stop) if seen.index == 1 else None

    given = FakeItems(events("a", "b", "c"))
    w = world(executor(stream=lambda _: given), hook("p1", respond))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    got = []
    with pytest.raises(PluginError) as raised:
        async for item in stream:
            got.append(item)
    await stream.aclose("failed")
    assert (texts(got), raised.value.http_status) == (["a", "b"], 451)
    assert given.closed
    assert [it.outcome for it in w.completed] == ["failed"]
    assert w.gateway.state.pool.book.empty


async def test_a_hook_that_ends_the_stream_at_once_makes_it_an_ordinary_error():
    stop = StreamInterceptResponse(items=(), end=StreamEnd(error=ErrorBody(message="no", http_status=451)))
    p1 = hook("p1", lambda seen: stop if seen.items else None)
    with pytest.raises(PluginError) as raised:
        await world_of(p1).gateway.execute_stream(client_request(stream=True))
    assert raised.value.http_status == 451


CLAUDE_START = {"type": "message_start", "message": {"id": "m"}}
BLOCK_START = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
BLOCK_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
CHAT_CHUNK = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": None}]}
RESPONSE_CREATED = {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "status": "in_progress"}}


@pytest.mark.parametrize(
    ("protocol", "script", "closing"),
    [
        (
            "claude",
            [CLAUDE_START, BLOCK_START, BLOCK_DELTA],
            ["content_block_stop", "message_delta", "message_stop"],
        ),
        ("openai", [CHAT_CHUNK], ["stop"]),
        ("openai-response", [RESPONSE_CREATED], ["response.incomplete"]),
        ("gemini", [{"candidates": []}], ["STOP"]),
    ],
)
async def test_a_hook_that_ends_the_stream_without_an_error_ends_it_in_the_clients_protocol(protocol, script, closing):
    last = len(script) - 1
    p1 = hook("p1", lambda seen: StreamInterceptResponse(end=StreamEnd()) if seen.index == last else None)
    config = Config(claude_api_key=[ProviderKey(api_key="k", models=[ModelEntry(name="m")])])
    upstream = executor(stream=streaming(*script, {"type": "more"}), providers=["claude"])
    stream = await world(upstream, p1, config=config).gateway.execute_stream(
        client_request(protocol=protocol, stream=True)
    )
    made = (await read_all(stream))[len(script) :]

    def shape(document: dict[str, Any]) -> Any:
        if "choices" in document:
            return document["choices"][0]["finish_reason"]
        return document["candidates"][0]["finishReason"] if "candidates" in document else document["type"]

    assert [shape(item.body.value()) for item in made] == closing
    assert stream.terminal_seen is (protocol in ("claude", "openai-response"))


async def test_a_failing_hook_is_skipped_and_the_items_pass_unchanged():
    p1 = hook("p1", PluginError("bug", http_status=500))
    _, items = await stream_of(world_of(p1))
    assert texts(items) == ["a", "b", "c"]


@pytest.mark.parametrize(("fails_at", "delivered"), [(1, ["a"]), (-1, [])])
async def test_a_failing_guard_ends_the_stream_in_band_after_the_first_byte_and_with_a_status_before_it(
    fails_at, delivered
):
    def respond(seen):
        return PluginError("no", http_status=451) if seen.index == fails_at else None

    w = world_of(hook("p1", respond, on_error={CHUNK: "fail"}))
    got: list[StreamItem] = []
    with pytest.raises(PluginError) as raised:
        stream = await w.gateway.execute_stream(client_request(stream=True))
        try:
            async for item in stream:
                got.append(item)
        finally:
            await stream.aclose("failed")
    assert raised.value.http_status == 451
    assert texts(got) == delivered
    assert w.gateway.state.pool.book.empty


async def test_I52_an_error_before_the_first_item_makes_no_header_call():
    p1 = hook("p1")
    with pytest.raises(PluginError):
        await world_of(p1, script=[PluginError("no", http_status=400)]).gateway.execute_stream(
            client_request(stream=True)
        )
    assert p1.seen(CHUNK) == []


async def test_IN_12_a_stream_whose_items_are_all_dropped_ends_cleanly_after_one_header_call():
    p1 = hook("p1", lambda seen: keep([]))
    w = world_of(p1)
    _, items = await stream_of(w)
    assert items == []
    assert [seen.index for seen in p1.seen(CHUNK)].count(-1) == 1
    assert [it.outcome for it in w.completed] == ["succeeded"]


async def test_a_dropped_first_item_does_not_count_as_the_first_byte_so_failover_is_still_possible():
    p1 = hook("p1", lambda seen: keep([]) if texts(seen.items) == ["drop"] else None)
    scripts = [FakeItems([*events("drop"), PluginError("x", http_status=503)]), FakeItems(events("a"))]
    w = world(executor(stream=lambda _: scripts.pop(0)), p1, config=compat_config(keys=("k1", "k2")))
    _, items = await stream_of(w)
    assert texts(items) == ["a"]
    assert [seen.index for seen in p1.seen(CHUNK)].count(-1) == 2


async def test_raw_bytes_are_re_framed_into_events_for_hooks_and_done_is_not_an_item():
    p1 = hook("p1")
    raw = b'data: {"t":"a"}\n\ndata: {"t":"b","finish_reason":"stop"}\n\ndata: [DONE]\n\n'
    stream, items = await stream_of(world_of(p1, script=[raw[:20], raw[20:]]))
    assert texts(items) == ["a", "b"]
    assert stream.terminal_seen is False


async def test_events_that_arrived_together_are_one_call():
    p1 = hook("p1")
    raw = b'data: {"t":"a"}\n\ndata: {"t":"b","finish_reason":"stop"}\n\n'
    await stream_of(world_of(p1, script=[raw]))
    assert [(seen.index, texts(seen.items)) for seen in p1.seen(CHUNK)] == [(-1, []), (0, ["a", "b"]), (2, [])]


async def test_I51_what_a_hook_sees_cannot_be_changed():
    def respond(seen):
        with pytest.raises((TypeError, AttributeError)):
            seen.items[0] = None
        with pytest.raises(TypeError):
            seen.metadata["x"] = 1
        with pytest.raises(AttributeError):
            seen.index = 5

    _, items = await stream_of(world_of(hook("p1", respond), script=events("a")))
    assert texts(items) == ["a"]


def translating(**hooks: Any) -> World:
    """A Claude upstream asked by a chat client, with translator hooks."""
    names = {name.replace("__", "."): answer for name, answer in hooks.items()}
    formats = ExecutorRegistration(input_formats=["claude"], output_formats=["claude"])
    upstream = executor(stream=streaming(CLAUDE_START, {"type": "message_stop"}), executor=formats)
    return world(upstream, FakePlugin(id="translator", hooks=names))


async def test_a_stream_is_translated_normalised_and_finished_in_the_clients_protocol():
    def translate(seen):
        made = [{"from": item.body.value()["type"], "finish_reason": "stop"} for item in seen.items]
        return ResponseTranslateResponse(items=tuple(as_item(document) for document in made))

    w = translating(
        request__translate=lambda seen: RequestTranslateResponse(body=Body.from_value({"translated": True})),
        response__translate=translate,
        response__normalize_before=lambda seen: ResponseTranslateResponse(items=seen.items[:1]),
        response__normalize_after=lambda seen: None,
    )
    stream, items = await stream_of(w)
    assert [item.body.value()["from"] for item in items] == ["message_start", "message_stop"]
    assert stream.terminal_seen is False


async def test_X81_X82_what_a_translator_swallows_is_not_forwarded_and_it_is_told_of_the_end_once():
    seen = []

    def translate(request):
        seen.append(([item.body.value().get("type") for item in request.items], request.last))
        made = [{"finish_reason": "stop"}] if request.last else []
        return ResponseTranslateResponse(items=tuple(as_item(document) for document in made))

    w = translating(
        request__translate=lambda seen: RequestTranslateResponse(body=Body.from_value({})),
        response__translate=translate,
    )
    _, items = await stream_of(w)
    assert [item.body.value() for item in items] == [{"finish_reason": "stop"}]
    # The end marker of a protocol is not an item: the last call says it, whatever the protocol.
    assert seen == [(["message_start"], False), (["message_stop"], False), ([], True)]


async def test_a_stream_that_no_translator_takes_is_refused_with_both_names():
    w = translating(
        request__translate=lambda seen: RequestTranslateResponse(body=Body.from_value({})),
        response__translate=lambda seen: None,
    )
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute_stream(client_request(stream=True))
    assert refused.value.body.code == "unsupported_protocol_pair"


@pytest.mark.parametrize("given", [Body(text='{"t":"a"}'), Body.exact(b'{"t":"a"}')], ids=["text", "exact"])
async def test_a_hook_sees_json_as_json_in_whatever_form_it_was_given(given):
    first = hook("p1", lambda seen: StreamInterceptResponse(items=[StreamItem(body=given)]) if seen.items else None)
    second = hook("p2", priority=-1)
    await stream_of(world_of(first, second, script=[StreamItem(body=given)]))
    for plugin in (first, second):
        (item,) = [item for seen in plugin.seen(CHUNK) for item in seen.items]
        assert item.body == Body(json=msgspec.Raw(b'{"t":"a"}'))
