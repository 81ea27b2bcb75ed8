"""A plugin in a process of its own rewrites requests, answers and streams; the SDKs notice nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from google.genai import errors
from google.genai.client import AsyncClient
from openai import AsyncOpenAI

from tests.integration.sdk_clients.conftest import CLIENT_KEY, CONFIG
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

CENSOR = '''\
"""Says `client` where the upstream says `upstream`."""
from pluginapi import (
    Body, Plugin, ResponseInterceptResponse, RequestInterceptResponse, StreamInterceptResponse, StreamItem, serve
)


def censored(body):
    return Body.from_bytes(body.to_bytes().replace(b"upstream", b"client"))


class Censor(Plugin):
    async def request_intercept_before(self, request):
        return RequestInterceptResponse(patch={"metadata": {"seen": "yes"}}, headers={"x-seen": ("yes",)})

    async def response_intercept_after(self, request):
        return ResponseInterceptResponse(body=censored(request.body), headers={"x-censored": ("yes",)})

    async def response_intercept_stream_chunk(self, request):
        items = [StreamItem(event=item.event, body=censored(item.body)) for item in request.items]
        return StreamInterceptResponse(items=items, headers={"x-censored": ("yes",)})
'''
PLUGINS = "plugins: {enabled: true, configs: {censor: {enabled: true}}}\n"
ASK: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[RunningProxy]:
    """Replaces the one without plugins."""
    folder = tmp_path / "plugins" / "censor"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text('id = "censor"\nversion = "1.0.0"\nentry = "censor:Censor"\n')
    (folder / "censor.py").write_text(CENSOR)
    config = CONFIG.format(client_key=CLIENT_KEY, upstream=upstream.url) + PLUGINS
    async with running_proxy(config, directory=tmp_path) as running:
        yield running


async def test_openai_chat_plain_streamed_and_failing(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    plain = await openai_client.chat.completions.create(model="gpt-test", messages=ASK)
    assert plain.choices[0].message.content == "Hello from client"
    async with openai_client.chat.completions.stream(model="gpt-test", messages=ASK) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hellofromclient"
    raw = await openai_client.chat.completions.with_raw_response.create(model="gpt-test", messages=ASK, stream=True)
    assert raw.headers["x-censored"] == "yes"
    assert [chunk.object async for chunk in raw.parse()]
    upstream.behave("gpt-up", Behaviour(error_after_events=2, release=(release := asyncio.Event())))
    failing = await openai_client.chat.completions.create(model="gpt-test", messages=ASK, stream=True)
    assert [(await anext(failing)).choices[0].delta.content for _ in range(2)] == ["", "Hello"]
    release.set()
    with pytest.raises(openai.APIError, match="broken"):
        await anext(failing)
    for sent in upstream.requests:
        assert (sent.json["metadata"], sent.headers["x-seen"]) == ({"seen": "yes"}, "yes")


async def test_openai_responses_plain_streamed_and_failing(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    plain = await openai_client.responses.create(model="gpt-test", input="Hello")
    assert plain.output_text == "Hello from client"
    stream = await openai_client.responses.create(model="gpt-test", input="Hello", stream=True)
    events: list[Any] = [event async for event in stream]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Hello from client"
    upstream.behave("gpt-up", Behaviour(cut_after_events=2, release=(release := asyncio.Event())))
    failing = await openai_client.responses.create(model="gpt-test", input="Hello", stream=True)
    await anext(failing)
    release.set()
    rest = [event.type async for event in failing]
    assert rest[-1] == "error"
    assert rest.count("error") == 1


async def test_anthropic_plain_streamed_and_failing(claude_client: AsyncAnthropic, upstream: FakeUpstream) -> None:
    plain: Any = await claude_client.messages.create(model="claude-test", max_tokens=5, messages=ASK)
    assert plain.content[0].text == "Hello from client"
    async with claude_client.messages.stream(model="claude-test", max_tokens=5, messages=ASK) as stream:
        final: Any = await stream.get_final_message()
    assert final.content[0].text == "Hellofromclient"
    assert final.usage.output_tokens == 7
    upstream.behave("claude-up", Behaviour(cut_after_events=3, release=(release := asyncio.Event())))
    failing = await claude_client.messages.create(model="claude-test", max_tokens=5, messages=ASK, stream=True)
    await anext(failing)
    release.set()
    with pytest.raises(anthropic.APIStatusError, match="closed the connection"):
        async for _ in failing:
            pass


async def test_gemini_plain_streamed_and_failing(gemini_client: AsyncClient, upstream: FakeUpstream) -> None:
    plain = await gemini_client.models.generate_content(model="gemini-test", contents="Hello")
    assert plain.text == "Hello from client"
    stream = await gemini_client.models.generate_content_stream(model="gemini-test", contents="Hello")
    assert [chunk.text async for chunk in stream] == ["Hello", "from", "client"]
    upstream.behave("gemini-up", Behaviour(error_after_events=1, release=(release := asyncio.Event())))
    failing = await gemini_client.models.generate_content_stream(model="gemini-test", contents="Hello")
    assert (await anext(failing)).text == "Hello"
    release.set()
    with pytest.raises(errors.ServerError, match="broken"):
        await anext(failing)


async def test_leaving_a_hooked_stream_reaches_the_upstream(openai_client: AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.behave("gpt-up", Behaviour(hang_after_events=2))
    stream = await openai_client.chat.completions.create(model="gpt-test", messages=ASK, stream=True)
    await anext(stream)
    await stream.close()
    async with asyncio.timeout(10):
        await (await upstream.request()).client_left.wait()


async def test_a_patched_body_keeps_the_bytes_of_what_was_not_patched(
    proxy: RunningProxy, upstream: FakeUpstream, openai_client: AsyncOpenAI
) -> None:
    await openai_client.chat.completions.create(
        model="gpt-test", messages=ASK, extra_body={"big": 12345678901234567890123, "precise": 0.1}
    )
    body = (await upstream.request()).body
    assert b'"big":12345678901234567890123' in body
    assert json.loads(body)["model"] == "gpt-up"
