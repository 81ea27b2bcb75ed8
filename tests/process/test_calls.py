"""Calls to a process: answers, errors, deadlines, slots, streams, callbacks."""

import asyncio
import json
from dataclasses import replace

import pytest

from host.runtime.launch import ProcessLimits
from pluginabi.errors import PluginError, PluginTimeout, PluginTransportError
from pluginabi.limits import QUEUE_MAX_CALLS
from tests.support.processes import FAST, execute_stream, route


@pytest.fixture
async def plugin(plugins, within):
    plugin = plugins()
    await within(plugin.start())
    return plugin


async def collect(items):
    return [json.loads(item.body.to_bytes())["n"] async for item in items]


async def test_an_error_keeps_every_field(plugin, within):
    with pytest.raises(PluginError) as caught:
        await within(route(plugin, "error"))
    body = caught.value.body
    assert (body.http_status, body.code, body.retry_after_ms, body.scope) == (429, "rate_limited", 1500, "model")
    assert body.origin == "plugin"


async def test_a_call_without_an_answer_times_out_and_its_slot_is_free_once_the_plugin_closes_it(plugin, within):
    with pytest.raises(PluginTimeout):
        await within(route(plugin, "hang", timeout_s=0.05))
    # The plugin offers `cancel`, so it closes the call at once; this answer comes after that closing frame.
    await within(route(plugin, "echo"))
    assert plugin._live.slots.taken == 0


async def test_a_timed_out_call_keeps_its_slot_until_its_late_answer(plugins, within):
    plugin = plugins("never-closes", "max_inflight=2")
    await within(plugin.start())
    with pytest.raises(PluginTimeout):
        await within(route(plugin, "hang", timeout_s=0.05))
    assert plugin._live.slots.taken == 1
    assert (await within(route(plugin, "release"))).result.reason == "1"
    assert plugin._live.slots.taken == 0


async def test_a_cancelled_caller_cancels_the_call_in_the_plugin(plugin, within, host):
    task = asyncio.ensure_future(route(plugin, "hang"))
    await within(host.logged("held"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert (await within(route(plugin, "release"))).result.reason == "0"


async def test_a_full_plugin_queues_and_serves_in_order(plugins, within):
    plugin = plugins("healthy", "max_inflight=1")
    await within(plugin.start())
    finished = []

    async def numbered(number):
        await route(plugin, "echo")
        finished.append(number)

    await within(asyncio.gather(*(numbered(number) for number in range(50))))
    assert finished == list(range(50))


async def test_a_call_that_gets_no_turn_in_time_is_refused_as_overload(plugins, within, host):
    plugin = plugins("never-closes", "max_inflight=1", timings=replace(FAST, queue_wait_s=0.05))
    await within(plugin.start())
    held = asyncio.ensure_future(route(plugin, "hang"))
    await within(host.logged("held"))
    with pytest.raises(PluginTransportError, match=r"no turn within 0.05 s") as caught:
        await within(route(plugin, "echo"))
    assert (caught.value.code, caught.value.http_status) == ("plugin_overloaded", 503)
    held.cancel()
    await asyncio.wait([held])


async def test_the_257th_waiting_call_is_refused_at_once(plugins, within):
    plugin = plugins("never-closes", "max_inflight=1")
    await within(plugin.start())
    calls = [asyncio.ensure_future(route(plugin, "hang")) for _ in range(QUEUE_MAX_CALLS + 1)]
    await asyncio.sleep(0)  # one turn of the loop: each of them gets as far as it can
    assert plugin._live.slots.waiting == QUEUE_MAX_CALLS
    with pytest.raises(PluginTransportError, match="256 calls wait"):
        await within(route(plugin, "echo"))
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert plugin._live.slots.waiting == 0


async def test_the_operator_can_lower_what_the_plugin_asks_for(plugins, within):
    plugin = plugins("healthy", "max_inflight=50", limits=ProcessLimits(max_inflight=3))
    await within(plugin.start())
    assert plugin._live.slots.max_inflight == 3


async def test_a_waiting_call_that_is_cancelled_as_its_turn_comes_hands_the_slot_on(plugins, within):
    plugin = plugins("healthy", "max_inflight=1")
    await within(plugin.start())
    calls = [asyncio.ensure_future(route(plugin, "echo")) for _ in range(20)]
    await within(asyncio.wait(calls, return_when="FIRST_COMPLETED"))
    for call in calls[1::2]:
        call.cancel()
    await within(asyncio.wait(calls))
    assert (await within(route(plugin, "echo free"))).result.reason == "free"
    assert plugin._live.slots.taken == 0


async def test_a_stream_brings_its_items_and_its_usage(plugin, within):
    reply = await within(execute_stream(plugin, "stream 5"))
    assert reply.result.status == 200
    assert await within(collect(reply.items)) == [0, 1, 2, 3, 4]
    assert reply.items.usage.output_tokens == 5
    assert plugin.in_flight == 0


async def test_an_open_stream_holds_no_slot(plugins, within):
    plugin = plugins("healthy", "max_inflight=1")
    await within(plugin.start())
    reply = await within(execute_stream(plugin, "stream-hold"))
    assert (await within(route(plugin, "echo beside"))).result.reason == "beside"
    await within(route(plugin, "stream-finish"))
    assert await within(collect(reply.items)) == [0]


async def test_more_streams_than_allowed_are_refused_and_leave_no_slot_behind(plugins, within):
    plugin = plugins("healthy", limits=ProcessLimits(max_streams=1))
    await within(plugin.start())
    reply = await within(execute_stream(plugin, "stream-hold"))
    with pytest.raises(PluginTransportError, match="1 streams are open already"):
        await within(execute_stream(plugin, "stream 1"))
    await within(reply.items.aclose())
    assert plugin._live.slots.taken == 0


async def test_a_closed_stream_is_cancelled_in_the_plugin(plugin, within, host):
    reply = await within(execute_stream(plugin, "stream-hold"))
    await within(reply.items.aclose("client_gone"))
    await within(host.logged("stream cancelled: client_gone"))


async def test_an_answer_larger_than_a_frame_fails_only_its_own_call(plugin, within):
    beside = asyncio.ensure_future(route(plugin, "hang"))
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "oversize"))
    assert caught.value.code == "plugin_body_too_large"
    await within(route(plugin, "release"))
    assert (await within(beside)).result.reason == "late"


