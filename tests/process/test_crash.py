"""What happens when a plugin dies: to its calls, to its neighbours, and to itself."""

import asyncio
import fcntl
from contextlib import contextmanager
from dataclasses import replace

import pytest

from host.runtime.diagnostics import PluginStartError
from host.runtime.handle import PluginState
from pluginabi.errors import PluginTransportError
from tests.support.processes import FAST, Watcher, execute_stream, route


def timings(**changes):
    return replace(FAST, **changes)


@contextmanager
def locked(plugin):
    """A file of the plugin that is locked for as long as the block runs."""
    with (plugin.spec.data_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.name


ALWAYS_STABLE = timings(stable_s=0.0)
AT_ITS_END = replace(ALWAYS_STABLE, last_words_s=30.0)
"""For a process that has ended and is about to be reaped: how, is told however long that takes."""
NEVER_STABLE = timings(stable_s=3600.0)


@pytest.mark.parametrize("command", ["exit 3", "kill"])
async def test_a_call_in_flight_fails_at_once_when_the_plugin_dies(plugins, within, host, command):
    plugin = plugins()
    await within(plugin.start())
    others = [asyncio.ensure_future(route(plugin, "hang")) for _ in range(5)]
    await within(host.logged("held", times=5))
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, command))
    assert (caught.value.code, caught.value.http_status) == ("plugin_crashed", 502)
    outcomes = await within(asyncio.gather(*others, return_exceptions=True))
    assert {outcome.code for outcome in outcomes} == {"plugin_crashed"}


async def test_an_open_stream_delivers_what_came_and_then_fails(plugins, within):
    plugin = plugins()
    await within(plugin.start())
    reply = await within(execute_stream(plugin, "stream-exit"))
    items = aiter(reply.items)
    await within(anext(items))
    with pytest.raises(PluginTransportError) as caught:
        await within(anext(items))
    assert caught.value.code == "plugin_crashed"


async def test_a_plugin_that_had_been_ready_is_restarted_at_once(plugins, within):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=ALWAYS_STABLE)
    await within(plugin.start())
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "exit 3"))
    await within(watcher.reached(PluginState.READY, times=2))
    assert [new for new, _ in watcher.seen[4:]] == ["starting", "handshaking", "registering", "ready"]
    assert plugin.restarts == 1
    assert (await within(route(plugin, "echo back"))).result.reason == "back"


async def test_the_report_of_a_crash_has_code_phase_and_last_words(plugins, within):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=AT_ITS_END)
    await within(plugin.start())
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "exit 3"))
    await within(watcher.reached(PluginState.READY, times=2))
    (report,) = watcher.reports
    assert (report.phase, report.exit_code, report.signal_name) == ("exit", 3, None)
    assert report.stderr[-1] == "RuntimeError: it broke"
    assert "exit code 3" in plugin.last_error


async def test_a_killed_plugin_is_reported_with_its_signal_and_a_hint(plugins, within):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=AT_ITS_END)
    await within(plugin.start())
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "kill"))
    await within(watcher.reached(PluginState.READY, times=2))
    assert watcher.reports[0].signal_name == "SIGKILL"
    assert "when memory ran out" in watcher.reports[0].hint


async def test_early_deaths_back_off_and_the_fifth_has_failed_until_a_reset(plugins, within):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=NEVER_STABLE)
    await within(plugin.start())
    for life in range(1, 6):
        await within(watcher.reached(PluginState.READY, times=life))
        with pytest.raises(PluginTransportError):
            await within(route(plugin, "exit 1"))
    await within(watcher.reached(PluginState.FAILED))
    assert [new for new, _ in watcher.seen].count(PluginState.BACKOFF) == 4
    assert "died 5 times" in watcher.seen[-1][1]
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "echo"))
    assert caught.value.code == "plugin_unavailable"
    await within(plugin.reset())
    assert (await within(route(plugin, "echo reset"))).result.reason == "reset"


async def test_a_start_that_fails_is_tried_again_by_itself(plugins, within):
    watcher = Watcher()
    plugin = plugins("crash-once", events=watcher, timings=NEVER_STABLE)
    with pytest.raises(PluginStartError):
        await within(plugin.start())
    await within(watcher.reached(PluginState.READY))
    assert (await within(route(plugin, "echo at last"))).result.reason == "at last"


@pytest.mark.parametrize(
    ("mode", "command", "reason"),
    [
        ("ignores-eof", "close-stdout", "closed its side but kept running"),
        ("healthy", "unknown-id", "never made"),
    ],
)
async def test_a_plugin_that_lives_on_after_its_conversation_is_over_is_killed(
    plugins, within, life, mode, command, reason
):
    watcher = Watcher()
    plugin = plugins(mode, events=watcher, timings=ALWAYS_STABLE, environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    with pytest.raises(PluginTransportError):
        await within(route(plugin, command))
    await within(born.ended())
    await within(watcher.reached(PluginState.READY, times=2))
    assert reason in watcher.reports[0].reason


async def test_a_grandchild_that_holds_the_pipes_does_not_delay_the_report_and_dies_too(plugins, within, life):
    watcher = Watcher()
    plugin = plugins("grandchild", events=watcher, timings=ALWAYS_STABLE, environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    lives = [await within(life.born()) for _ in range(2)]
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "exit 0"))
    for one in lives:
        await within(one.ended())
    await within(watcher.reached(PluginState.READY, times=2))


