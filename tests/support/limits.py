"""A client of the plugin `limits`, for tests: it asks as the pipeline does, on a clock of its own."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pluginabi.errors import ErrorBody, PluginError
from pluginabi.frames import Usage
from pluginabi.payloads.intercept import RequestCompleteRequest, RequestInterceptRequest
from pluginapi.testing import FakeHost, PluginHarness
from plugins.limits.plugin import ClientLimits

NOON_S = 1_780_315_200.0
"""2026-06-01 12:00:00 UTC, a Monday."""
AWAY = PluginError(
    ErrorBody(message="away", code="kv_unavailable", http_status=503, origin="host", details={"nodes": 3})
)


class Clock:
    def __init__(self) -> None:
        self.now_s = NOON_S + 15

    def __call__(self) -> float:
        return self.now_s


class Client:
    """Asks the plugin as the pipeline does."""

    def __init__(self, plugin: PluginHarness, clock: Clock) -> None:
        self.plugin, self.clock, self.asked = plugin, clock, 0

    async def ask(self, *, caller: str = "ann", model: str = "m", size: int = 40, parent: str | None = None) -> str:
        """Ask to be let in; the request's id. Raises PluginError."""
        self.asked += 1
        request_id = f"r{self.asked}"
        answer = await self.plugin.call(
            "request.intercept_before",
            RequestInterceptRequest(
                request_id=request_id,
                parent_request_id=parent,
                requested_model=model,
                body_size=size,
                metadata={"caller": caller, "caller_scope": f"scope-{caller}"},
            ),
        )
        self.headers = {name: values[0] for name, values in answer.response_headers.items()}
        return request_id

    async def end(self, request_id: str, usage: Usage | None = None) -> None:
        await self.plugin.call("request.complete", RequestCompleteRequest(request_id=request_id, usage=usage))

    async def refused(self, **fields: Any) -> ErrorBody:
        with pytest.raises(PluginError) as refusal:
            await self.ask(**fields)
        return refusal.value.body


@asynccontextmanager
async def limits(*rules: Mapping[str, Any], host: FakeHost | None = None, **config: Any) -> AsyncIterator[Client]:
    clock = Clock()

    class Clocked(ClientLimits):
        def __init__(self) -> None:
            super().__init__(clock)

    harness = PluginHarness(
        Clocked, host=host, config={"rules": list(rules), **config}, permissions=("kv",), timeout_s=5
    )
    async with harness as plugin:
        yield Client(plugin, clock)
