"""The same plugin class in every carrier: nobody above the runtime can tell them apart."""

import asyncio
from typing import Any

import pytest

from host.runtime.handle import PluginState, Reply
from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, PluginTimeout, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptRequest
from pluginabi.payloads.routing import ModelRouteRequest
from pluginabi.payloads.thinking import ThinkingApplyRequest
from tests.support.carriers import FULL, Stage, Within, plain

# -- registration


async def test_it_registers_with_its_config_and_its_own_files(plugin: Stage):
    view = plugin.bench.registry.snapshot.plugins["p"]
    assert view.providers == ("from-helpers",)
    assert "executor.execute_stream" in view.capabilities


async def test_a_changed_config_reaches_the_running_plugin(plugin: Stage):
    handle = plugin.binding("model.route").handle
    await plugin.apply({"provider": "two"})
    assert plugin.binding("model.route").handle is handle
    assert (await plugin.do("config")).reason == '{"provider": "two"}'
    assert plugin.bench.registry.snapshot.plugins["p"].providers == ("two",)


async def test_a_refused_config_keeps_the_last_good_one(plugin: Stage):
    before = (await plugin.do("config")).reason
    await plugin.bench.registry.apply(plugin.config({"refuse": True}))
    assert "not this" in plugin.bench.status("p").reason
    assert (await plugin.do("config")).reason == before
    assert plugin.bench.registry.snapshot.plugins["p"].providers == ("from-helpers",)


async def test_it_knows_whose_call_it_serves(plugin: Stage):
    found = await plugin.do("context", request=RequestScope(request_id="r7"), request_id="r7")
    assert found.reason == '["p", "r7", ["auth.read", "http", "kv", "model"], true]'


# -- answers and errors


async def test_nothing_is_the_empty_answer(plugin: Stage):
    assert (await plugin.do("nothing")).target_kind == ""


async def test_bodies_go_in_and_out(plugin: Stage):
    body = Body.from_bytes(b'{"a": [1, 2.50, "\\u00e4\xc3\xa4"]}')
    answer = await plugin.call("request.intercept_before", RequestInterceptRequest(body=body))
    assert answer.value.body.value() == {"seen": {"a": [1, 2.5, "ää"]}}


async def test_usage_comes_with_the_answer(plugin: Stage):
    answer = await plugin.call("executor.execute", ExecutorRequest(body=Body.from_bytes(b'{"q":1}')))
    assert answer.usage == Usage(input_tokens=7)
    assert isinstance(answer.value, ExecutorResponse)
    assert (answer.value.status, list(answer.value.headers["a"])) == (200, ["b"])
    assert isinstance(answer.value.body, Body) and answer.value.body.value() == {"q": 1}


@pytest.mark.parametrize(("what", "origin"), [("fail", "plugin"), ("fail_upstream", "upstream")])
async def test_an_error_survives_bit_by_bit(plugin: Stage, what: str, origin: str):
    with pytest.raises(PluginError) as caught:
        await plugin.do(what)
    assert plain(caught.value.body) == plain(FULL, origin=origin)


async def test_a_bug_is_a_500_without_details_and_the_plugin_goes_on(plugin: Stage):
    with pytest.raises(PluginError) as caught:
        await plugin.do("bug")
    assert (caught.value.http_status, caught.value.code, caught.value.body.origin) == (500, "plugin_error", "plugin")
    assert "secret" not in caught.value.body.message
    assert (await plugin.do("nothing")).target_kind == ""


async def test_a_deadline_is_a_504_and_the_plugin_goes_on(plugin: Stage, within: Within):
    with pytest.raises(PluginTimeout) as caught:
        await within(plugin.do("hang", timeout_s=0.05))
    assert (caught.value.http_status, caught.value.code, caught.value.timeout_ms) == (504, "plugin_timeout", 50)
    assert (await plugin.do("nothing")).target_kind == ""


