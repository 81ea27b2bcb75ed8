"""Plugins inside the host: start, reconfigure, stop."""

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from host.runtime.handle import PluginState
from host.runtime.inprocess import InProcessStartError
from host.tasks import TaskGroup
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.lifecycle import RegisterRequest
from tests.support.inprocess_calls import route
from tests.support.runtime import not_started, started


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('no disk')", "importing 'plugin:P' failed: OSError: no disk"),
        ("raise SystemExit('no licence')", "importing 'plugin:P' failed: SystemExit: no licence"),
        ("class P(Plugin):\n    def __init__(self):\n        raise SystemExit(3)", "failed: SystemExit: 3"),
        ("X = 1", "is no subclass of pluginapi.Plugin"),
        ("class P: pass", "is no subclass of pluginapi.Plugin"),
        ("class P(Plugin):\n    id = 'other'", "the class calls itself 'other', plugin.toml 'p'"),
        ("class P(Plugin):\n    def __init__(self):\n        raise ValueError('bad')", "failed: ValueError: bad"),
        (
            "class P(Plugin):\n    async def plugin_register(self, request):\n"
            "        raise PluginError('threshold is missing')",
            "threshold is missing",
        ),
        ("class P(Plugin):\n    def model_route(self, request): pass", "make it 'async def', or add @blocking"),
        ("class P(Plugin):\n    async def model_route(self, nonsense): pass", "nonsense"),
        ("class P(Plugin):\n    inputs = ['body']\n    async def model_route(self, request): pass", "AttributeError"),
    ],
)
async def test_a_plugin_that_cannot_start_says_why(tmp_path: Path, code: str, reason: str):
    with pytest.raises(InProcessStartError) as caught:
        async with started(tmp_path, code + "\n"):
            raise AssertionError("it started")
    assert reason in caught.value.reason


async def test_a_plugin_that_did_not_start_is_unavailable_with_the_reason(tmp_path: Path):
    plugin = not_started(tmp_path, "raise OSError('no disk')\n", TaskGroup("test"))
    with pytest.raises(InProcessStartError):
        await plugin.start()
    assert plugin.state is PluginState.FAILED
    with pytest.raises(PluginTransportError) as caught:
        await route(plugin)
    assert (caught.value.code, caught.value.http_status) == ("plugin_unavailable", 502)
    assert "no disk" in str(caught.value)


RECONFIGURABLE = """
class P(Plugin):
    async def plugin_register(self, request):
        return RegisterResponse(providers=[request.config.get("provider", "none")])
    async def plugin_reconfigure(self, request):
        if request.config["provider"] == "bad":
            raise PluginError("no such provider", http_status=400)
        return RegisterResponse(providers=[request.config["provider"]])
    async def model_route(self, request):
        return ModelRouteResponse(reason=self.config["provider"])
"""


async def test_reconfigure_replaces_configuration_and_registration(tmp_path: Path):
    async with started(tmp_path, RECONFIGURABLE, config={"provider": "a"}) as plugin:
        assert plugin.registration is not None and plugin.registration.providers == ["a"]
        assert await plugin.reconfigure(RegisterRequest(config={"provider": "b"})) is True
        assert plugin.registration.providers == ["b"]
        assert (await route(plugin)).value.reason == "b"


async def test_a_refused_configuration_keeps_the_last_good_one(tmp_path: Path):
    async with started(tmp_path, RECONFIGURABLE, config={"provider": "a"}) as plugin:
        with pytest.raises(PluginError) as caught:
            await plugin.reconfigure(RegisterRequest(config={"provider": "bad"}))
        assert caught.value.http_status == 400
        assert plugin.registration is not None and plugin.registration.providers == ["a"]
        assert (await route(plugin)).value.reason == "a"


async def test_a_plugin_without_the_hook_is_not_reconfigured(tmp_path: Path):
    async with started(tmp_path, "class P(Plugin):\n    async def model_route(self, request): ...\n") as plugin:
        assert await plugin.reconfigure(RegisterRequest()) is False


async def test_L28_stopping_waits_for_running_calls_refuses_new_ones_and_may_be_repeated(tmp_path: Path, within: Any):
    code = """
class P(Plugin):
    async def plugin_register(self, request):
        self.go, self.running, self.log = asyncio.Event(), asyncio.Event(), []
    async def model_route(self, request):
        self.running.set()
        await self.go.wait()
        self.log.append("answered")
        return ModelRouteResponse(reason="done")
    async def plugin_shutdown(self, request):
        self.log.append("shutdown")
"""
    async with started(tmp_path, code) as plugin:
        assert plugin._dispatcher is not None
        author: Any = plugin._dispatcher.plugin
        running = asyncio.ensure_future(route(plugin))
        await within(author.running.wait())
        stopping = asyncio.ensure_future(plugin.drain_and_stop(drain_s=30.0))
        await asyncio.sleep(0)
        assert plugin.state is PluginState.DRAINING
        with pytest.raises(PluginTransportError) as caught:
            await route(plugin)
        assert caught.value.code == "plugin_unavailable"
        author.go.set()
        assert (await within(running)).value.reason == "done"
        await within(stopping)
        assert author.log == ["answered", "shutdown"]
        assert plugin.state is PluginState.STOPPED
        await within(plugin.drain_and_stop(drain_s=30.0))
        assert author.log == ["answered", "shutdown"]


async def test_what_a_plugin_does_on_its_own_outlives_its_calls_and_ends_with_the_plugin(tmp_path: Path, within: Any):
    code = """
class P(Plugin):
    async def plugin_register(self, request, ctx):
        self.own = ctx.detached()
    async def model_route(self, request, ctx):
        return ModelRouteResponse(reason=repr([await self.own.kv.increment("n"), self.own.request_id]))
"""
    async with started(tmp_path, code, permissions=["kv"]) as plugin:
        assert plugin._dispatcher is not None
        author: Any = plugin._dispatcher.plugin
        assert (await route(plugin)).value.reason == "[1, '']"
        assert await within(author.own.kv.increment("n")) == 2
        with pytest.raises(PluginError) as caught:
            await within(author.own.model.execute("m", {}))
        assert caught.value.code == "parent_closed"
        await plugin.reconfigure(RegisterRequest(permissions=[]))
    with pytest.raises(PluginError) as caught:
        await within(author.own.kv.increment("n"))
    assert caught.value.code == "parent_closed"


async def test_calls_that_come_late_go_to_the_successor(tmp_path: Path):
    old_code = "class P(Plugin):\n    async def model_route(self, request): ...\n"
    new_code = "class P(Plugin):\n    async def model_route(self, request): return ModelRouteResponse(reason='new')\n"
    async with started(tmp_path / "old", old_code) as old, started(tmp_path / "new", new_code) as new:
        await old.drain_and_stop(drain_s=1.0, successor=new)
        assert (await route(old)).value.reason == "new"


async def test_a_stopped_plugin_leaves_no_modules_behind(tmp_path: Path):
    code = "class P(Plugin):\n    async def model_route(self, request): ...\n"
    before = {name for name in sys.modules if name.startswith("_jackfield_plugin_")}
    async with started(tmp_path, code):
        assert {name for name in sys.modules if name.startswith("_jackfield_plugin_")} > before
    assert {name for name in sys.modules if name.startswith("_jackfield_plugin_")} == before
    gc.collect()
