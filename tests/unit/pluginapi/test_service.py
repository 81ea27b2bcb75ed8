"""The service behind a session: what happens to calls before, between and after the author's code."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pluginabi import FEATURES, IncomingCall, Limits, PluginError, Session, memory_pair
from pluginapi import ModelRouteRequest, ModelRouteResponse, Plugin
from pluginapi.dispatch import Dispatcher
from pluginapi.service import PluginService
from tests.support.wire import within


class Recorder(Plugin):
    """Notes the tasks its hooks run in."""

    id = "recorder"
    version = "1.0.0"

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[asyncio.Task[Any] | None] = []

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse:
        self.tasks.append(asyncio.current_task())
        return ModelRouteResponse(reason="seen")


@asynccontextmanager
async def served(plugin: Plugin) -> AsyncIterator[Session]:
    """The host's session with `plugin`."""
    host_channel, plugin_channel = memory_pair()
    service = PluginService(Dispatcher(plugin), plugin_id="recorder")

    def session(channel: Any, role: Any, handler: Any) -> Session:
        features = frozenset(FEATURES)
        return Session(channel, role=role, features=features, peer="p", peer_limits=Limits(), handler=handler)

    plugin_session = session(plugin_channel, "plugin", service.handle)
    service.attach(plugin_session)
    host = session(host_channel, "host", None)
    readers = [asyncio.create_task(side.run()) for side in (host, plugin_session)]
    try:
        yield host
    finally:
        await within(service.stop())
        await within(host.close())
        await within(asyncio.wait(readers))


async def test_a_call_that_is_cancelled_before_its_task_began_is_closed_and_never_reaches_the_author() -> None:
    plugin = Recorder()
    async with served(plugin) as host:
        # Both frames are read in one turn, in which no task can begin.
        call = host.start_call("model.route", b"{}")
        call.cancel()
        closed = asyncio.Event()
        call.on_closed(closed.set)
        with pytest.raises(PluginError, match="cancelled"):
            await within(call.reply())
        await within(closed.wait())
        assert (host.in_flight, plugin.tasks) == (0, [])


async def test_every_hook_runs_in_a_task_of_its_own() -> None:
    plugin = Recorder()
    async with served(plugin) as host:
        calls = [host.start_call("model.route", b"{}") for _ in range(3)]
        for call in calls:
            await within(call.reply())
    assert len(set(plugin.tasks)) == 3
    assert None not in plugin.tasks


async def test_an_answered_call_leaves_nothing_for_the_garbage_collector() -> None:
    async with served(Recorder()) as host:
        gc.collect()
        gc.disable()
        try:
            # What other tests in this process have left behind is not ours to judge.
            before = {id(thing) for thing in gc.get_objects() if isinstance(thing, IncomingCall)}
            await within(host.start_call("model.route", b"{}").reply())
            left = [thing for thing in gc.get_objects() if isinstance(thing, IncomingCall) and id(thing) not in before]
        finally:
            gc.enable()
    assert left == []