async def test_a_cancelled_call_is_cancelled_in_the_plugin(plugin: Stage, within: Within):
    started = asyncio.Event()
    original = plugin.bench.store.set

    async def noting(*args: Any, **kwargs: Any) -> bool:
        started.set()
        return await original(*args, **kwargs)

    plugin.bench.store.set = noting  # type: ignore[method-assign]
    running = asyncio.ensure_future(plugin.do("hang_noting_cancel"))
    await within(started.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    async with asyncio.timeout(60):
        while (await plugin.do("was_cancelled")).reason != "True":
            pass


async def test_a_missing_hook_is_method_not_found(plugin: Stage):
    handle = plugin.binding("model.route").handle
    scope = CallScope(plugin_id="p", method="thinking.apply")
    with pytest.raises(PluginError) as caught:
        await handle.call("thinking.apply", ThinkingApplyRequest(), scope=scope, timeout_s=5.0)
    assert (caught.value.http_status, caught.value.code) == (500, "method_not_found")


# -- streams


async def test_a_stream_arrives_whole_and_in_order(plugin: Stage, within: Within):
    reply = await plugin.stream("many")
    items = await within(collect(reply))
    numbers = [item.body.value()["n"] for item in items if item.body]
    assert numbers == [1, 2, *range(2000)]
    assert [item.event for item in items[:2]] == [None, "named"]
    assert items[2].is_progress
    assert reply.items.usage == Usage(output_tokens=5)


async def test_a_stream_that_is_refused_keeps_the_error(plugin: Stage):
    with pytest.raises(PluginError) as caught:
        await plugin.stream("refused")
    assert plain(caught.value.body) == plain(FULL)


async def test_an_error_in_the_middle_of_a_stream_keeps_every_field_and_the_usage(plugin: Stage, within: Within):
    reply = await plugin.stream("broken")
    got: list[StreamItem] = []
    with pytest.raises(PluginError) as caught:
        await within(collect(reply, got))
    assert len(got) == 3
    assert plain(caught.value.body) == plain(FULL)
    assert reply.items.usage == Usage(output_tokens=1)


async def test_a_closed_stream_leaves_the_plugin_ready(plugin: Stage, within: Within):
    reply = await plugin.stream("silent")
    await within(anext(aiter(reply.items)))
    await within(reply.items.aclose())
    assert (await plugin.do("nothing")).target_kind == ""


# -- life


async def test_no_call_is_lost_while_the_plugin_is_reloaded_under_load(plugin: Stage, within: Within):
    stop = asyncio.Event()
    served = 0

    async def client() -> None:
        nonlocal served
        while not stop.is_set():
            await plugin.do("count")
            served += 1
            # In the host a call that never waits gives nobody else a turn.
            await asyncio.sleep(0)

    clients = [asyncio.ensure_future(client()) for _ in range(4)]
    try:
        for _ in range(2):
            before = served
            outcome = await within(plugin.bench.registry.reload("p"))
            assert "is loaded" in outcome
            async with asyncio.timeout(60):
                while served < before + 20:
                    await asyncio.wait(clients, timeout=0.01, return_when="FIRST_COMPLETED")
                    assert not any(task.done() for task in clients)
    finally:
        stop.set()
    await within(asyncio.gather(*clients))
    assert int((await plugin.do("count")).reason) == served + 1


async def test_a_stopped_plugin_is_unavailable(plugin: Stage):
    binding = plugin.binding("model.route")
    await plugin.bench.registry.stop()
    scope = CallScope(plugin_id="p", method="model.route")
    with pytest.raises(PluginTransportError) as caught:
        await binding.handle.call("model.route", ModelRouteRequest(), scope=scope, timeout_s=5.0)
    assert (caught.value.http_status, caught.value.code) == (502, "plugin_unavailable")
    assert binding.handle.state is PluginState.STOPPED


async def collect(reply: Reply, into: list[StreamItem] | None = None) -> list[StreamItem]:
    items = into if into is not None else []
    async for item in reply.items:
        items.append(item)
    return items
