"""The Anthropic SDK through the proxy to the Messages API."""

import asyncio
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.integration.sdk_clients.conftest import CLIENT_KEY
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.proxy import RunningProxy

MODEL = "claude-test"
UPSTREAM_MODEL = "claude-up"
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Reykjavík?"}]
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = ("weather", '{"city": "Reykjavík"}')
STATUS_CLASSES = [
    (400, anthropic.BadRequestError),
    (401, anthropic.AuthenticationError),
    (403, anthropic.PermissionDeniedError),
    (404, anthropic.NotFoundError),
    (413, anthropic.RequestTooLargeError),
    (422, anthropic.UnprocessableEntityError),
    (429, anthropic.RateLimitError),
    (500, anthropic.InternalServerError),
    (503, anthropic.ServiceUnavailableError),
    (529, anthropic.OverloadedError),
]


async def test_a_plain_answer_arrives_whole(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    message: Any = await claude_client.messages.create(model=MODEL, max_tokens=50, messages=ASK)
    assert message.content[0].text == "Hello from upstream"
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 7)
    request = await upstream.request()
    assert request.path == "/v1/messages"
    assert request.json == {"model": UPSTREAM_MODEL, "max_tokens": 50, "messages": ASK}
    assert request.headers["anthropic-version"]


async def test_a_stream_is_put_together_by_the_sdk(claude_client: AsyncAnthropic) -> None:
    async with claude_client.messages.stream(model=MODEL, max_tokens=50, messages=ASK) as stream:
        pieces = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert pieces == ["Hello", "from", "upstream"]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 7)


async def test_a_raw_stream_brings_every_event_in_order(claude_client: AsyncAnthropic) -> None:
    stream = await claude_client.messages.create(model=MODEL, max_tokens=50, messages=ASK, stream=True)
    assert [event.type async for event in stream] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_a_tool_call_arrives_plain_and_streamed(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(tool_call=CALL))
    message: Any = await claude_client.messages.create(model=MODEL, max_tokens=50, messages=ASK, tools=[TOOL])
    assert (message.content[0].name, message.content[0].input) == ("weather", {"city": "Reykjavík"})
    async with claude_client.messages.stream(model=MODEL, max_tokens=50, messages=ASK, tools=[TOOL]) as stream:
        final: Any = await stream.get_final_message()
    assert (final.content[0].name, final.content[0].input) == ("weather", {"city": "Reykjavík"})
    assert final.stop_reason == "tool_use"


async def test_tokens_are_counted(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    counted = await claude_client.messages.count_tokens(model=MODEL, messages=ASK)
    assert counted.input_tokens == 11
    request = await upstream.request()
    assert (request.path, request.json["model"]) == ("/v1/messages/count_tokens", UPSTREAM_MODEL)


async def test_beta_headers_of_the_client_reach_the_upstream(
    claude_client: AsyncAnthropic, upstream: FakeUpstream
) -> None:
    await claude_client.beta.messages.create(model=MODEL, max_tokens=5, messages=ASK, betas=["files-api-2025-04-14"])
    assert (await upstream.request()).headers["anthropic-beta"] == "files-api-2025-04-14"


async def test_the_synchronous_client_works_too(proxy: RunningProxy) -> None:
    def talk() -> tuple[str, str]:
        with Anthropic(api_key=CLIENT_KEY, base_url=proxy.url, max_retries=0, timeout=60) as client:
            plain: Any = client.messages.create(model=MODEL, max_tokens=50, messages=ASK)
            with client.messages.stream(model=MODEL, max_tokens=50, messages=ASK) as stream:
                return plain.content[0].text, stream.get_final_text()

    assert await asyncio.to_thread(talk) == ("Hello from upstream", "Hellofromupstream")


async def test_models_are_listed_and_retrieved(claude_client: AsyncAnthropic) -> None:
    listed = {model.id: model async for model in claude_client.models.list()}
    assert set(listed) == {"gpt-test", "embed-test", "claude-test", "gemini-test"}
    assert listed[MODEL].type == "model"
    assert (await claude_client.models.retrieve(MODEL)).display_name == MODEL
    with pytest.raises(anthropic.NotFoundError):
        await claude_client.models.retrieve("no-such-model")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("status", "expected"), STATUS_CLASSES, ids=[str(status) for status, _ in STATUS_CLASSES])
async def test_an_upstream_error_is_the_sdks_own_exception(
    claude_client: AsyncAnthropic,
    upstream: FakeUpstream,
    status: int,
    expected: type[anthropic.APIStatusError],
    stream: bool,
) -> None:
    error = {"type": "error", "error": {"type": "made_up_error", "message": "own words"}, "request_id": "req_up"}
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=status, error=error))
    with pytest.raises(expected) as caught:
        await claude_client.messages.create(model=MODEL, max_tokens=5, messages=ASK, stream=stream)
    assert type(caught.value) is expected
    assert caught.value.status_code == status
    assert caught.value.body == error
    assert len(upstream.requests) == 1


async def test_a_rate_limit_keeps_its_retry_after(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=429, headers={"Retry-After": "17"}))
    for expected in ("17", None):
        with pytest.raises(anthropic.RateLimitError) as caught:
            await claude_client.messages.create(model=MODEL, max_tokens=5, messages=ASK)
        waiting = caught.value.response.headers["retry-after"]
        assert waiting == expected if expected else 1 <= int(waiting) <= 17
    assert caught.value.type == "rate_limit_error"
    assert len(upstream.requests) == 1


async def test_a_wrong_client_key_is_an_authentication_error(proxy: RunningProxy) -> None:
    async with AsyncAnthropic(api_key="wrong", base_url=proxy.url, max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(model=MODEL, max_tokens=5, messages=ASK)
        assert caught.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError):
            await client.models.list()


async def test_a_model_nobody_serves_is_named_in_the_error(claude_client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="no-such-model"):
        await claude_client.messages.create(model="no-such-model", max_tokens=5, messages=ASK)


@pytest.mark.parametrize("how", ["error_after_events", "cut_after_events", "end_after_events"])
async def test_a_stream_that_breaks_raises_after_the_events_that_came(
    claude_client: AsyncAnthropic, upstream: FakeUpstream, how: str
) -> None:
    release = asyncio.Event()
    upstream.behave(UPSTREAM_MODEL, Behaviour(**{how: 3, "release": release}))  # type: ignore[arg-type]
    stream = await claude_client.messages.create(model=MODEL, max_tokens=50, messages=ASK, stream=True)
    came = [(await anext(stream)).type for _ in range(3)]
    assert came == ["message_start", "content_block_start", "content_block_delta"]
    release.set()
    with pytest.raises(anthropic.APIStatusError) as caught:
        await anext(stream)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == ("overloaded_error" if how == "error_after_events" else "api_error")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_an_error_event_before_any_other_is_a_status(
    claude_client: AsyncAnthropic, upstream: FakeUpstream
) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(error_after_events=0))
    with pytest.raises(anthropic.OverloadedError):
        await claude_client.messages.create(model=MODEL, max_tokens=5, messages=ASK, stream=True)


async def test_leaving_a_stream_reaches_the_upstream(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang_after_events=3))
    stream = await claude_client.messages.create(model=MODEL, max_tokens=50, messages=ASK, stream=True)
    await anext(stream)
    await stream.close()
    async with asyncio.timeout(10):
        await (await upstream.request()).client_left.wait()


async def test_cancelling_a_request_reaches_the_upstream(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang=True))
    asking = asyncio.create_task(claude_client.messages.create(model=MODEL, max_tokens=5, messages=ASK))
    request = await upstream.request()
    asking.cancel()
    async with asyncio.timeout(10):
        await request.client_left.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking
