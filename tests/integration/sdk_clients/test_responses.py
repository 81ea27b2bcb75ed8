"""The OpenAI SDK's Responses API through the proxy to a provider that speaks it."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.fake_upstream import Behaviour, FakeUpstream

MODEL = "gpt-test"
UPSTREAM_MODEL = "gpt-up"
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = ("weather", '{"city": "Reykjavík"}')


async def test_a_plain_response_arrives_whole(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    response = await openai_client.responses.create(model=MODEL, input="Hello")
    assert response.output_text == "Hello from upstream"
    assert response.usage is not None and response.usage.total_tokens == 12
    assert (await upstream.request()).path == "/v1/responses"


async def test_a_stream_brings_every_event_in_order(openai_client: AsyncOpenAI) -> None:
    stream = await openai_client.responses.create(model=MODEL, input="Hello", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.output_item.added",
        *["response.output_text.delta"] * 3,
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_a_function_call_arrives_plain_and_streamed(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(tool_call=CALL))
    response: Any = await openai_client.responses.create(model=MODEL, input="Weather?", tools=[TOOL])
    assert (response.output[0].name, response.output[0].arguments) == CALL
    stream = await openai_client.responses.create(model=MODEL, input="Weather?", tools=[TOOL], stream=True)
    last: Any = [event async for event in stream][-1]
    assert (last.response.output[0].name, last.response.output[0].arguments) == CALL


async def test_input_is_forwarded_as_the_sdk_wrote_it(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    await openai_client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "Hi"}], instructions="Be brief", max_output_tokens=9
    )
    sent = (await upstream.request()).json
    assert sent == {
        "model": UPSTREAM_MODEL,
        "input": [{"role": "user", "content": "Hi"}],
        "instructions": "Be brief",
        "max_output_tokens": 9,
    }


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_upstream_error_is_the_sdks_own_exception(
    openai_client: AsyncOpenAI, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=429, headers={"Retry-After": "3"}))
    with pytest.raises(openai.RateLimitError) as caught:
        await openai_client.responses.create(model=MODEL, input="Hello", stream=stream)
    assert caught.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize("how", ["error_after_events", "cut_after_events", "end_after_events"])
async def test_a_stream_that_breaks_ends_with_one_error_event(
    openai_client: AsyncOpenAI, upstream: FakeUpstream, how: str
) -> None:
    release = asyncio.Event()
    upstream.behave(UPSTREAM_MODEL, Behaviour(**{how: 2, "release": release}))  # type: ignore[arg-type]
    stream = await openai_client.responses.create(model=MODEL, input="Hello", stream=True)
    assert [(await anext(stream)).type for _ in range(2)] == ["response.created", "response.output_item.added"]
    release.set()
    rest: list[Any] = [event async for event in stream]
    assert [event.type for event in rest] == ["error"]
    assert rest[0].message and rest[0].code


async def test_leaving_a_stream_reaches_the_upstream(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang_after_events=2))
    stream = await openai_client.responses.create(model=MODEL, input="Hello", stream=True)
    await anext(stream)
    await stream.close()
    async with asyncio.timeout(10):
        await (await upstream.request()).client_left.wait()