async def test_garbage_between_frames_is_logged_as_output(plugin, within, host):
    assert (await within(route(plugin, "print [WARN] what a mess"))).result.reason == "printed"
    assert (await within(host.logged("what a mess"))).level == "warning"
    assert plugin.stray_lines == 1


async def test_stderr_becomes_log_lines_while_the_plugin_runs(plugin, within, host):
    await within(route(plugin, 'stderr {"level":"error","msg":"disk","free":0}'))
    line = await within(host.logged("disk"))
    assert (line.level, line.fields) == ("error", {"free": 0})


async def test_allowed_environment_values_never_appear_in_the_log(plugins, within, host):
    plugin = plugins(environment={"TOKEN": "very-s3cret-value"}, secrets=("another-s3cret",))
    await within(plugin.start())
    await within(route(plugin, "stderr using very-s3cret-value and another-s3cret"))
    assert (await within(host.logged("using"))).event == "using *** and ***"


async def test_a_log_frame_carries_the_scope_of_its_call(plugin, within, host):
    await within(route(plugin, "log noticed"))
    await within(host.logged("noticed"))
    assert host.log_scopes[-1].method == "model.route"


async def test_a_callback_is_served_under_the_scope_of_its_parent(plugin, within, host):
    assert (await within(route(plugin, "callback host.kv.get"))).result.reason == '{"found": true}'
    (method, scope), *_ = host.asked
    assert (method, scope.method, scope.permissions) == ("host.kv.get", "model.route", frozenset({"kv"}))


@pytest.mark.parametrize(
    ("command", "code", "status"),
    [
        ("callback host.kv.get forbidden", "permission_denied", 500),
        ("callback host.kv.get quota", "rate_limited", 429),
        ("callback host.unknown", "method_not_found", 500),
        ("callback host.http.do_stream", "plugin_protocol_error", 502),
    ],
)
async def test_a_callbacks_error_reaches_the_plugin_with_its_status(plugin, within, command, code, status):
    with pytest.raises(PluginError) as caught:
        await within(route(plugin, command))
    assert (caught.value.code, caught.value.http_status) == (code, status)


async def test_a_callback_without_a_parent_has_an_empty_scope_with_the_plugins_permissions(plugins, within, host):
    plugin = plugins(permissions=frozenset({"kv"}))
    await within(plugin.start())
    await within(route(plugin, "callback-unparented x"))
    await within(host.logged("callback: ok"))
    (_, scope), *_ = host.asked
    assert (scope.method, scope.request, scope.permissions) == ("", None, frozenset({"kv"}))


async def test_a_callback_of_a_finished_call_is_refused_as_parent_closed(plugin, within, host):
    await within(route(plugin, "callback-then-answer k"))
    await within(host.logged("callback: parent_closed"))
    assert host.asked == []


async def timed_out_in_its_callback(plugin, within, host, command):
    """A call whose time is up while a callback of it is open; it gets more time where a callback takes longer."""
    host.hold = asyncio.Event()
    for timeout_s in (0.3, 1.0, 3.0, 9.0, 27.0):
        with pytest.raises(PluginTimeout):
            await within(route(plugin, command, timeout_s=timeout_s))
        if host.held.is_set():
            return
    raise AssertionError("it never called back")


async def test_an_open_callback_is_cancelled_when_its_parent_times_out(plugin, within, host):
    await timed_out_in_its_callback(plugin, within, host, "callback-during k")
    await within(host.abandoned.wait())
    await within(host.logged("callback: cancelled"))


async def test_an_open_callback_is_cancelled_when_the_plugin_dies(plugin, within, host):
    host.hold = asyncio.Event()
    call = asyncio.ensure_future(route(plugin, "callback-during k"))
    await within(host.held.wait())
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "exit 1"))
    await within(host.abandoned.wait())
    with pytest.raises(PluginTransportError):
        await within(call)


async def test_a_callback_stream_brings_items_and_is_closed(plugin, within, host):
    assert (await within(route(plugin, "callback-stream"))).result.reason == "a,b,c"
    await within(host.abandoned.wait())


async def test_a_callback_stream_ends_with_its_parent(plugin, within, host):
    await timed_out_in_its_callback(plugin, within, host, "callback-stream")
    await within(host.abandoned.wait())
