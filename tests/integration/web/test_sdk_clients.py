"""The clients that people use, against the web layer: plain, streaming, errors before and inside a stream, leaving."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from host.config.model import Config, Streaming
from host.pipeline.request import ClientResponse
from pluginabi.errors import ErrorBody
from pluginabi.payloads.common import ModelInfo
from tests.support.web import AccessDenied, Proxy, event, failure, raw, running

# The google-genai SDK derives from a class of aiohttp that does not like it.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

KEY = "sk-client-key-0001"


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with running() as served:
        yield served


@pytest.fixture
async def openai_client(proxy: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def anthropic_client(proxy: Proxy) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=proxy.url, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def genai_client(proxy: Proxy) -> AsyncIterator[genai.Client]:
    client = genai.Client(api_key=KEY, http_options=genai_types.HttpOptions(base_url=proxy.url, timeout=60_000))
    async with client.aio:
        yield client
    client.close()


def answer(document: Any) -> ClientResponse:
    return ClientResponse(status=200, body=json.dumps(document).encode())


async def blocked() -> None:
    await asyncio.Event().wait()


# -- openai: chat

MESSAGES: Any = [{"role": "user", "content": "hi"}]
CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


async def test_openai_chat(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.answer = answer(CHAT)
    response = await openai_client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    completion = response.parse()
    assert completion.choices[0].message.content == "hello"
    assert response.headers["x-request-id"] == completion._request_id == proxy.gateway.request.request_id
    assert proxy.gateway.request.headers["authorization"] == (f"Bearer {KEY}",)


@pytest.mark.parametrize("as_raw", [True, False], ids=["raw", "events"])
async def test_openai_chat_stream(proxy: Proxy, openai_client: openai.AsyncOpenAI, as_raw: bool) -> None:
    if as_raw:
        wire = "".join(f"data: {json.dumps(chunk(text))}\n\n" for text in "abc") + "data: [DONE]\n\n"
        proxy.gateway.streams(*[raw(wire[start : start + 17]) for start in range(0, len(wire), 17)])
    else:
        proxy.gateway.streams(*[event(chunk(text)) for text in "abc"])
    stream = await openai_client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert [part.choices[0].delta.content async for part in stream] == ["a", "b", "c"]


OPENAI_ERRORS: list[tuple[int, type[openai.APIStatusError]]] = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (529, openai.InternalServerError),
]


@pytest.mark.parametrize(("status", "kind"), OPENAI_ERRORS)
@pytest.mark.parametrize("streaming", [True, False])
async def test_openai_maps_a_status_to_its_own_error(
    proxy: Proxy, openai_client: openai.AsyncOpenAI, status: int, kind: type[openai.APIStatusError], streaming: bool
) -> None:
    proxy.gateway.answer = failure("because", http_status=status, code="my_code", retry_after_ms=2000)
    proxy.gateway.stream = proxy.gateway.answer
    with pytest.raises(kind) as caught:
        await openai_client.chat.completions.create(model="m", messages=MESSAGES, stream=streaming)
    assert (caught.value.status_code, caught.value.code) == (status, "my_code")
    assert "because" in caught.value.message
    assert caught.value.response.headers["retry-after"] == "2"


async def test_openai_raises_an_error_inside_a_stream(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.streams(event(chunk("a")), failure("overloaded", http_status=503))
    stream = await openai_client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="overloaded"):
        async for part in stream:
            seen.append(part)
    assert len(seen) == 1


async def test_openai_leaving_a_stream_stops_it(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    scripted = proxy.gateway.streams(event(chunk("a")), blocked)
    stream = await openai_client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(20):
        await scripted.closed.wait()
    assert scripted.close_reason == "client_gone"


async def test_openai_reads_over_keep_alives(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.config = Config(
        streaming=Streaming(keepalive_seconds=0.005),  # type: ignore[arg-type]
        nonstream_keepalive_interval=0.005,  # type: ignore[arg-type]
    )
    # Ten beats of the clock that also drives the keep-alives.
    beats = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        loop.call_later(0.05, beats.set)
        await beats.wait()

    proxy.gateway.streams(event(chunk("a")), wait, event(chunk("b")))
    stream = await openai_client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert [part.choices[0].delta.content async for part in stream] == ["a", "b"]
    beats.clear()
    proxy.gateway.answer, proxy.gateway.before = answer(CHAT), wait
    completion = await openai_client.chat.completions.create(model="m", messages=MESSAGES)
    assert completion.choices[0].message.content == "hello"


# -- openai: the other endpoints


async def test_openai_completions(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.answer = answer(CHAT)
    completion = await openai_client.completions.create(model="m", prompt="hi")
    assert completion.choices[0].text == "hello"
    proxy.gateway.streams(event(chunk("a")), event(chunk("b")))
    stream = await openai_client.completions.create(model="m", prompt="hi", stream=True)
    assert [part.choices[0].text async for part in stream] == ["a", "b"]


async def test_openai_models(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.models = [ModelInfo(id="b", created=1, owned_by="x"), ModelInfo(id="a", created=1, owned_by="x")]
    assert [model.id async for model in openai_client.models.list()] == ["a", "b"]
    assert (await openai_client.models.retrieve("a")).owned_by == "x"
    with pytest.raises(openai.NotFoundError):
        await openai_client.models.retrieve("nope")


async def test_openai_embeddings(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.answer = answer(
        {
            "object": "list",
            "model": "e",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
    )
    embedding = await openai_client.embeddings.create(model="e", input="hi", encoding_format="float")
    assert embedding.data[0].embedding == [0.5, 0.25]


async def test_openai_authentication_errors(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.access.denies = AccessDenied(ErrorBody(message="no", code="invalid_api_key", http_status=401, origin="host"))
    with pytest.raises(openai.AuthenticationError) as caught:
        await openai_client.models.list()
    assert caught.value.code == "invalid_api_key"


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [],
}
ITEM = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "hello", "annotations": []}],
}


def response_events() -> list[dict[str, Any]]:
    return [
        {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "status": "in_progress"}},
        {"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": ITEM},
        {"type": "response.completed", "sequence_number": 2, "response": RESPONSE},
    ]


async def test_openai_responses(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.answer = answer({**RESPONSE, "output": [ITEM]})
    assert (await openai_client.responses.create(model="m", input="hi")).output_text == "hello"


@pytest.mark.parametrize("as_raw", [True, False], ids=["raw", "events"])
async def test_openai_responses_stream_with_its_output_filled_in(
    proxy: Proxy, openai_client: openai.AsyncOpenAI, as_raw: bool
) -> None:
    if as_raw:
        proxy.gateway.streams(*[raw(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n") for e in response_events()])
    else:
        proxy.gateway.streams(*[event(each) for each in response_events()])
    stream = await openai_client.responses.create(model="m", input="hi", stream=True)
    seen = [part async for part in stream]
    assert [part.type for part in seen] == [each["type"] for each in response_events()]
    assert seen[-1].response.output_text == "hello"  # type: ignore[union-attr]


async def test_openai_responses_errors_inside_a_stream(proxy: Proxy, openai_client: openai.AsyncOpenAI) -> None:
    proxy.gateway.streams(event(response_events()[0]), failure("slow", http_status=429))
    stream = await openai_client.responses.create(model="m", input="hi", stream=True)
    seen = [part async for part in stream]
    last: Any = seen[-1]
    assert (last.type, last.code, last.message, last.sequence_number) == ("error", "rate_limit_exceeded", "slow", 1)


# -- anthropic


def claude_events() -> list[dict[str, Any]]:
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    usage = {"input_tokens": 1, "output_tokens": 1}
    return [
        {"type": "message_start", "message": {**message, "stop_sequence": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]


async def test_anthropic_messages(proxy: Proxy, anthropic_client: anthropic.AsyncAnthropic) -> None:
    proxy.gateway.answer = answer(
        {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": "hello"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 2},
        }
    )
    message = await anthropic_client.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    assert message.content[0].text == "hello"  # type: ignore[union-attr]
    headers = proxy.gateway.request.headers
    assert (headers.get("x-api-key") or headers["authorization"])[0].endswith(KEY)


@pytest.mark.parametrize("as_raw", [True, False], ids=["raw", "events"])
async def test_anthropic_stream(proxy: Proxy, anthropic_client: anthropic.AsyncAnthropic, as_raw: bool) -> None:
    if as_raw:
        wire = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in claude_events())
        pieces = [raw(wire[start : start + 23]) for start in range(0, len(wire), 23)]
        proxy.gateway.streams(*pieces, marker="message_stop")
    else:
        proxy.gateway.streams(*[event(each) for each in claude_events()])
    async with anthropic_client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
        assert "".join([text async for text in stream.text_stream]) == "hello"
        assert (await stream.get_final_message()).stop_reason == "end_turn"


ANTHROPIC_ERRORS: list[tuple[int, type[anthropic.APIStatusError]]] = [
    (400, anthropic.BadRequestError),
    (401, anthropic.AuthenticationError),
    (403, anthropic.PermissionDeniedError),
    (404, anthropic.NotFoundError),
    (413, anthropic.APIStatusError),
    (429, anthropic.RateLimitError),
    (500, anthropic.InternalServerError),
    (529, anthropic.InternalServerError),
]


@pytest.mark.parametrize(("status", "kind"), ANTHROPIC_ERRORS)
async def test_anthropic_maps_a_status_to_its_own_error(
    proxy: Proxy, anthropic_client: anthropic.AsyncAnthropic, status: int, kind: type[anthropic.APIStatusError]
) -> None:
    proxy.gateway.answer = failure("because", http_status=status)
    with pytest.raises(kind) as caught:
        await anthropic_client.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    assert caught.value.status_code == status
    assert "because" in caught.value.message


async def test_anthropic_raises_an_error_inside_a_stream(
    proxy: Proxy, anthropic_client: anthropic.AsyncAnthropic
) -> None:
    proxy.gateway.streams(*[event(each) for each in claude_events()[:3]], failure("busy", http_status=529))
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        async with anthropic_client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
            async for _ in stream:
                pass


async def test_anthropic_leaving_a_stream_stops_it(proxy: Proxy, anthropic_client: anthropic.AsyncAnthropic) -> None:
    scripted = proxy.gateway.streams(*[event(each) for each in claude_events()[:3]], blocked)
    async with anthropic_client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
        await anext(aiter(stream))
    async with asyncio.timeout(20):
        await scripted.closed.wait()
    assert scripted.close_reason == "client_gone"


async def test_anthropic_count_tokens_and_models(proxy: Proxy, anthropic_client: anthropic.AsyncAnthropic) -> None:
    proxy.gateway.answer = answer({"input_tokens": 3})
    count = await anthropic_client.messages.count_tokens(model="m", messages=MESSAGES)
    assert count.input_tokens == 3
    proxy.gateway.models = [ModelInfo(id="a", created=1771372800), ModelInfo(id="b", created=1771372800)]
    assert [model.id async for model in anthropic_client.models.list()] == ["a", "b"]
    assert (await anthropic_client.models.retrieve("b")).display_name == "b"
    with pytest.raises(anthropic.NotFoundError):
        await anthropic_client.models.retrieve("nope")


# -- google-genai


def gemini(text: str) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [{"content": content, "index": 0}], "usageMetadata": {"totalTokenCount": 3}}


async def test_genai_generate_content(proxy: Proxy, genai_client: genai.Client) -> None:
    proxy.gateway.answer = answer(gemini("hello"))
    response = await genai_client.aio.models.generate_content(model="g", contents="hi")
    assert response.text == "hello"
    assert proxy.gateway.request.model == "g"
    assert proxy.gateway.request.headers["x-goog-api-key"] == (KEY,)


@pytest.mark.parametrize("as_raw", [True, False], ids=["raw", "events"])
async def test_genai_stream(proxy: Proxy, genai_client: genai.Client, as_raw: bool) -> None:
    if as_raw:
        wire = "".join(f"data: {json.dumps(gemini(text))}\r\n\r\n" for text in "abc")
        pieces = [raw(wire[start : start + 31]) for start in range(0, len(wire), 31)]
        proxy.gateway.streams(*pieces, marker="never")
    else:
        proxy.gateway.streams(*[event(gemini(text)) for text in "abc"])
    stream = await genai_client.aio.models.generate_content_stream(model="g", contents="hi")
    assert [part.text async for part in stream] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("status", "kind", "name"),
    [
        (400, genai_errors.ClientError, "INVALID_ARGUMENT"),
        (401, genai_errors.ClientError, "UNAUTHENTICATED"),
        (429, genai_errors.ClientError, "RESOURCE_EXHAUSTED"),
        (500, genai_errors.ServerError, "INTERNAL"),
        (503, genai_errors.ServerError, "UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_genai_maps_a_status_to_its_own_error(
    proxy: Proxy,
    genai_client: genai.Client,
    status: int,
    kind: type[genai_errors.APIError],
    name: str,
    streaming: bool,
) -> None:
    proxy.gateway.answer = failure("because", http_status=status)
    proxy.gateway.stream = proxy.gateway.answer
    with pytest.raises(kind) as caught:
        if streaming:
            async for _ in await genai_client.aio.models.generate_content_stream(model="g", contents="hi"):
                pass
        else:
            await genai_client.aio.models.generate_content(model="g", contents="hi")
    assert (caught.value.code, caught.value.status, caught.value.message) == (status, name, "because")


async def test_genai_raises_an_error_inside_a_stream(proxy: Proxy, genai_client: genai.Client) -> None:
    proxy.gateway.streams(event(gemini("a")), failure("slow", http_status=429))
    stream = await genai_client.aio.models.generate_content_stream(model="g", contents="hi")
    seen: list[Any] = []
    with pytest.raises(genai_errors.ClientError) as caught:
        async for part in stream:
            seen.append(part.text)
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert seen == ["a"]


async def test_genai_reads_over_keep_alives(proxy: Proxy, genai_client: genai.Client) -> None:
    proxy.config = Config(streaming=Streaming(keepalive_seconds=0.005))  # type: ignore[arg-type]
    beats = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        loop.call_later(0.05, beats.set)
        await beats.wait()

    proxy.gateway.streams(event(gemini("a")), wait, event(gemini("b")))
    stream = await genai_client.aio.models.generate_content_stream(model="g", contents="hi")
    assert [part.text async for part in stream] == ["a", "b"]


async def test_genai_models_counts_and_embeddings(proxy: Proxy, genai_client: genai.Client) -> None:
    proxy.gateway.models = [ModelInfo(id="g", input_token_limit=7)]
    listed = [model async for model in await genai_client.aio.models.list()]
    assert [(model.name, model.input_token_limit) for model in listed] == [("models/g", 7)]
    assert (await genai_client.aio.models.get(model="g")).name == "models/g"
    with pytest.raises(genai_errors.ClientError):
        await genai_client.aio.models.get(model="nope")
    proxy.gateway.answer = answer({"totalTokens": 3})
    assert (await genai_client.aio.models.count_tokens(model="g", contents="hi")).total_tokens == 3
    proxy.gateway.answer = answer({"embeddings": [{"values": [0.5]}], "embedding": {"values": [0.5]}})
    embedded = await genai_client.aio.models.embed_content(model="g", contents="hi")
    assert embedded.embeddings and embedded.embeddings[0].values == [0.5]
