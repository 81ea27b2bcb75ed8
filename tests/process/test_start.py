"""From a command to a plugin that is ready, and all the ways in which it does not get there."""

from host.runtime.handle import PluginState
from tests.support.processes import route


async def test_a_plugin_is_started_greeted_registered_called_and_stopped(plugins, within):
    plugin = plugins("healthy")
    await within(plugin.start())
    assert plugin.state is PluginState.READY
    assert plugin.hello.capabilities == [
        "model.route",
        "executor.execute",
        "executor.execute_stream",
        "plugin.register",
    ]
    assert (await within(route(plugin, "echo hello"))).result.reason == "hello"
    await within(plugin.stop())
    assert plugin.state is PluginState.STOPPED
