"""The demo as `jackfield serve --demo` runs it: every SDK, any key, models served by a plugin without an upstream."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from google import genai
from google.genai import errors
from google.genai.client import AsyncClient
from google.genai.types import HttpOptions
from openai import AsyncOpenAI

from tests.support.proxy import ServeProcess, serve_process

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The SDK's own doing, and nobody else's business.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]
TEXT = "Tell me two things, please"
ASK: list[Any] = [{"role": "user", "content": TEXT}]
MODELS = pytest.mark.parametrize("model", ["demo-1", "echo"])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServeProcess]:
    directory: Path = tmp_path_factory.mktemp("demo")
    (directory / "config.yaml").write_text("port: 0\n", encoding="utf-8")
    async with serve_process(directory / "config.yaml", "--demo") as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def openai_client(demo: ServeProcess) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="any", base_url=f"{demo.url}/v1", max_retries=0, timeout=60) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def claude_client(demo: ServeProcess) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key="any", base_url=demo.url, max_retries=0, timeout=60) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def gemini_client(demo: ServeProcess) -> AsyncIterator[AsyncClient]:
    options = HttpOptions(base_url=demo.url, timeout=60_000)
    async with genai.Client(api_key="any", http_options=options).aio as client:
        yield client


@MODELS
async def test_openai_chat_repeats_the_text_plain_and_streamed(openai_client: AsyncOpenAI, model: str) -> None:
    plain = await openai_client.chat.completions.create(model=model, messages=ASK)
    assert (plain.model, plain.choices[0].message.content) == (model, TEXT)
    async with openai_client.chat.completions.stream(model=model, messages=ASK) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


@MODELS
async def test_openai_responses_repeat_the_text_plain_and_streamed(openai_client: AsyncOpenAI, model: str) -> None:
    assert (await openai_client.responses.create(model=model, input=TEXT)).output_text == TEXT
    async with openai_client.responses.stream(model=model, input=TEXT) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(pieces) == final.output_text == TEXT
    assert len(pieces) == len(TEXT.split())


@MODELS
async def test_openai_embeddings_depend_on_the_text_alone(openai_client: AsyncOpenAI, model: str) -> None:
    first = await openai_client.embeddings.create(model=model, input=TEXT)
    again = await openai_client.embeddings.create(model=model, input=TEXT)
    other = await openai_client.embeddings.create(model=model, input="something else")
    assert first.data[0].embedding == again.data[0].embedding != other.data[0].embedding


async def test_openai_embeddings_of_a_list_are_one_vector_per_text(openai_client: AsyncOpenAI) -> None:
    answer = await openai_client.embeddings.create(model="echo", input=["one", "two"])
    alone = await openai_client.embeddings.create(model="echo", input="two")
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.data[1].embedding == alone.data[0].embedding


@MODELS
async def test_anthropic_messages_repeat_the_text_plain_and_streamed(claude_client: AsyncAnthropic, model: str) -> None:
    plain: Any = await claude_client.messages.create(model=model, max_tokens=50, messages=ASK)
    assert plain.content[0].text == TEXT
    async with claude_client.messages.stream(model=model, max_tokens=50, messages=ASK) as stream:
        assert await stream.get_final_text() == TEXT


@MODELS
async def test_gemini_repeats_the_text_plain_and_streamed(gemini_client: AsyncClient, model: str) -> None:
    assert (await gemini_client.models.generate_content(model=model, contents=TEXT)).text == TEXT
    stream = await gemini_client.models.generate_content_stream(model=model, contents=TEXT)
    pieces = [chunk.text or "" async for chunk in stream]
    assert "".join(pieces) == TEXT
    assert len(pieces) == len(TEXT.split())


async def test_tokens_are_counted_for_both_families_that_ask(
    claude_client: AsyncAnthropic, gemini_client: AsyncClient
) -> None:
    assert (await claude_client.messages.count_tokens(model="demo-1", messages=ASK)).input_tokens == 5
    assert (await gemini_client.models.count_tokens(model="demo-1", contents=TEXT)).total_tokens == 5


async def test_gemini_embeds_one_text_and_several(gemini_client: AsyncClient) -> None:
    one: Any = await gemini_client.models.embed_content(model="echo", contents=TEXT)
    several: Any = await gemini_client.models.embed_content(model="echo", contents=[TEXT, "something else"])
    assert [len(answer.embeddings) for answer in (one, several)] == [1, 2]
    assert several.embeddings[0].values == one.embeddings[0].values != several.embeddings[1].values


async def test_the_model_is_listed_and_retrieved_by_every_family(
    openai_client: AsyncOpenAI, claude_client: AsyncAnthropic, gemini_client: AsyncClient
) -> None:
    assert [model.id async for model in openai_client.models.list()] == ["echo"]
    assert (await openai_client.models.retrieve("echo")).owned_by == "jackfield"
    assert [model.id async for model in claude_client.models.list()] == ["echo"]
    assert (await claude_client.models.retrieve("echo")).display_name == "Echo"
    assert [model.name async for model in await gemini_client.models.list()] == ["models/echo"]
    assert (await gemini_client.models.get(model="echo")).display_name == "Echo"


async def test_a_request_without_user_text_is_refused_in_every_familys_own_words(
    openai_client: AsyncOpenAI, claude_client: AsyncAnthropic, gemini_client: AsyncClient
) -> None:
    silent: Any = [{"role": "assistant", "content": "I speak first"}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="no user text"):
            await openai_client.chat.completions.create(model="demo-1", messages=silent, stream=stream)
        with pytest.raises(anthropic.BadRequestError, match="no user text"):
            await claude_client.messages.create(model="demo-1", max_tokens=5, messages=silent, stream=stream)
    contents: Any = [{"role": "model", "parts": [{"text": "I speak first"}]}]
    with pytest.raises(errors.ClientError, match="no user text") as caught:
        await gemini_client.models.generate_content(model="demo-1", contents=contents)
    assert caught.value.status == "INVALID_ARGUMENT"
