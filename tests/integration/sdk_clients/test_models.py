"""Models as the unmodified SDKs see them: lists with names and limits, and answers under the asked name."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from google.genai.client import AsyncClient
from openai import AsyncOpenAI

from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy

CONFIG = """\
api-keys: [client-key-1]
openai-compatibility:
  - name: acme
    base-url: {upstream}/v1
    responses: true
    api-key-entries: [{{api-key: up-openai}}]
    models:
      - name: gpt-up
        alias: fast
        display-name: Fast
        max-context-length: 128000
        input-modalities: [Text, image]
        output-modalities: [text]
        force-mapping: true
      - {{name: gpt-up, alias: plain}}
claude-api-key:
  - api-key: up-claude
    base-url: {upstream}
    models: [{{name: claude-up, alias: c, display-name: Clever, force-mapping: true}}]
gemini-api-key:
  - api-key: up-gemini
    base-url: {upstream}
    models: [{{name: gemini-up, alias: g, force-mapping: true}}]
"""
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[RunningProxy]:
    async with running_proxy(CONFIG.format(upstream=upstream.url), directory=tmp_path) as running:
        yield running


async def test_openais_sdk_lists_and_retrieves_models_and_reads_the_name_it_asked_for(openai_client: AsyncOpenAI):
    listed = {model.id: model async for model in openai_client.models.list()}
    assert sorted(listed) == ["c", "fast", "g", "plain"]
    assert (listed["fast"].object, listed["fast"].owned_by) == ("model", "acme")
    assert (await openai_client.models.retrieve("fast")).id == "fast"

    for asked, named in (("fast", "fast"), ("plain", "gpt-up")):
        chat = await openai_client.chat.completions.create(model=asked, messages=HI)
        assert chat.model == named
        chunks = [
            chunk async for chunk in await openai_client.chat.completions.create(model=asked, messages=HI, stream=True)
        ]
        assert {chunk.model for chunk in chunks} == {named}
    answer = await openai_client.responses.create(model="fast", input="Hi")
    assert (answer.model, answer.output_text) == ("fast", "Hello from upstream")
    events = [event async for event in await openai_client.responses.create(model="fast", input="Hi", stream=True)]
    assert {event.response.model for event in events if hasattr(event, "response")} == {"fast"}


async def test_anthropics_sdk_sees_display_names_and_limits_and_reads_the_name_it_asked_for(
    claude_client: AsyncAnthropic,
):
    listed = {model.id: model async for model in claude_client.models.list()}
    fast, plain = listed["fast"].model_dump(), listed["plain"].model_dump()
    assert (fast["display_name"], fast["max_input_tokens"], fast["type"]) == ("Fast", 128_000, "model")
    assert (plain["display_name"], plain["max_input_tokens"]) == ("plain", 200_000)
    assert (await claude_client.models.retrieve("c")).display_name == "Clever"

    message = await claude_client.messages.create(model="c", messages=HI, max_tokens=9)
    assert message.model == "c"
    async with claude_client.messages.stream(model="c", messages=HI, max_tokens=9) as stream:
        final = await stream.get_final_message()
    assert (final.model, final.content[0].type) == ("c", "text")


async def test_googles_sdk_sees_display_names_and_limits_and_reads_the_name_it_asked_for(gemini_client: AsyncClient):
    listed = {model.name: model async for model in await gemini_client.models.list()}
    fast = listed["models/fast"]
    assert (fast.display_name, fast.input_token_limit) == ("Fast", 128_000)
    assert fast.supported_actions == ["generateContent"]
    assert (await gemini_client.models.get(model="fast")).display_name == "Fast"

    answer = await gemini_client.models.generate_content(model="g", contents="Hi")
    assert (answer.model_version, answer.text) == ("g", "Hello from upstream")
    chunks = [chunk async for chunk in await gemini_client.models.generate_content_stream(model="g", contents="Hi")]
    assert {chunk.model_version for chunk in chunks} == {"g"}
