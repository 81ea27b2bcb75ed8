"""A provider that can be told to misbehave: OpenAI, Anthropic and Gemini endpoints on a real port.

What it does is chosen per model with `upstream.behave("m1", Behaviour(...))`; every request is recorded, and a test can
wait until the provider saw the client leave.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support import upstream_shapes as shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one model answers. The default is a complete, correct answer."""

    text: str = "Hello from upstream"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Any = None
    """Body of an error answer: a JSON-like value, or bytes sent as they are."""
    cut_after_events: int | None = None
    """Close the socket after that many stream events, without the end of the transfer."""
    end_after_events: int | None = None
    """End the stream cleanly after that many events, without the protocol's terminal event."""
    error_after_events: int | None = None
    """Send the protocol's error event after that many events and end."""
    release: asyncio.Event | None = None
    """What a stream has to wait for before it is cut, ended or broken as above: so the client had the events first."""
    hang_after_events: int | None = None
    """Stop sending after that many events and keep the connection open until the client leaves."""
    hang: bool = False
    """Never answer; wait until the client leaves."""
    tool_call: tuple[str, str] | None = None
    """Call this tool with these arguments (JSON text) instead of saying something."""


@dataclass(slots=True)
class Recorded:
    """One request as the provider saw it."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    model: str
    client_left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeUpstream:
    """Started by `running_upstream()`; `url` has no path."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Recorded] = []
        self._arrived = asyncio.Condition()
        self._behaviours: dict[str, list[Behaviour]] = {}
        self._keys: dict[str, list[Behaviour]] = {}

    def behave(self, model: str, *behaviours: Behaviour) -> None:
        """Answers of `model`, in order; the last one repeats."""
        self._behaviours[model] = list(behaviours)

    def behave_for_key(self, key: str, *behaviours: Behaviour) -> None:
        """Answers to requests with this credential, in order; beats the model's."""
        self._keys[key] = list(behaviours)

    async def request(self, number: int = 0) -> Recorded:
        """The request with this number (from 0), as soon as it has arrived."""
        async with self._arrived, asyncio.timeout(60):
            await self._arrived.wait_for(lambda: len(self.requests) > number)
        return self.requests[number]

    def _next(self, model: str, key: str) -> Behaviour:
        queue = self._keys.get(key) or self._behaviours.get(model) or [Behaviour()]
        return queue.pop(0) if len(queue) > 1 else queue[0]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        shape, model, stream = shapes.identify(request.path, body, request.query_string)
        recorded = Recorded(request.path, request.query_string, dict(request.headers), body, model)
        async with self._arrived:
            self.requests.append(recorded)
            self._arrived.notify_all()
        authorization = request.headers.get("Authorization", "").removeprefix("Bearer ")
        key = authorization or request.headers.get("x-api-key") or request.headers.get("x-goog-api-key") or ""
        behaviour = self._next(model, key)
        try:
            if behaviour.hang:
                await asyncio.Event().wait()
            if behaviour.status != 200 or (behaviour.error is not None and not stream):
                return _error_answer(behaviour)
            if stream:
                return await self._stream(request, shape, model, behaviour)
            return web.json_response(
                shape.answer(model, behaviour.text, behaviour.tool_call), headers=behaviour.headers
            )
        except asyncio.CancelledError:
            recorded.client_left.set()
            raise

    async def _stream(
        self, request: web.Request, shape: shapes.Shape, model: str, behaviour: Behaviour
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", **behaviour.headers}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        ends = (behaviour.cut_after_events, behaviour.end_after_events, behaviour.error_after_events)
        for number, event in enumerate(shape.events(model, behaviour.text, behaviour.tool_call)):
            if behaviour.release is not None and number in ends:
                await behaviour.release.wait()
            if number == behaviour.cut_after_events:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == behaviour.end_after_events:
                break
            if number == behaviour.error_after_events:
                await response.write(shape.error_event(behaviour.error))
                break
            if number == behaviour.hang_after_events:
                await asyncio.Event().wait()
            await response.write(event)
        await response.write_eof()
        return response


def _error_answer(behaviour: Behaviour) -> web.Response:
    if isinstance(behaviour.error, bytes):
        return web.Response(status=behaviour.status, body=behaviour.error, headers=behaviour.headers)
    document = behaviour.error if behaviour.error is not None else {"error": {"message": "no", "type": "test_error"}}
    return web.json_response(document, status=behaviour.status, headers=behaviour.headers)


@asynccontextmanager
async def running_upstream(upstream: FakeUpstream | None = None) -> AsyncIterator[FakeUpstream]:
    """A provider on a free loopback port, stopped at the end."""
    upstream = upstream or FakeUpstream()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield upstream
    finally:
        await runner.cleanup()
