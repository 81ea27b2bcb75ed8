"""The end of a plugin process: what it is asked, in which order, and that it always ends."""

import asyncio
from dataclasses import replace

import pytest

from host.runtime.handle import PluginState
from host.runtime.teardown import finish
from pluginabi.errors import PluginTransportError
from tests.support.processes import FAST, Watcher, execute_stream, route


async def test_a_drain_lets_calls_and_streams_finish_and_takes_no_new_ones(plugins, within, host):
    watcher = Watcher()
    plugin = plugins("finishes-on-goaway", events=watcher)
    await within(plugin.start())
    call = asyncio.ensure_future(route(plugin, "hang"))
    await within(host.logged("held"))
    reply = await within(execute_stream(plugin, "stream-hold"))
    stopping = asyncio.ensure_future(plugin.drain_and_stop(drain_s=60.0))
    await within(watcher.reached(PluginState.DRAINING))
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "echo"))
    assert caught.value.code == "plugin_unavailable"
    # This plugin finishes what it has when it is told to go, and not before.
    assert (await within(call)).result.reason == "late"
    assert [item async for item in reply.items]
    await within(stopping)
    assert plugin.state is PluginState.STOPPED


async def test_a_drain_is_over_at_its_end_whatever_still_runs(plugins, within, host):
    plugin = plugins("never-closes")
    await within(plugin.start())
    call = asyncio.ensure_future(route(plugin, "hang"))
    await within(host.logged("held"))
    await within(plugin.drain_and_stop(drain_s=0.05))
    with pytest.raises(PluginTransportError) as caught:
        await within(call)
    assert caught.value.code == "plugin_unavailable"


async def test_stop_ends_a_drain_that_is_going_on(plugins, within, host):
    plugin = plugins("never-closes")
    await within(plugin.start())
    call = asyncio.ensure_future(route(plugin, "hang"))
    await within(host.logged("held"))
    draining = asyncio.ensure_future(plugin.drain_and_stop(drain_s=3600.0))
    await asyncio.sleep(0)
    await within(plugin.stop())
    await within(draining)
    await within(asyncio.wait([call]))
    assert isinstance(call.exception(), PluginTransportError)


@pytest.mark.parametrize("mode", ["ignores-eof", "ignores-everything"])
async def test_a_plugin_that_ignores_what_it_is_told_is_ended_all_the_same(plugins, within, life, mode):
    plugin = plugins(mode, environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    await within(plugin.stop())
    await within(born.ended())


async def test_a_grandchild_that_ignores_term_and_holds_the_pipes_is_ended_too(plugins, within, life):
    plugin = plugins("grandchild", environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    lives = [await within(life.born()) for _ in range(2)]
    await within(plugin.stop())
    for one in lives:
        await within(one.ended())


async def test_a_plugin_that_no_longer_reads_is_ended_although_frames_wait_for_it(plugins, within, life):
    plugin = plugins(environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    await within(route(plugin, "stop-reading"))
    calls = [asyncio.ensure_future(route(plugin, "echo " + "x" * 500_000)) for _ in range(4)]
    await asyncio.sleep(0)
    await within(plugin.stop())
    await within(born.ended())
    outcomes = await within(asyncio.gather(*calls, return_exceptions=True))
    assert all(isinstance(outcome, PluginTransportError) for outcome in outcomes)


async def test_a_stop_whose_waiter_is_cancelled_runs_to_its_end(plugins, within, life):
    plugin = plugins("ignores-everything", environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    stopping = asyncio.ensure_future(plugin.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await within(asyncio.wait([stopping]))
    assert stopping.cancelled()
    await within(born.ended())
    await within(plugin.stop())
    assert plugin.state is PluginState.STOPPED


async def test_stopping_twice_and_stopping_what_never_started_is_fine(plugins, within):
    plugin = plugins()
    await within(plugin.stop())
    await within(plugin.start())
    await within(asyncio.gather(plugin.stop(), plugin.stop()))
    await within(plugin.stop())
    assert plugin.state is PluginState.STOPPED


async def test_a_plugin_in_backoff_stops_at_once(plugins, within):
    plugin = plugins("exit-0", timings=replace(FAST, backoff_min_s=3600.0, backoff_max_s=7200.0))
    starting = asyncio.ensure_future(plugin.start())
    await within(asyncio.wait([starting]))
    assert starting.exception() is not None
    await within(plugin.stop())
    assert plugin.state is PluginState.STOPPED


async def test_a_task_group_that_stops_takes_the_process_with_it(plugins, within, life, tasks):
    plugin = plugins("ignores-everything", environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    await within(tasks.stop())
    await within(born.ended())


async def test_an_upgrade_refuses_no_call_those_that_come_late_go_to_the_successor(plugins, within, host):
    old, new = plugins("never-closes"), plugins()
    await within(asyncio.gather(old.start(), new.start()))
    old_pid = (await within(route(old, "pid"))).result.reason
    running = asyncio.ensure_future(route(old, "hang"))
    await within(host.logged("held"))
    upgrading = asyncio.ensure_future(old.drain_and_stop(drain_s=60.0, successor=new))
    # Its own requests go on as long as one of them runs.
    assert (await within(route(old, "pid"))).result.reason == old_pid
    await within(route(old, "release"))
    assert (await within(running)).result.reason == "late"
    await within(upgrading)
    assert old.state is PluginState.STOPPED
    assert (await within(route(old, "pid"))).result.reason == (await within(route(new, "pid"))).result.reason


async def test_under_load_an_upgrade_loses_no_call(plugins, within):
    old, new = plugins(), plugins()
    await within(asyncio.gather(old.start(), new.start()))
    upgrading = asyncio.ensure_future(old.drain_and_stop(drain_s=60.0, successor=new))
    served = 0
    while not upgrading.done() or served < 200:
        replies = await within(asyncio.gather(*(route(old, f"echo {number}") for number in range(20))))
        assert [reply.result.reason for reply in replies] == [str(number) for number in range(20)]
        served += len(replies)
    await within(upgrading)


@pytest.mark.parametrize("failed", [False, True])
async def test_a_cancellation_in_the_very_moment_the_work_ends_is_not_lost(failed, within):
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(finish(work))
    await asyncio.sleep(0)
    if failed:
        work.set_exception(OSError())
    else:
        work.set_result("done")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)


async def test_a_cancellation_waits_for_the_work_and_work_that_was_cancelled_ends_the_wait(within):
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(finish(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
