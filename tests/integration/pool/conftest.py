"""The real SDKs in front of a proxy with twenty credentials of each of three providers that fail by a seeded plan."""

import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from anthropic import AsyncAnthropic
from google import genai
from google.genai.types import HttpOptions
from openai import AsyncOpenAI

from tests.support.fake_upstream import Behaviour, FakeUpstream, running_upstream
from tests.support.families import CLAUDE, GEMINI, OPENAI, Family
from tests.support.proxy import RunningProxy, running_proxy

KEYS = 20
HEALTHY = 3
"""Credentials of each provider that never fail: so every request can succeed."""
RESET_S = 40
FIRST_BYTE_S = 1.5
PATIENT = {"executor.execute": "15s", "executor.execute_stream": "15s"}
CLIENT_KEY = "client-key-1"
ASK: list[Any] = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class Fault:
    """One way to fail, and what the decision trace must say about it."""

    name: str
    behaviour: Behaviour
    status: int
    reason: str = ""
    """Why the credential rests; empty: it does not."""
    seconds: float = 0.0
    only_stream: bool = False
    doubles: bool = False
    """Each time it happens again the rest is twice as long."""


def _reset(family: Family) -> Behaviour:
    """A 429 that says in the provider's own way when it is over."""
    if family is GEMINI:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RESET_S}s"}
        error = {"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED", "details": [info]}}
        return Behaviour(status=429, error=error)
    if family is CLAUDE:
        at = (datetime.now(UTC) + timedelta(seconds=RESET_S)).strftime("%Y-%m-%dT%H:%M:%SZ")
        headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": at}
        return Behaviour(status=429, headers=headers)
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{RESET_S}s"}
    return Behaviour(status=429, headers=headers)


def faults(family: Family) -> list[Fault]:
    """Everything that may go wrong before the first byte."""
    return [
        Fault("key refused", Behaviour(status=401), 401, "unauthorized", 1800),
        Fault("forbidden", Behaviour(status=403), 403, "payment_required", 1800),
        Fault("limit", Behaviour(status=429, headers={"Retry-After": str(RESET_S)}), 429, "quota", RESET_S),
        Fault("limit with a reset of its own", _reset(family), 429, "quota", RESET_S),
        Fault("limit without a time", Behaviour(status=429), 429, "quota", 1, doubles=True),
        Fault("broken", Behaviour(status=500), 500, "transient", 60),
        Fault("unavailable", Behaviour(status=503), 503, "transient", 60),
        Fault("overloaded", Behaviour(status=529), 529, "transient", 60),
        Fault("stream cut", Behaviour(cut_after_events=0), 502, only_stream=True),
    ]


