"""Gemini streams without `alt=sse`: one JSON array, in whatever pieces it arrives."""

import json
from typing import Any

import pytest

from host.config.model import Config, ModelEntry, ProviderKey
from host.pipeline.request import ClientStream
from pluginabi.errors import AbiError
from pluginabi.payloads.intercept import StreamInterceptResponse
from tests.support.pipeline import FakeItems, FakePlugin, World, client_request, executor, world

ELEMENTS: list[dict[str, Any]] = [
    {"candidates": [{"content": {"parts": [{"text": 'a "{['}]}}], "usageMetadata": {"promptTokenCount": 3}},
    {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 5}},
]
FAILURE = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}


def pieces(document: Any, size: int = 7) -> list[bytes]:
    """As Google writes it: over many lines; and cut anywhere."""
    data = json.dumps(document, indent=2).encode()
    return [data[at : at + size] for at in range(0, len(data), size)]


def config(keys: int = 1) -> Config:
    return Config(gemini_api_key=[ProviderKey(api_key=f"k{n}", models=[ModelEntry(name="m")]) for n in range(keys)])


def gateway(*scripts: list[bytes], hooks: bool = False) -> World:
    left = [FakeItems(script) for script in scripts]
    upstream = executor(stream=lambda _: left.pop(0), providers=["gemini"])
    watcher = FakePlugin(id="watcher", hooks={"usage.handle": lambda _: None})
    listener = FakePlugin(id="listener", hooks={"response.intercept_stream_chunk": lambda _: StreamInterceptResponse()})
    plugins = [upstream, watcher, *([listener] if hooks else [])]
    return world(*plugins, config=config(len(scripts)))


async def opened(w: World) -> ClientStream:
    stream = await w.gateway.execute_stream(client_request(protocol="gemini", stream=True, alt="json"))
    assert not hasattr(stream, "body")
    return stream  # type: ignore[return-value]


async def test_the_bytes_of_an_array_pass_as_they_are_and_its_usage_counts():
    w = gateway(pieces(ELEMENTS))
    stream = await opened(w)
    data = b"".join([item.raw.to_bytes() async for item in stream])  # type: ignore[union-attr]
    assert json.loads(data) == ELEMENTS
    (done,) = w.completed
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens) == (3, 5)


async def test_stream_hooks_see_the_elements_of_an_array_as_events():
    w = gateway(pieces(ELEMENTS), hooks=True)
    stream = await opened(w)
    events = [json.loads(item.body.to_bytes()) async for item in stream]  # type: ignore[union-attr]
    assert events == ELEMENTS
    (done,) = w.completed
    assert (done.outcome, done.usage.output_tokens) == ("succeeded", 5)  # type: ignore[union-attr]


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("document", [[FAILURE], FAILURE])
async def test_an_array_that_begins_with_an_error_is_an_ordinary_failure(hooks: bool, document: Any):
    w = gateway(pieces(document), pieces(ELEMENTS), hooks=hooks)
    await opened(w)
    assert [attempt["status"] for attempt in w.decisions("attempt")] == [503]


@pytest.mark.parametrize("hooks", [False, True])
async def test_an_array_that_breaks_off_in_an_element_is_truncated(hooks: bool):
    w = gateway(pieces(ELEMENTS)[:-4], hooks=hooks)
    stream = await opened(w)
    with pytest.raises(AbiError) as raised:
        async for _ in stream:
            pass
    assert raised.value.code == "upstream_stream_truncated"  # type: ignore[attr-defined]


async def test_an_answer_in_another_form_passes_as_it_is():
    data = b"\x00\xff{[ not JSON"
    w = gateway([data])
    stream = await w.gateway.execute_stream(client_request(protocol="gemini", stream=True, alt="proto"))
    assert b"".join([item.raw.to_bytes() async for item in stream]) == data  # type: ignore[union-attr]