async def test_a_silent_plugin_is_unresponsive_then_killed_then_restarted(plugins, within, life):
    watcher = Watcher()
    quick = timings(stable_s=0.0, ping_interval_s=0.02, ping_unresponsive_s=1.0, ping_kill_s=2.0)
    plugin = plugins(events=watcher, timings=quick, environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    hanging = asyncio.ensure_future(route(plugin, "sleep-forever"))
    await within(watcher.reached(PluginState.UNRESPONSIVE))
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "echo"))
    assert caught.value.code == "plugin_unavailable"
    await within(born.ended())
    with pytest.raises(PluginTransportError):
        await within(hanging)
    # Registering, not ready: a slow machine may see it answer once more before it falls silent.
    await within(watcher.reached(PluginState.REGISTERING, times=2))
    assert watcher.reports[0].phase == "wait"
    assert "silent for" in watcher.reports[0].reason


async def test_a_plugin_that_answers_again_in_time_is_ready_again(plugins, within):
    watcher = Watcher()
    quick = timings(ping_interval_s=0.02, ping_unresponsive_s=0.5, ping_kill_s=60.0)
    plugin = plugins(events=watcher, timings=quick)
    await within(plugin.start())
    with locked(plugin) as file:
        deaf = asyncio.ensure_future(route(plugin, f"wait-for-lock {file}"))
        await within(watcher.reached(PluginState.UNRESPONSIVE))
    await within(watcher.reached(PluginState.READY, times=2))
    await within(deaf)
    assert watcher.reports == []


async def test_frames_count_as_life_when_pongs_do_not_come(plugins, within):
    watcher = Watcher()
    quick = timings(ping_interval_s=0.02, ping_unresponsive_s=1.5, ping_kill_s=2.0)
    plugin = plugins(events=watcher, timings=quick)
    await within(plugin.start())
    # Log frames without reading, for longer than silence would be forgiven.
    assert (await within(route(plugin, "chatter 3.0"))).result.reason == "done"
    assert watcher.reports == []
    assert PluginState.UNRESPONSIVE not in [new for new, _ in watcher.seen]


async def test_a_plugin_without_ping_is_killed_when_it_keeps_a_slot_far_past_the_deadline(plugins, within, life):
    watcher = Watcher()
    quick = timings(stable_s=0.0, late_answer_s=0.2)
    plugin = plugins("minimal", events=watcher, timings=quick, environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "hang", timeout_s=0.05))
    assert caught.value.code == "plugin_timeout"
    await within(born.ended())
    await within(watcher.reached(PluginState.READY, times=2))
    assert "no answer to model.route 0.2 s after its deadline" in watcher.reports[0].reason


async def test_a_plugin_without_ping_that_answers_late_lives(plugins, within):
    watcher = Watcher()
    plugin = plugins("minimal", events=watcher, timings=timings(late_answer_s=60.0))
    await within(plugin.start())
    with locked(plugin) as file, pytest.raises(PluginTransportError):
        await within(route(plugin, f"wait-for-lock {file}", timeout_s=0.05))
    assert (await within(route(plugin, "echo after"))).result.reason == "after"
    assert watcher.reports == []


async def test_a_plugin_that_asks_for_it_is_replaced_and_no_call_is_lost(plugins, within):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=ALWAYS_STABLE)
    await within(plugin.start())
    old_pid = (await within(route(plugin, "pid"))).result.reason
    reply = await within(execute_stream(plugin, "stream-hold"))
    await within(route(plugin, "goaway memory grew"))
    new_pid = (await within(route(plugin, "pid"))).result.reason
    assert new_pid != old_pid
    assert watcher.reports == []
    assert [new for new, _ in watcher.seen][-1] is PluginState.READY
    await within(anext(aiter(reply.items)))  # the old process still serves its stream
    await within(reply.items.aclose())


async def test_calls_during_a_replacement_wait_for_the_new_process(plugins, within):
    plugin = plugins(timings=ALWAYS_STABLE)
    await within(plugin.start())
    await within(route(plugin, "goaway"))
    replies = await within(asyncio.gather(*(route(plugin, f"echo {number}") for number in range(20))))
    assert [reply.result.reason for reply in replies] == [str(number) for number in range(20)]


async def test_one_plugins_death_does_not_touch_its_neighbour(plugins, within):
    victim, neighbour = plugins(timings=NEVER_STABLE), plugins()
    await within(asyncio.gather(victim.start(), neighbour.start()))
    beside = asyncio.ensure_future(route(neighbour, "hang"))
    with pytest.raises(PluginTransportError):
        await within(route(victim, "kill"))
    assert (await within(route(neighbour, "release"))).result.reason == "1"
    assert (await within(beside)).result.reason == "late"
