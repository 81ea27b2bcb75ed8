"""Doubles behind the host's callbacks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from host.runtime.scope import CallScope
from pluginabi.body import StreamItem
from pluginabi.frames import Usage
from pluginabi.methods import PERMISSIONS
from pluginabi.payloads.callbacks import (
    ModelCallRequest,
    ModelCallResponse,
)

ALL = frozenset(PERMISSIONS)


class Items:
    """An `ItemStream` over a list; waits at its end when told to."""

    def __init__(self, *items: StreamItem, ends: Exception | None = None, hangs: bool = False) -> None:
        self.usage: Usage | None = None
        self.closed: list[str] = []
        self.done = asyncio.Event()
        self._items, self._ends, self._hangs = items, ends, hangs

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for item in self._items:
            yield item
        if self._hangs:
            await self.done.wait()
        if self._ends is not None:
            raise self._ends
        self.usage = Usage(output_tokens=3)

    async def aclose(self, reason: str = "client_gone") -> None:
        self.closed.append(reason)
        self.done.set()


class Models:
    """A `ModelRunner` that notes its calls."""

    def __init__(self, answer: Any = None, items: Items | None = None) -> None:
        self.answer = answer or ModelCallResponse(status=200)
        self.items = items
        self.scopes: list[CallScope] = []
        self.running = asyncio.Event()
        self.hold: asyncio.Event | None = None

    async def execute(self, params: ModelCallRequest, scope: CallScope) -> ModelCallResponse:
        self.scopes.append(scope)
        self.running.set()
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def execute_stream(self, params: ModelCallRequest, scope: CallScope) -> tuple[ModelCallResponse, Any]:
        return await self.execute(params, scope), self.items


def scope(**fields: Any) -> CallScope:
    return CallScope(**{"plugin_id": "p", "method": "model.route", "permissions": ALL, **fields})


def refusal(caught: Any) -> tuple[str, int]:
    return caught.value.code, caught.value.http_status
