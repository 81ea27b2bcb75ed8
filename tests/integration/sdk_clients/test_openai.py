"""The OpenAI SDK through the proxy to an OpenAI-compatible provider: it must not notice that somebody is between."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.integration.sdk_clients.conftest import CLIENT_KEY
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.proxy import RunningProxy

MODEL = "gpt-test"
UPSTREAM_MODEL = "gpt-up"
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Reykjavík?"}]
WEATHER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
WEATHER_CALL = ("weather", '{"city": "Reykjavík"}')
STATUS_CLASSES = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (503, openai.InternalServerError),
]


async def test_a_plain_answer_arrives_whole(openai_client: AsyncOpenAI) -> None:
    answer = await openai_client.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == "Hello from upstream"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens == 12


async def test_the_request_id_of_the_proxy_is_the_one_the_sdk_reports(openai_client: AsyncOpenAI) -> None:
    raw = await openai_client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
    assert raw.request_id == raw.headers["x-request-id"]
    assert raw.request_id


async def test_a_stream_arrives_piece_by_piece_and_with_usage(openai_client: AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert pieces == ["Hello", "from", "upstream"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7


async def test_a_tool_call_arrives_whole(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(tool_call=WEATHER_CALL))
    answer = await openai_client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER_TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    assert (calls[0].function.name, calls[0].function.arguments) == WEATHER_CALL
    assert (await upstream.request()).json["tools"] == [WEATHER_TOOL]


async def test_a_streamed_tool_call_is_put_together_by_the_sdk(
    openai_client: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(tool_call=WEATHER_CALL))
    async with openai_client.chat.completions.stream(model=MODEL, messages=ASK, tools=[WEATHER_TOOL]) as stream:
        final: Any = await stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0].function
    assert (call.name, call.arguments) == WEATHER_CALL


async def test_embeddings_arrive(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    answer = await openai_client.embeddings.create(model="embed-test", input="a text")
    assert answer.data[0].embedding == [0.5, -0.5]
    assert answer.usage.total_tokens == 3
    assert (await upstream.request()).path == "/v1/embeddings"


async def test_legacy_completions_are_served_by_chat(openai_client: AsyncOpenAI) -> None:
    answer = await openai_client.completions.create(model=MODEL, prompt="Say hello")
    assert answer.choices[0].text == "Hello from upstream"
    stream = await openai_client.completions.create(model=MODEL, prompt="Say hello", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == "Hellofromupstream"


async def test_the_synchronous_client_works_too(proxy: RunningProxy) -> None:
    def talk() -> tuple[str | None, list[str]]:
        with OpenAI(api_key=CLIENT_KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=60) as client:
            plain = client.chat.completions.create(model=MODEL, messages=ASK).choices[0].message.content
            stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            return plain, [c.choices[0].delta.content or "" for c in stream if c.choices]

    plain, pieces = await asyncio.to_thread(talk)
    assert plain == "Hello from upstream"
    assert "".join(pieces) == "Hellofromupstream"


async def test_models_are_listed_and_retrieved_under_the_names_clients_use(openai_client: AsyncOpenAI) -> None:
    listed = {model.id: model async for model in openai_client.models.list()}
    assert set(listed) == {"gpt-test", "embed-test", "claude-test", "gemini-test"}
    assert listed[MODEL].owned_by == "acme"
    assert (await openai_client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await openai_client.models.retrieve(UPSTREAM_MODEL)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("status", "expected"), STATUS_CLASSES, ids=[str(status) for status, _ in STATUS_CLASSES])
async def test_an_upstream_error_is_the_sdks_own_exception(
    openai_client: AsyncOpenAI,
    upstream: FakeUpstream,
    status: int,
    expected: type[openai.APIStatusError],
    stream: bool,
) -> None:
    error = {"error": {"message": "the upstream's own words", "type": "made_up", "code": "xyz", "param": "p"}}
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=status, error=error))
    with pytest.raises(expected) as caught:
        await openai_client.chat.completions.create(model=MODEL, messages=ASK, stream=stream)
    assert type(caught.value) is expected
    assert caught.value.status_code == status
    assert caught.value.body == error["error"]
    assert (caught.value.code, caught.value.param, caught.value.type) == ("xyz", "p", "made_up")
    assert len(upstream.requests) == 1


async def test_a_rate_limit_keeps_its_retry_after(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=429, headers={"Retry-After": "17"}))
    with pytest.raises(openai.RateLimitError) as caught:
        await openai_client.chat.completions.create(model=MODEL, messages=ASK)
    assert caught.value.response.headers["retry-after"] == "17"


async def test_a_credential_that_rests_is_a_rate_limit_to_the_sdk(
    openai_client: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=429, headers={"Retry-After": "17"}))
    for _ in range(2):
        with pytest.raises(openai.RateLimitError) as caught:
            await openai_client.chat.completions.create(model=MODEL, messages=ASK)
    assert caught.value.code == "model_cooldown"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 17
    assert len(upstream.requests) == 1


async def test_a_wrong_client_key_is_an_authentication_error(proxy: RunningProxy, upstream: FakeUpstream) -> None:
    async with AsyncOpenAI(api_key="wrong", base_url=f"{proxy.url}/v1", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model=MODEL, messages=ASK)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    assert upstream.requests == []


async def test_a_model_nobody_serves_is_named_in_the_error(openai_client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no-such-model") as caught:
        await openai_client.chat.completions.create(model="no-such-model", messages=ASK)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("how", ["error_after_events", "cut_after_events", "end_after_events"])
async def test_a_stream_that_breaks_raises_after_the_pieces_that_came(
    openai_client: AsyncOpenAI, upstream: FakeUpstream, how: str
) -> None:
    release = asyncio.Event()
    upstream.behave(UPSTREAM_MODEL, Behaviour(**{how: 2, "release": release}))  # type: ignore[arg-type]
    stream = await openai_client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    pieces = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
    assert pieces == ["", "Hello"]
    release.set()
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert caught.value.message
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_an_error_event_before_any_piece_is_the_sdks_own_exception(
    openai_client: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
    upstream.behave(UPSTREAM_MODEL, Behaviour(error_after_events=0, error=error))
    with pytest.raises(openai.RateLimitError, match="slow down"):
        await openai_client.chat.completions.create(model=MODEL, messages=ASK, stream=True)


async def test_leaving_a_stream_reaches_the_upstream(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang_after_events=2))
    stream = await openai_client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    await anext(stream)
    await stream.close()
    async with asyncio.timeout(10):
        await (await upstream.request()).client_left.wait()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_cancelling_a_request_reaches_the_upstream(
    openai_client: AsyncOpenAI, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang=True))
    asking = asyncio.create_task(openai_client.chat.completions.create(model=MODEL, messages=ASK, stream=stream))
    request = await upstream.request()
    asking.cancel()
    async with asyncio.timeout(10):
        await request.client_left.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking
