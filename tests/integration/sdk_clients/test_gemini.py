"""The google-genai SDK through the proxy to the Gemini API."""

import asyncio
from typing import Any

import pytest
from google import genai
from google.genai import errors
from google.genai.client import AsyncClient
from google.genai.types import (
    AutomaticFunctionCallingConfig,
    FunctionDeclaration,
    GenerateContentConfig,
    HttpOptions,
    Schema,
    Tool,
    Type,
)

from tests.integration.sdk_clients.conftest import CLIENT_KEY
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.proxy import RunningProxy

# The SDK's own doing, and nobody else's business.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

MODEL = "gemini-test"
UPSTREAM_MODEL = "gemini-up"
WEATHER = FunctionDeclaration(
    name="weather", parameters=Schema(type=Type.OBJECT, properties={"city": Schema(type=Type.STRING)})
)
WITH_TOOL = GenerateContentConfig(
    tools=[Tool(function_declarations=[WEATHER])],
    automatic_function_calling=AutomaticFunctionCallingConfig(disable=True),
)
CALL = ("weather", '{"city": "Reykjavík"}')
STATUS_CLASSES: list[tuple[int, type[errors.APIError]]] = [
    (400, errors.ClientError),
    (401, errors.ClientError),
    (403, errors.ClientError),
    (404, errors.ClientError),
    (429, errors.ClientError),
    (500, errors.ServerError),
    (503, errors.ServerError),
]


async def test_a_plain_answer_arrives_whole(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    answer = await gemini_client.models.generate_content(model=MODEL, contents="Hello")
    assert answer.text == "Hello from upstream"
    assert answer.usage_metadata is not None and answer.usage_metadata.total_token_count == 12
    assert (await upstream.request()).path == f"/v1beta/models/{UPSTREAM_MODEL}:generateContent"


async def test_a_stream_arrives_piece_by_piece(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    stream = await gemini_client.models.generate_content_stream(model=MODEL, contents="Hello")
    chunks = [chunk async for chunk in stream]
    assert [chunk.text for chunk in chunks] == ["Hello", "from", "upstream"]
    assert chunks[-1].usage_metadata is not None
    assert (await upstream.request()).path == f"/v1beta/models/{UPSTREAM_MODEL}:streamGenerateContent"


async def test_a_function_call_arrives_plain_and_streamed(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(tool_call=CALL))
    answer: Any = await gemini_client.models.generate_content(model=MODEL, contents="Weather?", config=WITH_TOOL)
    assert (answer.function_calls[0].name, answer.function_calls[0].args) == ("weather", {"city": "Reykjavík"})
    stream = await gemini_client.models.generate_content_stream(model=MODEL, contents="Weather?", config=WITH_TOOL)
    calls: list[Any] = [call async for chunk in stream for call in chunk.function_calls or ()]
    assert [(call.name, call.args) for call in calls] == [("weather", {"city": "Reykjavík"})]


async def test_tokens_are_counted(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    counted = await gemini_client.models.count_tokens(model=MODEL, contents="Hello")
    assert counted.total_tokens == 11
    assert (await upstream.request()).path == f"/v1beta/models/{UPSTREAM_MODEL}:countTokens"


async def test_one_text_and_several_are_embedded(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    one: Any = await gemini_client.models.embed_content(model=MODEL, contents="a text")
    assert one.embeddings[0].values == [0.5, -0.5]
    several: Any = await gemini_client.models.embed_content(model=MODEL, contents=["a text"])
    assert several.embeddings[0].values == [0.5, -0.5]


async def test_the_synchronous_client_works_too(proxy: RunningProxy) -> None:
    def talk() -> tuple[str | None, list[str | None]]:
        options = HttpOptions(base_url=proxy.url, timeout=60_000)
        with genai.Client(api_key=CLIENT_KEY, http_options=options) as client:
            plain = client.models.generate_content(model=MODEL, contents="Hello").text
            return plain, [c.text for c in client.models.generate_content_stream(model=MODEL, contents="Hello")]

    assert await asyncio.to_thread(talk) == ("Hello from upstream", ["Hello", "from", "upstream"])


async def test_a_listed_model_can_be_retrieved_and_used_by_its_listed_name(gemini_client: AsyncClient) -> None:
    listed = {model.name: model async for model in await gemini_client.models.list()}
    assert set(listed) == {"models/gpt-test", "models/embed-test", "models/claude-test", "models/gemini-test"}
    model = await gemini_client.models.get(model=MODEL)
    assert model.name == f"models/{MODEL}"
    answer = await gemini_client.models.generate_content(model=model.name, contents="Hello")
    assert answer.text == "Hello from upstream"
    with pytest.raises(errors.ClientError) as caught:
        await gemini_client.models.get(model="no-such-model")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("status", "expected"), STATUS_CLASSES, ids=[str(status) for status, _ in STATUS_CLASSES])
async def test_an_upstream_error_is_the_sdks_own_exception(
    gemini_client: AsyncClient, upstream: FakeUpstream, status: int, expected: type[errors.APIError], stream: bool
) -> None:
    error = {"error": {"code": status, "message": "own words", "status": "MADE_UP", "details": [{"@type": "x"}]}}
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=status, error=error))
    with pytest.raises(expected) as caught:
        if stream:
            await anext(await gemini_client.models.generate_content_stream(model=MODEL, contents="Hello"))
        else:
            await gemini_client.models.generate_content(model=MODEL, contents="Hello")
    assert type(caught.value) is expected
    assert (caught.value.code, caught.value.message, caught.value.status) == (status, "own words", "MADE_UP")
    assert caught.value.details == error
    assert len(upstream.requests) == 1


async def test_a_resting_credential_is_a_client_error_with_the_wait(
    gemini_client: AsyncClient, upstream: FakeUpstream
) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(status=429, headers={"Retry-After": "17"}))
    for _ in range(2):
        with pytest.raises(errors.ClientError) as caught:
            await gemini_client.models.generate_content(model=MODEL, contents="Hello")
        assert caught.value.code == 429
        response: Any = caught.value.response
        assert 1 <= int(response.headers["Retry-After"]) <= 17
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    assert len(upstream.requests) == 1


async def test_a_wrong_client_key_is_unauthenticated(proxy: RunningProxy) -> None:
    options = HttpOptions(base_url=proxy.url, timeout=60_000)
    async with genai.Client(api_key="wrong", http_options=options).aio as client:
        with pytest.raises(errors.ClientError) as caught:
            await client.models.generate_content(model=MODEL, contents="Hello")
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")


async def test_a_model_nobody_serves_is_named_in_the_error(gemini_client: AsyncClient) -> None:
    with pytest.raises(errors.ClientError, match="no-such-model") as caught:
        await gemini_client.models.generate_content(model="no-such-model", contents="Hello")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(("how", "code"), [("error_after_events", 503), ("cut_after_events", 502)])
async def test_a_stream_that_breaks_raises_after_the_pieces_that_came(
    gemini_client: AsyncClient, upstream: FakeUpstream, how: str, code: int
) -> None:
    release = asyncio.Event()
    upstream.behave(UPSTREAM_MODEL, Behaviour(**{how: 2, "release": release}))  # type: ignore[arg-type]
    stream = await gemini_client.models.generate_content_stream(model=MODEL, contents="Hello")
    assert [(await anext(stream)).text for _ in range(2)] == ["Hello", "from"]
    release.set()
    with pytest.raises(errors.ServerError) as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.status) == (code, "UNAVAILABLE")


async def test_leaving_a_stream_reaches_the_upstream(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang_after_events=1))
    stream: Any = await gemini_client.models.generate_content_stream(model=MODEL, contents="Hello")
    await anext(stream)
    # Closing the stream alone leaves its connection to the garbage collector.
    await stream.aclose()
    await gemini_client.aclose()
    async with asyncio.timeout(10):
        await (await upstream.request()).client_left.wait()


async def test_cancelling_a_request_reaches_the_upstream(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    upstream.behave(UPSTREAM_MODEL, Behaviour(hang=True))
    asking = asyncio.create_task(gemini_client.models.generate_content(model=MODEL, contents="Hello"))
    request = await upstream.request()
    asking.cancel()
    async with asyncio.timeout(10):
        await request.client_left.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking
