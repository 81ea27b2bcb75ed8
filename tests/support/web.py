"""A web server over a gateway that a test scripts; everything else is real: sockets, HTTP, streams."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from host.config.model import Config
from host.observe.metrics import Metrics
from host.pipeline.request import ClientRequest, ClientResponse, Principal
from host.web.app import make_app
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.frames import Usage
from pluginabi.immutable import Headers, freeze_headers
from pluginabi.payloads.common import ModelInfo

WAIT_S = 60.0


def event(value: Any, name: str | None = None) -> StreamItem:
    """An event item from a JSON-like value or JSON text."""
    body = Body.from_bytes(value.encode()) if isinstance(value, str) else Body.from_value(value)
    return StreamItem(event=name, body=body)


def raw(text: str) -> StreamItem:
    """A raw item."""
    return StreamItem(raw=Body(text=text))


Step = StreamItem | BaseException | Callable[[], Awaitable[None]]


class FakeStream:
    """Yields scripted items; a step may also be an exception to raise or an async function to wait for."""

    def __init__(
        self, steps: Iterable[Step], *, headers: Mapping[str, Sequence[str]] | None = None, marker: str = "[DONE]"
    ) -> None:
        self._steps = list(steps)
        self._marker = marker
        self.headers: Headers = freeze_headers((k, v) for k, vs in (headers or {}).items() for v in vs)
        self.terminal_seen = False
        self.usage: Usage | None = None
        self.closed = asyncio.Event()
        self.close_reason = ""
        self.cancelled = False
        self.yielded = 0
        self._seen = ""
        self._iterator = self._run()

    def __aiter__(self) -> AsyncIterator[StreamItem]:
        return self._iterator

    async def _run(self) -> AsyncIterator[StreamItem]:
        for step in self._steps:
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                try:
                    await step()
                except asyncio.CancelledError:
                    self.cancelled = True
                    raise
                continue
            if isinstance(step.raw, Body):
                self._seen += step.raw.text or ""
                self.terminal_seen = self._marker in self._seen
            self.yielded += 1
            yield step

    async def aclose(self, reason: str = "client_gone") -> None:
        self.close_reason = reason
        self.closed.set()


class FakeGateway:
    """Answers with what the test put into `answer` or `steps`; remembers the requests."""

    def __init__(self) -> None:
        self.requests: list[ClientRequest] = []
        self.models: list[ModelInfo] = []
        self.answer: ClientResponse | BaseException = ClientResponse(status=200, body=b'{"ok":true}')
        self.stream: FakeStream | BaseException | ClientResponse | None = None
        self.before: Callable[[], Awaitable[None]] | None = None
        self.cancelled = asyncio.Event()

    @property
    def state(self) -> "FakeGateway":
        return self

    def listing(self) -> Sequence[ModelInfo]:
        return tuple(self.models)

    def info(self, model: str, /) -> ModelInfo | None:
        return next((info for info in self.models if info.id == model), None)

    async def execute(self, request: ClientRequest) -> ClientResponse:
        self.requests.append(request)
        await self._wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def execute_stream(self, request: ClientRequest) -> Any:
        self.requests.append(request)
        await self._wait()
        if isinstance(self.stream, BaseException):
            raise self.stream
        assert self.stream is not None
        return self.stream

    async def _wait(self) -> None:
        if self.before is not None:
            try:
                await self.before()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    def streams(self, *steps: Step, **fields: Any) -> FakeStream:
        """Script the next stream."""
        self.stream = FakeStream(steps, **fields)
        return self.stream

    @property
    def request(self) -> ClientRequest:
        """The only request so far."""
        assert len(self.requests) == 1
        return self.requests[0]

    @property
    def payload(self) -> Any:
        """The body of the only request, decoded."""
        return json.loads(self.request.body)


class AccessDenied(Exception):
    """As the pipeline's: carries an error object."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.body = body


class FakeAccess:
    """Lets everybody in, unless `denies` is set; remembers what it was shown."""

    def __init__(self) -> None:
        self.denies: BaseException | None = None
        self.shown: list[dict[str, Any]] = []
        self.reads_body = False
        self.principal = Principal(name="tester", provider="config-api-key")

    async def authenticate(self, *, read_body: Callable[[], Awaitable[bytes]], **shown: Any) -> Principal:
        if self.reads_body:
            shown["body"] = await read_body()
        self.shown.append(shown)
        if self.denies is not None:
            raise self.denies
        return self.principal


class FakeHealth:
    """Ready unless told otherwise."""

    def __init__(self) -> None:
        self.is_ready = True

    def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"plugins": {}}


@dataclass
class Proxy:
    """A running web layer and its scripted neighbours."""

    url: str
    port: int
    gateway: FakeGateway
    access: FakeAccess
    health: FakeHealth
    metrics: Metrics
    client: aiohttp.ClientSession
    config: Config = field(default_factory=Config)

    async def post(self, path: str, body: Any = None, **options: Any) -> "Answer":
        """POST a JSON-like value (or bytes) and read the whole answer."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send("POST", path, data=sent, **options)

    async def get(self, path: str, **options: Any) -> "Answer":
        return await self.send("GET", path, **options)

    async def send(self, method: str, path: str, **options: Any) -> "Answer":
        options.setdefault("allow_redirects", False)
        async with asyncio.timeout(WAIT_S):
            async with self.client.request(method, self.url + path, **options) as response:
                return Answer(response.status, response.headers, await response.read())

    async def socket(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A plain connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: Any
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def running(config: Config | None = None) -> AsyncIterator[Proxy]:
    """Serve on a free port of 127.0.0.1; `proxy.config` may be replaced at any time."""
    gateway, access, health, metrics = FakeGateway(), FakeAccess(), FakeHealth(), Metrics()
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        proxy = Proxy("", 0, gateway, access, health, metrics, client, config or Config())
        server = make_app(gateway, access, state=lambda: proxy.config, health=health, metrics=metrics)
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.port = runner.addresses[0][1]
            proxy.url = f"http://127.0.0.1:{proxy.port}"
            yield proxy
        finally:
            await client.close()
            await runner.cleanup()


def failure(message: str = "slow", **fields: Any) -> PluginError:
    """An error that the pipeline raises."""
    return PluginError(message, **fields)
