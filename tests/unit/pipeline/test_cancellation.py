"""A client that leaves, at every single await of a request with retries: nothing stays open, and all is told once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import UNSET

from host.config.model import Streaming
from host.runtime.handle import Reply
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import FakePlugin, World, as_item, client_request, compat_config, executor, world
from tests.support.streams import CHAT, sse

HOOKS = (
    *("model.route", "request.intercept_before", "request.intercept_after", "scheduler.pick"),
    *("response.intercept_after", "response.normalize_before", "response.intercept_stream_chunk"),
)
OPENING = sse({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
MAX_STEPS = 200


class SlowItems:
    """A stream that takes a turn of the event loop for everything."""

    def __init__(self, script: Sequence[Any]) -> None:
        self.usage: Usage | None = None
        self.over = False
        self._script = script

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for step in self._script:
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                self.over = True
                raise step
            yield as_item(step)
        await asyncio.sleep(0)
        self.over, self.usage = True, Usage(output_tokens=5)

    async def aclose(self, reason: str = "client_gone") -> None:
        await asyncio.sleep(0)
        self.over = True


@dataclass
class Upstream:
    """Fails while its stream is held back, then before its stream, then answers."""

    calls: int = 0
    opened: list[SlowItems] = field(default_factory=list)

    async def stream(self, _: Any) -> Reply:
        await self._called()
        script = [CHAT[:40], CHAT[40:120], CHAT[120:]] if self.calls > 2 else [OPENING, failure(503)]
        self.opened.append(SlowItems(script))
        return Reply(result=ExecutorResponse(), items=self.opened[-1])

    async def execute(self, _: Any) -> ExecutorResponse:
        await self._called()
        if self.calls == 1:
            raise failure(503)
        return ExecutorResponse(body=Body.from_value({"usage": {"completion_tokens": 5}}))

    async def _called(self) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.calls == 2:
            raise failure(429)


def failure(status: int) -> PluginError:
    return PluginError(ErrorBody(message="busy", http_status=status))


async def no_opinion(_: Any) -> None:
    await asyncio.sleep(0)


def gateway(upstream: Upstream, *, hooked: bool) -> tuple[World, FakePlugin]:
    watched = dict.fromkeys(("usage.handle", "request.complete"), lambda _: None)
    hooks = FakePlugin(id="hooks", hooks={**(dict.fromkeys(HOOKS, no_opinion) if hooked else {}), **watched})
    config = compat_config(
        keys=("k1", "k2", "k3"), streaming=Streaming(buffer_handshake=True, bootstrap_retries=1), decision_trace=False
    )
    return world(executor(execute=upstream.execute, stream=upstream.stream), hooks, config=config), hooks


async def client(w: World, received: bytearray, *, stream: bool) -> None:
    """Reads to the end, and closes as the web layer does: in a task of its own."""
    if not stream:
        await w.gateway.execute(client_request())
        received += CHAT
        return
    opened: Any = await w.gateway.execute_stream(client_request(stream=True))
    reason = "client_gone"
    try:
        async for item in opened:
            received += (item.body if item.raw is UNSET else item.raw).to_bytes()
            await asyncio.sleep(0)
        reason = "finished"
    finally:
        w.tasks.start(opened.aclose(reason), name="close")


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_whenever_a_client_leaves_everything_is_closed_and_told_exactly_once(stream: bool, hooked: bool):
    for steps in range(1, MAX_STEPS):
        upstream = Upstream()
        w, hooks = gateway(upstream, hooked=hooked)
        received = bytearray()
        request = asyncio.ensure_future(client(w, received, stream=stream))
        for _ in range(steps):
            await asyncio.sleep(0)
        is_served = request.done()
        request.cancel()
        await asyncio.wait([request])
        await w.settled()
        assert all(items.over for items in upstream.opened), steps
        (completed,) = hooks.seen("request.complete")
        assert [used.attempt for used in hooks.seen("usage.handle")] == list(range(1, upstream.calls + 1)), steps
        if is_served:
            assert (completed.outcome, completed.usage.output_tokens, upstream.calls) == ("succeeded", 5, 3)
            return
        # Who leaves with the whole answer may have been served.
        assert completed.outcome == "canceled" or b"total_tokens" in received, steps
    raise AssertionError("it was never served")
