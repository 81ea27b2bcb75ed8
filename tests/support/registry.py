"""What tests of the plugin registry ask of it."""

import asyncio
import gc
from typing import Any

from host.config.model import PluginSection
from host.runtime.handle import PluginSnapshot
from host.runtime.scope import RequestScope
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import Bench

ON = PluginSection(enabled=True)


def routers(snapshot: PluginSnapshot) -> list[str]:
    return [binding.plugin_id for binding in snapshot.implementers("model.route")]


async def route(stage: Bench, snapshot: PluginSnapshot, plugin_id: str) -> Any:
    binding = snapshot.binding(plugin_id, "model.route")
    assert binding is not None
    return await stage.invoker.call(binding, lambda _: ModelRouteRequest(), RequestScope(request_id="r"))


async def settled(stage: Bench) -> None:
    """Everything that was set going has been done: drains and refreshes."""
    gc.collect()
    async with asyncio.timeout(60):
        for _ in range(20):
            await asyncio.sleep(0)
