"""The real SDKs in front of a proxy with twenty credentials of each of three providers that fail by a seeded plan."""

import asyncio
import json
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from aiohttp import web
from anthropic import AnthropicError, AsyncAnthropic
from google import genai
from google.genai.errors import APIError as GeminiError
from google.genai.types import HttpOptions
from openai import AsyncOpenAI, OpenAIError

from tests.support.fake_upstream import Behaviour, FakeUpstream, running_upstream
from tests.support.families import CLAUDE, GEMINI, OPENAI, Family
from tests.support.proxy import RunningProxy, running_proxy

KEYS = 20
HEALTHY = 3
"""Credentials of each provider that never fail: so every request can succeed."""
RESET_S = 600
"""Longer than the test takes on any machine: what rests so long rests to its end."""
FIRST_BYTE_S = 3.0
PATIENT = {"executor.execute": "60s", "executor.execute_stream": "60s"}
CLIENT_KEY = "client-key-1"


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
    is_late: bool = False
    """The client has a part of the answer already: it is told in the stream, and nobody else is asked."""


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
    """Everything that may go wrong, before the first byte and after it."""
    late = {"openai": 3, "claude": 4, "gemini": 1}[family.name]  # events until there is some text
    overload = {"openai": 500, "claude": 529, "gemini": 503}[family.name]
    # Gemini's protocol has no end marker: whatever ends cleanly is whole.
    ended = [Fault("ended late", Behaviour(end_after_events=late), 502, only_stream=True, is_late=True)]
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    unknown = {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT", "details": [info]}}
    own = [Fault("key unknown", Behaviour(status=400, error=unknown), 400, "unauthorized", 1800)]
    return (ended if family is not GEMINI else own) + [
        Fault("key refused", Behaviour(status=401), 401, "unauthorized", 1800),
        Fault("forbidden", Behaviour(status=403), 403, "payment_required", 1800),
        Fault("limit", Behaviour(status=429, headers={"Retry-After": str(RESET_S)}), 429, "quota", RESET_S),
        Fault("limit with a reset of its own", _reset(family), 429, "quota", RESET_S),
        Fault("limit without a time", Behaviour(status=429), 429, "quota", 1, doubles=True),
        Fault("broken", Behaviour(status=500), 500, "transient", 60),
        Fault("unavailable", Behaviour(status=503), 503, "transient", 60),
        Fault("overloaded", Behaviour(status=529), 529, "transient", 60),
        Fault("stream cut", Behaviour(cut_after_events=0), 502, only_stream=True),
        Fault("error first", Behaviour(error_after_events=0), overload, "transient", 60, only_stream=True),
        Fault("cut late", Behaviour(cut_after_events=late), 502, only_stream=True, is_late=True),
        Fault(
            "error late", Behaviour(error_after_events=late), overload, "transient", 60, only_stream=True, is_late=True
        ),
    ]


class PlannedUpstream(FakeUpstream):
    """A provider that writes down which behaviour it chose for which request and key."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: dict[str, list[tuple[str, Behaviour]]] = defaultdict(list)
        """By the number that the request says, in order."""
        self._asked: ContextVar[str] = ContextVar("asked")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        found = re.search(rb"Hello (\d+)", await request.read())
        assert found is not None
        self._asked.set(found[1].decode())
        return await super().handle(request)

    def _next(self, model: str, key: str) -> Behaviour:
        behaviour = super()._next(model, key)
        self.chosen[self._asked.get()].append((key, behaviour))
        return behaviour

    def arrived(self, said: str) -> None:
        """The client has the beginning of the answer."""
        behaviour = self.chosen[said.removeprefix("Hello ")][-1][1]
        if behaviour.release is not None:
            behaviour.release.set()


@dataclass
class Told:
    """What an SDK made of an answer."""

    text: str = ""
    request_id: str = ""
    error: Exception | None = None


Arrived = Callable[[], None]
Ask = Callable[[str, bool, Arrived], Awaitable[Told]]
"""A request (streamed or not) that says the text; tells when the beginning of its answer is there."""


@dataclass
class Seat:
    """One provider, the SDK that talks to it through the proxy, and the plan of its failures."""

    family: Family
    upstream: PlannedUpstream
    ask: Ask
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
    """Give each key its failures in order, and a good answer after them. Every kind is the first of some key's."""
    known: dict[int, Fault] = {}
    kinds = faults(family)
    # One that is silent is enough: each costs the whole limit for the first byte.
    first = [Fault("silent", Behaviour(hang=True), 504), *kinds]
    numbers = luck.sample(range(KEYS), KEYS)
    for place, number in enumerate(numbers):
        further = luck.choices(kinds, k=luck.randint(0, 2))
        planned = [first[place] if place < len(first) else luck.choice(kinds), *further]
        if place == 0:
            planned = first[:1]
        elif place >= KEYS - HEALTHY:
            planned = []
        script = []
        for fault in planned:
            release = asyncio.Event() if fault.is_late else None
            behaviour = replace(fault.behaviour, release=release)
            known[id(behaviour)] = fault
            script.append(behaviour)
        upstream.behave_for_key(key_of(family, number), *script, Behaviour())
    return known


def key_of(family: Family, number: int) -> str:
    return f"up-{family.name}-{number:02d}"


def _sdk_calls(openai: AsyncOpenAI, claude: AsyncAnthropic, gemini: Any) -> dict[str, Ask]:
    async def ask_openai(said: str, stream: bool, arrived: Arrived) -> Told:
        raw: Any = await openai.chat.completions.with_raw_response.create(
            model="m-openai", messages=_messages(said), stream=stream
        )
        answer, request_id = raw.parse(), raw.headers["x-request-id"]
        if not stream:
            return Told(answer.choices[0].message.content, request_id)
        texts = (it.choices[0].delta.content async for it in answer if it.choices and it.choices[0].delta.content)
        return await _told(texts, request_id, OpenAIError, arrived)

    async def ask_claude(said: str, stream: bool, arrived: Arrived) -> Told:
        asked: Any = {"model": "m-claude", "max_tokens": 50, "messages": _messages(said)}
        if not stream:
            raw: Any = await claude.messages.with_raw_response.create(**asked)
            return Told((await raw.parse()).content[0].text, raw.headers["x-request-id"])
        async with claude.messages.stream(**asked) as events:
            request_id = events.response.headers["x-request-id"]
            return await _told(events.text_stream, request_id, AnthropicError, arrived)

    async def ask_gemini(said: str, stream: bool, arrived: Arrived) -> Told:
        if not stream:
            answer = await gemini.models.generate_content(model="m-gemini", contents=said)
            return Told(answer.text, _header(answer, "x-request-id"))
        told = Told()

        async def texts() -> AsyncIterator[str]:
            async for it in await gemini.models.generate_content_stream(model="m-gemini", contents=said):
                told.request_id = _header(it, "x-request-id")
                yield it.text

        found = await _told(texts(), "", GeminiError, arrived)
        return Told(found.text, told.request_id, found.error)

    return {"openai": ask_openai, "claude": ask_claude, "gemini": ask_gemini}


async def _told(texts: AsyncIterator[str], request_id: str, of_sdk: type[Exception], arrived: Arrived) -> Told:
    """What comes of a stream, with the error that the SDK found in it."""
    told = Told(request_id=request_id)
    pieces = []
    try:
        async for text in texts:
            pieces.append(text)
            arrived()
    except of_sdk as error:
        told.error = error
    told.text = " ".join(pieces)
    return told


def _messages(said: str) -> list[Any]:
    return [{"role": "user", "content": said}]


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
        openai = AsyncOpenAI(api_key=CLIENT_KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=60)
        claude = AsyncAnthropic(api_key=CLIENT_KEY, base_url=proxy.url, max_retries=0, timeout=60)
        options = HttpOptions(base_url=proxy.url, timeout=60_000)
        gemini = genai.Client(api_key=CLIENT_KEY, http_options=options).aio
        for client in (openai, claude, gemini):
            await stack.enter_async_context(client)  # type: ignore[arg-type]
        calls = _sdk_calls(openai, claude, gemini)
        yield Pool(
            proxy,
            [Seat(family, upstream, calls[family.name], known) for family, upstream, known in seats],
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