class PlannedUpstream(FakeUpstream):
    """A provider that writes down which behaviour it chose for whom."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[tuple[str, Behaviour]] = []

    def _next(self, model: str, key: str) -> Behaviour:
        behaviour = super()._next(model, key)
        self.chosen.append((key, behaviour))
        return behaviour


@dataclass
class Seat:
    """One provider, the SDK that talks to it through the proxy, and the plan of its failures."""

    family: Family
    upstream: FakeUpstream
    ask: Callable[[bool], Awaitable[tuple[str, str]]]
    """A request (streamed or not) by the SDK: the text it got, and the id of the request."""
    chosen: list[tuple[str, Behaviour]]
    known: Mapping[int, Fault]
    """By the identity of its behaviour."""


@dataclass
class Pool:
    """A running proxy and its three providers."""

    proxy: RunningProxy
    seats: list[Seat]

    def key_of(self, credential_id: str) -> str:
        """The upstream key of a credential."""
        credential = self.proxy.proxy.gateway.state.pool.by_id[credential_id]
        assert credential.secret is not None
        return credential.secret.reveal()


def _plan(family: Family, upstream: FakeUpstream, luck: random.Random) -> dict[int, Fault]:
    """Give each key its failures in order, and a good answer after them."""
    known: dict[int, Fault] = {}
    kinds = faults(family)
    healthy = set(luck.sample(range(KEYS), HEALTHY))
    late = luck.choice(sorted(set(range(KEYS)) - healthy))
    for number in range(KEYS):
        planned = [] if number in healthy else luck.choices(kinds, k=luck.randint(1, 3))
        if number == late:
            # One is enough: each costs the whole limit for the first byte.
            planned = [Fault("silent", Behaviour(hang=True), 504)]
        script = []
        for fault in planned:
            behaviour = Behaviour(**{name: getattr(fault.behaviour, name) for name in Behaviour.__dataclass_fields__})
            known[id(behaviour)] = fault
            script.append(behaviour)
        upstream.behave_for_key(key_of(family, number), *script, Behaviour())
    return known


def key_of(family: Family, number: int) -> str:
    return f"up-{family.name}-{number:02d}"


def _sdk_calls(
    openai: AsyncOpenAI, claude: AsyncAnthropic, gemini: Any
) -> dict[str, Callable[[bool], Awaitable[tuple[str, str]]]]:
    async def ask_openai(stream: bool) -> tuple[str, str]:
        raw: Any = await openai.chat.completions.with_raw_response.create(model="m-openai", messages=ASK, stream=stream)
        answer = raw.parse()
        if not stream:
            return answer.choices[0].message.content, raw.headers["x-request-id"]
        pieces = [it.choices[0].delta.content async for it in answer if it.choices and it.choices[0].delta.content]
        return " ".join(pieces), raw.headers["x-request-id"]

    async def ask_claude(stream: bool) -> tuple[str, str]:
        if not stream:
            raw: Any = await claude.messages.with_raw_response.create(model="m-claude", max_tokens=50, messages=ASK)
            return (await raw.parse()).content[0].text, raw.headers["x-request-id"]
        async with claude.messages.stream(model="m-claude", max_tokens=50, messages=ASK) as events:
            pieces = [text async for text in events.text_stream]
            return " ".join(pieces), events.response.headers["x-request-id"]

    async def ask_gemini(stream: bool) -> tuple[str, str]:
        if not stream:
            answer = await gemini.models.generate_content(model="m-gemini", contents="Hello")
            return answer.text, _header(answer, "x-request-id")
        chunks = [it async for it in await gemini.models.generate_content_stream(model="m-gemini", contents="Hello")]
        return " ".join(it.text for it in chunks), _header(chunks[0], "x-request-id")

    return {"openai": ask_openai, "claude": ask_claude, "gemini": ask_gemini}


def _header(answer: Any, name: str) -> str:
    headers: Mapping[str, str] = answer.sdk_http_response.headers
    return next(value for key, value in headers.items() if key.lower() == name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, one_certificate: str) -> Iterator[Callable[[int], Any]]:
    """A pool whose plan has this seed: `async with started(seed) as pool`."""
    monkeypatch.setenv("SSL_CERT_FILE", one_certificate)
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield lambda seed: _started(seed, Path(made))


@asynccontextmanager
async def _started(seed: int, directory: Path) -> AsyncIterator[Pool]:
    luck = random.Random(seed)
    async with AsyncExitStack() as stack:
        seats: list[Any] = []
        top: dict[str, Any] = {
            "api-keys": [CLIENT_KEY],
            "timeouts": {"first-byte": f"{FIRST_BYTE_S}s"},
            # Longer than the limit for the first byte: else the plugin counts as silent, and nobody else is asked.
            "plugins": {"policy": {name: {"timeouts": PATIENT} for name in ("openai-compat", "claude", "gemini")}},
        }
        for family in (OPENAI, CLAUDE, GEMINI):
            upstream = await stack.enter_async_context(running_upstream(PlannedUpstream()))
            keys = [key_of(family, number) for number in range(KEYS)]
            top[family.section] = family.entries(upstream.url, keys, models=[{"name": f"m-{family.name}"}])
            seats.append((family, upstream, _plan(family, upstream, luck)))

        proxy = await stack.enter_async_context(running_proxy(json.dumps(top), directory=directory))
        openai = AsyncOpenAI(api_key=CLIENT_KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=20)
        claude = AsyncAnthropic(api_key=CLIENT_KEY, base_url=proxy.url, max_retries=0, timeout=20)
        options = HttpOptions(base_url=proxy.url, timeout=20_000)
        gemini = genai.Client(api_key=CLIENT_KEY, http_options=options).aio
        for client in (openai, claude, gemini):
            await stack.enter_async_context(client)  # type: ignore[arg-type]
        calls = _sdk_calls(openai, claude, gemini)
        yield Pool(
            proxy,
            [Seat(family, upstream, calls[family.name], upstream.chosen, known) for family, upstream, known in seats],
        )


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every SDK client loads all the certificates there are, which takes longer than everything a test does."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    return str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On the loop that `serve` runs on."""
    return {"uvloop": uvloop.new_event_loop}
