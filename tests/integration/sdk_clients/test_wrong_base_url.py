"""The unmodified SDKs with the base URL that one writes at first: their exceptions say what it has to be."""

from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic import NotFoundError as ClaudeNotFoundError
from google import genai
from google.genai.errors import ClientError
from google.genai.types import HttpOptions
from openai import AsyncOpenAI
from openai import NotFoundError as OpenAINotFoundError

from tests.integration.sdk_clients.conftest import CLIENT_KEY
from tests.support.proxy import RunningProxy

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
SAID: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("base", ["", "/v1/v1", "/v1beta/openai"])
async def test_openai(proxy: RunningProxy, base: str) -> None:
    async with AsyncOpenAI(api_key=CLIENT_KEY, base_url=proxy.url + base, max_retries=0, timeout=60) as client:
        with pytest.raises(OpenAINotFoundError, match="address of this server followed by /v1, once") as chat:
            await client.chat.completions.create(model="gpt-test", messages=SAID)
        with pytest.raises(OpenAINotFoundError, match="the endpoint is POST /v1/responses"):
            await client.responses.create(model="gpt-test", input="Hi")
        with pytest.raises(OpenAINotFoundError, match="the endpoint is GET /v1"):
            await client.models.list()
    assert chat.value.code == "unknown_path"


async def test_openai_with_an_endpoint_that_is_not_served(openai_client: AsyncOpenAI) -> None:
    with pytest.raises(OpenAINotFoundError, match="no such endpoint"):
        await openai_client.moderations.create(input="Hi")
    with pytest.raises(OpenAINotFoundError, match="no such endpoint"):
        await openai_client.responses.retrieve("resp_1")


async def test_anthropic(proxy: RunningProxy) -> None:
    async with AsyncAnthropic(api_key=CLIENT_KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=60) as client:
        with pytest.raises(ClaudeNotFoundError, match="alone, without /v1: the SDK adds it") as refused:
            await client.messages.create(model="claude-test", max_tokens=9, messages=SAID)
        with pytest.raises(ClaudeNotFoundError, match="alone, without /v1: the SDK adds it"):
            await client.models.list()
    assert refused.value.type == "not_found_error"


@pytest.mark.parametrize("base", ["/v1", "/v1beta"])
async def test_google_genai(proxy: RunningProxy, base: str) -> None:
    options = HttpOptions(base_url=proxy.url + base, timeout=60_000)
    async with genai.Client(api_key=CLIENT_KEY, http_options=options).aio as client:
        with pytest.raises(ClientError, match="alone, without a version") as refused:
            await client.models.generate_content(model="gemini-test", contents="Hi")
        with pytest.raises(ClientError, match="alone, without a version"):
            [part async for part in await client.models.generate_content_stream(model="gemini-test", contents="Hi")]
    assert (refused.value.code, refused.value.status) == (404, "NOT_FOUND")
