"""Several processes of one plugin behind one handle."""

import asyncio
from typing import Any

import pytest

from host.runtime.handle import PluginState
from host.runtime.inprocess import InProcessStartError
from host.runtime.instances import InstanceSet
from host.runtime.scope import CallScope, RequestScope
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import FakeProcess, Script


def members(count: int, *scripts: Script) -> list[FakeProcess]:
    given = list(scripts) + [Script() for _ in range(count - len(scripts))]
    return [FakeProcess("p", generation=3, register=RegisterRequest, script=script) for script in given]


async def call(handle: InstanceSet, request: RequestScope | None) -> None:
    scope = CallScope(plugin_id="p", method="model.route", request=request)
    await handle.call("model.route", ModelRouteRequest(), scope=scope, timeout_s=1.0)


def calls(found: list[FakeProcess]) -> list[int]:
    return [len(member.calls) for member in found]


async def test_all_calls_of_one_request_go_to_the_same_process_nested_ones_included():
    found = members(4)
    handle = InstanceSet(found)
    await handle.start()
    root = RequestScope(request_id="r1")
    nested = RequestScope(request_id="other", parent=RequestScope(request_id="another", parent=root))
    for request in (root, nested, root):
        await call(handle, request)
    assert sorted(calls(found)) == [0, 0, 0, 3]


async def test_requests_are_spread_over_the_processes():
    found = members(3)
    handle = InstanceSet(found)
    await handle.start()
    for number in range(60):
        await call(handle, RequestScope(request_id=f"request-{number}"))
    assert min(calls(found)) >= 5
    for _ in range(3):
        await call(handle, None)
    assert sum(calls(found)) == 63


async def test_another_process_takes_over_while_one_is_not_ready():
    found = members(2)
    handle = InstanceSet(found)
    await handle.start()
    found[0].state = PluginState.BACKOFF
    assert handle.state is PluginState.READY
    for number in range(10):
        await call(handle, RequestScope(request_id=f"request-{number}"))
    assert calls(found) == [0, 10]


async def test_one_ready_process_is_enough_to_be_ready():
    found = members(2, Script(start_error="broken"))
    handle = InstanceSet(found)
    await handle.start()
    assert handle.state is PluginState.READY
    assert handle.hello is not None and handle.registration is not None
    assert handle.last_error == "broken"


async def test_when_none_becomes_ready_the_reason_is_raised():
    found = members(2, Script(start_error="broken"), Script(start_error="broken too"))
    handle = InstanceSet(found)
    with pytest.raises(InProcessStartError, match="broken"):
        await handle.start()
    assert handle.state is PluginState.FAILED


@pytest.mark.parametrize("able", [True, False])
async def test_a_new_configuration_reaches_every_process(able: bool):
    found = members(2, Script(reconfigures=able), Script(reconfigures=able))
    handle = InstanceSet(found)
    await handle.start()
    assert await handle.reconfigure(RegisterRequest(config={"a": 1})) is able
    assert all(member.requests[-1].config == {"a": 1} for member in found)


async def test_stopping_stops_all(within: Any):
    found = members(2)
    handle = InstanceSet(found)
    await handle.start()
    await within(handle.drain_and_stop(drain_s=1.0))
    await within(asyncio.gather(*(member.stopped.wait() for member in found)))
    assert (handle.plugin_id, handle.generation, handle.state) == ("p", 3, PluginState.STOPPED)
