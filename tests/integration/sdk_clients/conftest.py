"""A proxy in front of a fake provider, and the unmodified SDKs pointed at it, their own retries switched off."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from anthropic import AsyncAnthropic
from google import genai
from google.genai.client import AsyncClient
from google.genai.types import HttpOptions
from openai import AsyncOpenAI

from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy

CLIENT_KEY = "client-key-1"
CONFIG = """\
api-keys: [{client_key}]
openai-compatibility:
  - name: acme
    base-url: {upstream}/v1
    responses: true
    api-key-entries: [{{api-key: up-openai}}]
    models: [{{name: gpt-up, alias: gpt-test}}, {{name: embed-up, alias: embed-test}}]
claude-api-key:
  - api-key: up-claude
    base-url: {upstream}
    models: [{{name: claude-up, alias: claude-test}}]
gemini-api-key:
  - api-key: up-gemini
    base-url: {upstream}
    models: [{{name: gemini-up, alias: gemini-test}}]
"""


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    return str(file)


@pytest.fixture(autouse=True)
def few_certificates(monkeypatch: pytest.MonkeyPatch, one_certificate: str) -> None:
    """Every SDK client loads all the certificates there are, which takes longer than everything a test does."""
    monkeypatch.setenv("SSL_CERT_FILE", one_certificate)


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[RunningProxy]:
    config = CONFIG.format(client_key=CLIENT_KEY, upstream=upstream.url)
    async with running_proxy(config, directory=tmp_path) as running:
        yield running


@pytest.fixture
async def openai_client(proxy: RunningProxy) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=CLIENT_KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def claude_client(proxy: RunningProxy) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key=CLIENT_KEY, base_url=proxy.url, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def gemini_client(proxy: RunningProxy) -> AsyncIterator[AsyncClient]:
    options = HttpOptions(base_url=proxy.url, timeout=60_000)
    async with genai.Client(api_key=CLIENT_KEY, http_options=options).aio as client:
        yield client


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On the loop that `serve` runs on."""
    return {"uvloop": uvloop.new_event_loop}
