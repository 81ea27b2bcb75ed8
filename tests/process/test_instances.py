"""Several processes of one plugin."""

import asyncio

import pytest

from host.runtime.diagnostics import PluginStartError
from host.runtime.handle import PluginState
from host.runtime.instances import STRAYED_MAX, InstanceSet
from host.runtime.scope import CallScope, RequestScope
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginabi.payloads.routing import ModelRouteRequest
from tests.conftest import WAIT_S


def scope_of(request_id: str, *, nested: bool = False) -> CallScope:
    request = RequestScope(request_id=request_id)
    if nested:
        request = RequestScope(request_id=f"{request_id}-nested", parent=request)
    return CallScope(plugin_id="faulty", method="model.route", request=request)


async def ask(instances, command, scope):
    reply = await instances.call("model.route", ModelRouteRequest(requested_model=command), scope=scope, timeout_s=30.0)
    return reply.result.reason


@pytest.fixture
async def trio(plugins, within):
    instances = InstanceSet([plugins(), plugins(), plugins()])
    await within(instances.start())
    return instances


async def test_all_calls_of_a_request_and_of_those_nested_in_it_go_to_one_process(trio, within):
    for number in range(12):
        request_id = f"req-{number}"
        scopes = [scope_of(request_id), scope_of(request_id), scope_of(request_id, nested=True)]
        pids = {await within(ask(trio, "pid", scope)) for scope in scopes}
        assert len(pids) == 1


async def test_requests_spread_over_all_processes(trio, within):
    pids = {await within(ask(trio, "pid", scope_of(f"req-{number}"))) for number in range(40)}
    assert len(pids) == 3


async def test_calls_outside_of_requests_take_turns(trio, within):
    outside = CallScope(plugin_id="faulty", method="usage.handle")
    pids = [await within(ask(trio, "pid", outside)) for _ in range(3)]
    assert len(set(pids)) == 3


async def test_a_request_that_strayed_to_another_process_stays_there(trio, within):
    request_id = next(f"req-{n}" for n in range(100) if trio.instance_for(scope_of(f"req-{n}")) is trio.instances[1])
    await within(trio.instances[1].stop())
    strayed = await within(ask(trio, "pid", scope_of(request_id)))
    await within(trio.instances[1].start())
    assert await within(ask(trio, "pid", scope_of(request_id))) == strayed
    assert trio.instance_for(scope_of(request_id)) is trio.instances[2]


async def test_a_request_that_strayed_to_a_process_that_died_goes_on_elsewhere(trio, within):
    request_id = next(f"req-{n}" for n in range(100) if trio.instance_for(scope_of(f"req-{n}")) is trio.instances[1])
    await within(trio.instances[1].stop())
    assert trio.instance_for(scope_of(request_id)) is trio.instances[2]
    await within(trio.instances[2].stop())
    assert await within(ask(trio, "echo on", scope_of(request_id))) == "on"
    await within(asyncio.gather(trio.instances[1].start(), trio.instances[2].start()))
    assert trio.instance_for(scope_of(request_id)) is trio.instances[0]


async def test_strayed_requests_are_remembered_up_to_a_bound(trio, within):
    await within(trio.instances[0].stop())
    for number in range(STRAYED_MAX * 4):
        trio.instance_for(scope_of(f"req-{number}"))
    assert len(trio._strayed) == STRAYED_MAX


async def test_one_dead_process_does_not_stop_the_set(trio, within):
    victim = trio.instances[0]
    own = next(s for n in range(100) if trio.instance_for(s := scope_of(f"req-{n}")) is victim)
    with pytest.raises(PluginTransportError):
        await within(ask(trio, "kill", own))
    assert trio.state is PluginState.READY
    assert await within(ask(trio, "echo fine", scope_of("another"))) == "fine"


async def test_a_process_that_takes_nothing_more_is_passed_over_before_its_end_is_seen(trio, within, monkeypatch):
    monkeypatch.setattr("pluginabi.stream_channel._LAST_WORDS_S", 3600.0)
    victim = trio.instances[0]
    own = next(s for n in range(100) if trio.instance_for(s := scope_of(f"req-{n}")) is victim)
    pid = await within(ask(trio, "pid", own))
    unheard = asyncio.ensure_future(ask(trio, "close-stdin", own))
    async with asyncio.timeout(WAIT_S):
        while victim.available:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    assert victim.state is PluginState.READY
    assert await within(ask(trio, "pid", own)) != pid
    unheard.cancel()
    await asyncio.wait([unheard])


async def test_a_set_of_which_none_starts_has_not_started(plugins, within):
    instances = InstanceSet([plugins("wrong-id"), plugins("wrong-id")])
    with pytest.raises(PluginStartError):
        await within(instances.start())
    assert instances.state is PluginState.FAILED
    assert "somebody-else" in instances.last_error


async def test_a_set_of_which_one_starts_is_ready(plugins, within):
    instances = InstanceSet([plugins("wrong-id"), plugins()])
    await within(instances.start())
    assert instances.state is PluginState.READY
    assert instances.hello is not None
    assert await within(ask(instances, "echo", scope_of("x"))) == ""
    await within(asyncio.gather(instances.stop(), instances.stop()))


async def test_a_new_configuration_reaches_every_process(plugins, within):
    capabilities = "capabilities=model.route,plugin.reconfigure"
    instances = InstanceSet([plugins("healthy", capabilities), plugins("healthy", capabilities)])
    await within(instances.start())
    assert await within(instances.reconfigure(RegisterRequest()))
    assert [list(each.registration.providers) for each in instances.instances] == [["reconfigured"]] * 2


async def test_a_set_that_cannot_be_reconfigured_as_a_whole_says_so(plugins, within):
    instances = InstanceSet([plugins("healthy", "capabilities=model.route,plugin.reconfigure"), plugins()])
    await within(instances.start())
    assert not await within(instances.reconfigure(RegisterRequest()))
