"""From a command to a plugin that is ready, and all the ways in which it does not get there."""

import asyncio
import json
from dataclasses import replace

import pytest

from host.runtime.diagnostics import PluginStartError
from host.runtime.handle import PluginState
from host.runtime.process import PluginEvents
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.lifecycle import RegisterRequest
from tests.support.processes import FAST, fault_spec, route


class States(PluginEvents):
    def __init__(self):
        self.seen = []
        self.registrations = 0

    def state_changed(self, plugin, old, new, reason):
        assert reason
        self.seen.append(str(new))

    def registered(self, plugin):
        self.registrations += 1


async def refused(plugin, within):
    """The report of a start that fails."""
    with pytest.raises(PluginStartError) as caught:
        await within(plugin.start())
    assert plugin.last_report == caught.value.report
    return caught.value.report


async def test_a_plugin_is_started_greeted_registered_called_and_stopped(plugins, within):
    states = States()
    plugin = plugins("healthy", events=states)
    await within(plugin.start())
    assert tuple(plugin.hello.capabilities) == (
        "model.route",
        "executor.execute",
        "executor.execute_stream",
        "plugin.register",
    )
    assert (await within(route(plugin, "echo hello"))).result.reason == "hello"
    await within(plugin.stop())
    assert states.seen == ["starting", "handshaking", "registering", "ready", "draining", "stopped"]
    assert states.registrations == 1


async def test_a_stopped_plugin_can_be_started_again(plugins, within):
    plugin = plugins()
    await within(plugin.start())
    await within(plugin.stop())
    with pytest.raises(PluginTransportError, match="stopped") as caught:
        await within(route(plugin, "echo"))
    assert caught.value.code == "plugin_unavailable"
    await within(plugin.start())
    assert (await within(route(plugin, "echo again"))).result.reason == "again"


async def test_the_plugin_sees_its_directories_and_only_the_allowed_environment(plugins, within, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    plugin = plugins(environment={"EXAMPLE_REGION": "eu"})
    await within(plugin.start())
    environment = json.loads((await within(route(plugin, "env"))).result.reason)
    names = {"PATH", "JACKFIELD_PLUGIN_DIR", "TMPDIR", "EXAMPLE_REGION"}
    assert set(environment) - {"HOME", "LANG", "TZ", "LC_CTYPE"} == names
    assert environment["TMPDIR"] == str(plugin.spec.data_dir / "tmp")
    assert environment["JACKFIELD_PLUGIN_DIR"] == str(plugin.spec.directory)
    assert (await within(route(plugin, "try os.getcwd()"))).result.reason == str(plugin.spec.data_dir)


async def test_the_sandbox_holds_for_the_plugin_itself(plugins, within):
    plugin = plugins()
    await within(plugin.start())
    facts = json.loads((await within(route(plugin, "sandbox"))).result.reason)
    facts.pop("data")
    facts.pop("nofile")
    # A Python plugin ignores SIGPIPE by its own start.
    assert facts == {"no_new_privs": "1", "sigpipe_ignored": True, "core": 0, "session": True, "fds": [0, 1, 2]}


async def test_one_line_of_greeting_before_hello_is_logged_and_forgiven(plugins, within, host):
    plugin = plugins("one-stray-line")
    await within(plugin.start())
    assert plugin.stray_lines == 1
    assert (await within(host.logged("welcome to my plugin"))).level == "info"


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("three-stray-lines", "it prints text on stdout instead of a hello: one | two | three"),
        ("exit-0", "exit code 0"),
        ("hello-twice", "a second hello"),
    ],
)
async def test_a_plugin_that_breaks_while_it_starts_is_reported_and_tried_again(plugins, within, mode, sentence):
    # How a process ended is told when it is reaped, which may take a moment; one that lives on is not waited for.
    timings = replace(FAST, last_words_s=30.0) if mode == "exit-0" else FAST
    report = await refused(plugin := plugins(mode, timings=timings), within)
    assert sentence in report.sentence()
    assert not report.permanent
    assert plugin.state in (PluginState.BACKOFF, PluginState.STARTING, PluginState.HANDSHAKING)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("wrong-id", "its hello says it is 'somebody-else', the manifest says 'faulty'"),
        ("high-schema", "needs payload schema 99, this host has 1: upgrade Jackfield"),
        ("no-common-abi", "speaks ABI 7, this host speaks 1: upgrade Jackfield"),
        ("register-error", "it refused its configuration: threshold is no number (bad_config)"),
        ("extra-capability", "answers capabilities that its hello lacks: auth.refresh"),
    ],
)
async def test_what_trying_again_cannot_help_has_failed_at_once(plugins, within, mode, sentence):
    report = await refused(plugin := plugins(mode), within)
    assert sentence in report.sentence()
    assert report.permanent
    assert plugin.state is PluginState.FAILED
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "echo"))
    assert sentence in str(caught.value)


async def test_an_exit_before_hello_is_reported_with_code_and_last_words(plugins, within):
    report = await refused(plugins("exit-3", timings=replace(FAST, last_words_s=30.0)), within)
    assert (report.phase, report.exit_code) == ("hello", 3)
    assert report.stderr == ("ERROR: no licence found",)


async def test_a_plugin_that_never_says_hello_is_killed_at_the_deadline(plugins, within, life):
    plugin = plugins("no-hello", timings=replace(FAST, hello_s=0.3), environment={"TEST_LIFE": life.path})
    report = await refused(plugin, within)
    assert "no hello within 0.3 s" in report.reason
    await within((await life.born()).ended())


async def test_a_flood_on_stderr_before_hello_does_not_block_the_start(plugins, within):
    plugin = plugins("floods-stderr")
    await within(plugin.start())
    assert plugin.stderr_tail(1) == ["last words of the flood"]


async def test_a_command_that_is_not_executable_says_what_to_do(plugins, within, directory):
    (directory / "tool").write_text("#!/bin/sh\n")
    plugin = plugins(spec=fault_spec(directory, command=("./tool",)))
    report = await refused(plugin, within)
    assert f"chmod +x {directory}/tool" in report.sentence()
    assert plugin.state is PluginState.FAILED


async def test_a_minimal_plugin_gets_nothing_but_hello_and_calls(plugins, within):
    plugin = plugins("minimal")
    await within(plugin.start())
    assert plugin.registration is not None
    assert (await within(route(plugin, "echo tiny"))).result.reason == "tiny"
    await within(plugin.stop())
    assert "shutdown" not in " ".join(plugin.stderr_tail())


async def test_lifecycle_methods_that_are_listed_are_called(plugins, within, host):
    capabilities = "capabilities=model.route,plugin.register,plugin.reconfigure,plugin.shutdown"
    plugin = plugins("healthy", capabilities)
    await within(plugin.start())
    assert await within(plugin.reconfigure(RegisterRequest(config={"a": 1})))
    assert list(plugin.registration.providers) == ["reconfigured"]
    await within(plugin.stop())
    await within(host.logged("shutdown"))


async def test_a_plugin_that_cannot_reconfigure_says_so_and_goes_on(plugins, within):
    plugin = plugins()
    await within(plugin.start())
    assert not await within(plugin.reconfigure(RegisterRequest()))
    assert (await within(route(plugin, "echo on"))).result.reason == "on"


async def test_a_start_that_is_cancelled_and_stopped_leaves_no_process(plugins, within, life):
    plugin = plugins("no-hello", environment={"TEST_LIFE": life.path})
    starting = asyncio.ensure_future(plugin.start())
    born = await within(life.born())
    starting.cancel()
    await within(plugin.stop())
    await within(born.ended())
    assert plugin.state is PluginState.STOPPED
