"""Plugins written with the SDK, as authors write them, started from nothing but an entry."""

import asyncio
import os
import sys
from dataclasses import replace

import pytest

from host.runtime.handle import PluginState
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.lifecycle import RegisterRequest
from tests.support.processes import FAST, FAULT_PLUGIN, Watcher, execute_stream, fault_spec, route

ROOT = FAULT_PLUGIN.parents[2]
ALWAYS_STABLE = replace(FAST, stable_s=0.0, eof_grace_s=30.0, last_words_s=30.0)

PLUGIN = """
import os
from pluginapi import ModelRouteResponse, Plugin, PluginError

print("imported")


class Demo(Plugin):
    id = "faulty"
    version = "1.0.0"

    async def plugin_register(self, request, ctx):
        self.greeting = request.config.get("greeting", "none")
        self.own = ctx.detached()

    async def model_route(self, request, ctx):
        command = request.requested_model
        if command == "kv":
            return ModelRouteResponse(reason=str(await ctx.kv.get("k")))
        if command == "own kv":
            self.own.log.info("on its own")
            return ModelRouteResponse(reason=str(await self.own.kv.get("k")))
        if command == "refuse":
            raise PluginError("no quota", http_status=429, code="rate_limited")
        if command == "exit":
            os._exit(7)
        if command == "greeting":
            return ModelRouteResponse(reason=self.greeting)
        print("working on", command)
        return ModelRouteResponse(reason=command)

    async def executor_execute_stream(self, request, ctx):
        for number in range(3):
            yield {"n": number}
"""


@pytest.fixture(params=["stdio", "unix", "grpc"])
def sdk_spec(request, directory):
    (directory / "demo_plugin.py").write_text(PLUGIN)
    fields = {"protocol": "grpc"} if request.param == "grpc" else {"transport": request.param}
    manifest = {"id": "faulty", "version": "1.0.0", "entry": "demo_plugin:Demo", **fields}
    (directory / "plugin.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in manifest.items()))
    return fault_spec(
        directory,
        command=(),
        entry="demo_plugin:Demo",
        register=lambda: RegisterRequest(config={"greeting": "hello"}),
        permissions=frozenset({"kv"}),
        **fields,
    )


async def test_a_plugin_of_the_sdk_serves_over_every_carrier(plugins, within, host, sdk_spec):
    plugin = plugins(spec=sdk_spec, timings=ALWAYS_STABLE)
    await within(plugin.start())
    assert (await within(route(plugin, "greeting"))).result.reason == "hello"
    assert (await within(route(plugin, "something"))).result.reason == "something"
    await within(host.logged("working on something"))
    with pytest.raises(PluginError) as caught:
        await within(route(plugin, "refuse"))
    assert (caught.value.code, caught.value.http_status) == ("rate_limited", 429)
    await within(route(plugin, "kv"))
    assert [method for method, _ in host.asked] == ["host.kv.get"]
    await within(route(plugin, "own kv"))
    assert [method for method, _ in host.asked] == ["host.kv.get"] * 2
    await within(host.logged("on its own"))
    reply = await within(execute_stream(plugin, "any"))
    assert [item.body.value() async for item in reply.items] == [{"n": 0}, {"n": 1}, {"n": 2}]
    await within(plugin.stop())
    # It went when it was told to: nobody had to signal it.
    assert plugin.last_report is None


async def test_a_plugin_of_the_sdk_that_dies_is_restarted_over_every_carrier(plugins, within, sdk_spec):
    watcher = Watcher()
    plugin = plugins(spec=sdk_spec, timings=ALWAYS_STABLE, events=watcher)
    await within(plugin.start())
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "exit"))
    await within(watcher.reached(PluginState.READY, times=2))
    assert watcher.reports[0].exit_code == 7
    assert (await within(route(plugin, "greeting"))).result.reason == "hello"


async def test_a_plugin_of_the_sdk_under_a_debugger_is_attached_to(plugins, within, directory):
    (directory / "demo_plugin.py").write_text(PLUGIN)
    path = directory / "a.sock"
    watcher = Watcher()
    plugin = plugins(
        spec=fault_spec(directory, attach=f"unix:{path}"),
        events=watcher,
        timings=replace(FAST, stable_s=3600.0),
    )
    starting = asyncio.ensure_future(plugin.start())
    await within(watcher.reached(PluginState.BACKOFF))  # nobody listens yet
    await asyncio.wait([starting])
    assert starting.exception() is not None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pluginapi.run",
        "--listen",
        f"unix:{path}",
        "demo_plugin:Demo",
        env={**os.environ, "PYTHONPATH": str(ROOT), "JACKFIELD_PLUGIN_DIR": str(directory)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    await within(watcher.reached(PluginState.READY))
    assert (await within(route(plugin, "x"))).result.reason == "x"
    await within(plugin.stop())
    assert process.returncode is None
    process.terminate()
    await within(process.wait())
