"""An error in the host that nobody foresaw: a plugin is not left standing in a state that is no longer true."""

import asyncio
from dataclasses import replace

import pytest
import structlog

from host.runtime.diagnostics import PluginStartError
from host.runtime.handle import PluginState
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.lifecycle import RegisterRequest
from tests.support.processes import FAST, Watcher, route

QUICK = replace(FAST, stable_s=3600.0)


class Mistaken(Watcher):
    """Fails in a listener as often as it is told to, with a mistake of the kind that a programmer makes."""

    def __init__(self, *, registered=0, died=0):
        super().__init__()
        self.mistakes = {"registered": registered, "died": died}

    def registered(self, plugin):
        self._fail("registered")

    def died(self, plugin, report):
        super().died(plugin, report)
        self._fail("died")

    def _fail(self, where):
        if self.mistakes[where]:
            self.mistakes[where] -= 1
            raise KeyError(where)


def failing_once(error):
    errors = [error]

    def register():
        if errors:
            raise errors.pop()
        return RegisterRequest()

    return register


async def test_whoever_starts_a_plugin_hears_of_the_mistake_and_the_next_try_comes_by_itself(plugins, within):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=QUICK, register=failing_once(ZeroDivisionError("by nought")))
    with structlog.testing.capture_logs() as lines, pytest.raises(PluginStartError, match="by nought"):
        await within(plugin.start())
    (line,) = [line for line in lines if line["event"] == "plugin.supervision_failed"]
    assert (line["log_level"], line["plugin_id"]) == ("error", "faulty")
    assert isinstance(line["exc_info"], ZeroDivisionError)
    await within(watcher.reached(PluginState.READY))
    assert [new for new, _ in watcher.seen].count(PluginState.BACKOFF) == 1
    assert "by nought" in watcher.reports[0].reason
    assert (await within(route(plugin, "echo at last"))).result.reason == "at last"


async def test_the_process_that_a_mistake_was_made_about_is_ended_before_the_next_starts(plugins, within, life):
    watcher = Mistaken(registered=1)
    plugin = plugins(events=watcher, timings=QUICK, environment={"TEST_LIFE": life.path})
    with pytest.raises(PluginStartError, match="KeyError"):
        await within(plugin.start())
    born = await within(life.born())
    await within(born.ended())
    await within(watcher.reached(PluginState.READY))
    assert plugin.available


async def test_mistakes_without_end_are_a_failed_plugin_whose_calls_say_why(plugins, within):
    watcher = Mistaken(registered=5)
    plugin = plugins(events=watcher, timings=QUICK)
    with pytest.raises(PluginStartError):
        await within(plugin.start())
    await within(watcher.reached(PluginState.FAILED))
    with pytest.raises(PluginTransportError, match="KeyError") as caught:
        await within(route(plugin, "echo"))
    assert (caught.value.code, caught.value.http_status) == ("plugin_unavailable", 502)
    assert "KeyError" in plugin.last_error
    await within(plugin.reset())
    assert (await within(route(plugin, "echo reset"))).result.reason == "reset"


async def test_calls_of_a_process_that_is_given_up_get_a_status(plugins, within, host, monkeypatch):
    watcher = Watcher()
    plugin = plugins(events=watcher, timings=replace(FAST, stable_s=0.0))
    await within(plugin.start())
    call = asyncio.ensure_future(route(plugin, "hang"))
    await within(host.logged("held"))

    async def broken(*args, **options):
        raise OSError("too many open files")

    plugin._live.session.close = broken
    plugin._live.kill("the test")
    with pytest.raises(PluginTransportError) as caught:
        await within(call)
    assert caught.value.code == "plugin_crashed"
    await within(watcher.reached(PluginState.READY, times=2))
    assert "too many open files" in watcher.reports[0].reason


async def test_a_mistake_in_dealing_with_a_mistake_leaves_the_plugin_failed(plugins, within):
    watcher = Mistaken(registered=1, died=1)
    plugin = plugins(events=watcher, timings=QUICK)
    with pytest.raises(PluginStartError, match="KeyError"):
        await within(plugin.start())
    await within(watcher.reached(PluginState.FAILED))
    await within(plugin.reset())
    assert plugin.state is PluginState.READY


async def test_a_plugin_whose_end_was_mistaken_is_stopped_all_the_same(plugins, within, life):
    plugin = plugins(environment={"TEST_LIFE": life.path})
    await within(plugin.start())
    born = await within(life.born())

    async def broken(*args, **options):
        raise ZeroDivisionError

    plugin._live.stop = broken
    await within(plugin.stop())
    assert plugin.state is PluginState.STOPPED
    await within(born.ended())
