"""Plugins behind a Unix socket, over gRPC, and attached to a process somebody else runs."""

import asyncio
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from host.runtime.diagnostics import PluginStartError
from host.runtime.handle import PluginState
from pluginabi.errors import PluginTransportError
from tests.support.processes import FAST, FAULT_PLUGIN, Watcher, execute_stream, fault_spec, route

ALWAYS_STABLE = replace(FAST, stable_s=0.0, last_words_s=30.0)


def sockets_in(directory: Path) -> list[Path]:
    return [path for path in directory.glob("jf-*") if path.is_dir()]


@pytest.fixture
def grpc_spec(directory):
    return fault_spec(
        directory,
        command=("{python}", str(FAULT_PLUGIN.with_name("grpc_plugin.py"))),
        protocol="grpc",
    )


async def test_a_plugin_behind_a_unix_socket_is_greeted_called_and_its_directory_removed(plugins, within, directory):
    plugin = plugins(transport="unix", runtime_dir=directory)
    await within(plugin.start())
    (folder,) = sockets_in(directory)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (await within(route(plugin, "echo over a socket"))).result.reason == "over a socket"
    reply = await within(execute_stream(plugin, "stream 3"))
    assert len([item async for item in reply.items]) == 3
    await within(plugin.stop())
    assert sockets_in(directory) == []


async def test_what_a_socket_plugin_prints_on_stdout_is_its_output(plugins, within, host):
    plugin = plugins(transport="unix")
    await within(plugin.start())
    await within(route(plugin, "print-stdout hello there"))
    await within(host.logged("hello there"))
    await within(route(plugin, 'print-stdout {"kind":"result","id":1,"ok":true}'))
    await within(host.logged("a result frame on stdout"))
    assert plugin.state is PluginState.READY


async def test_a_dead_socket_plugin_is_restarted_with_a_new_directory(plugins, within, directory):
    watcher = Watcher()
    plugin = plugins(transport="unix", runtime_dir=directory, events=watcher, timings=ALWAYS_STABLE)
    await within(plugin.start())
    first = sockets_in(directory)
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "exit 3"))
    await within(watcher.reached(PluginState.READY, times=2))
    assert watcher.reports[0].exit_code == 3
    assert len(sockets_in(directory)) == 1
    assert sockets_in(directory) != first


async def test_a_plugin_that_says_hello_without_listening_is_reported(plugins, within, directory):
    plugin = plugins("does-not-listen", transport="unix", runtime_dir=directory)
    with pytest.raises(PluginStartError, match="no connection"):
        await within(plugin.start())
    await within(plugin.stop())
    assert sockets_in(directory) == []


async def test_a_socket_directory_that_is_too_deep_is_refused_with_its_path(plugins, within, directory):
    deep = directory / ("x" * 90)
    deep.mkdir()
    with pytest.raises(PluginStartError, match="is longer than 100 bytes"):
        await within(plugins(transport="unix", runtime_dir=deep).start())


async def test_a_socket_served_by_another_user_is_refused(plugins, within, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PluginStartError, match="not to ours"):
        await within(plugins(transport="unix").start())


async def test_a_grpc_plugin_is_greeted_called_and_stopped(plugins, within, directory, grpc_spec):
    plugin = plugins(spec=grpc_spec)
    await within(plugin.start())
    assert (await within(route(plugin, "over grpc"))).result.reason == "over grpc"
    await within(plugin.stop())
    assert sockets_in(directory) == []


async def test_a_dead_grpc_plugin_fails_its_calls_and_is_restarted(plugins, within, grpc_spec):
    watcher = Watcher()
    plugin = plugins(spec=grpc_spec, events=watcher, timings=ALWAYS_STABLE)
    await within(plugin.start())
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin, "exit"))
    assert caught.value.code == "plugin_crashed"
    await within(watcher.reached(PluginState.READY, times=2))
    assert watcher.reports[0].exit_code == 4


async def test_spawning_beside_a_busy_grpc_plugin_disturbs_nobody(plugins, within, grpc_spec, capfd):
    busy = plugins(spec=grpc_spec)
    await within(busy.start())
    calls = [asyncio.ensure_future(route(busy, f"busy {number}")) for number in range(200)]
    others = [plugins() for _ in range(5)]
    await within(asyncio.gather(*(other.start() for other in others)))
    replies = await within(asyncio.gather(*calls))
    assert [reply.result.reason for reply in replies] == [f"busy {number}" for number in range(200)]
    assert "fork" not in capfd.readouterr().err  # grpc's complaint about threads


class Foreign:
    """A plugin process that somebody else runs."""

    def __init__(self, directory: Path, life: str) -> None:
        self.path = str(directory / "attach.sock")
        self._life = life

    async def run(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-S",
            str(FAULT_PLUGIN),
            "listen",
            f"path={self.path}",
            env={**os.environ, "TEST_LIFE": self._life},
        )


async def test_an_attached_process_is_used_and_neither_started_nor_killed(plugins, within, life, directory):
    foreign = Foreign(directory, life.path)
    process = await foreign.run()
    born = await within(life.born())
    plugin = plugins(attach=f"unix:{foreign.path}", command=("/no/such/command",))
    await within(plugin.start())
    assert plugin.pid is None
    assert (await within(route(plugin, "pid"))).result.reason == str(process.pid)
    await within(plugin.stop())
    assert born.alive()
    await within(plugin.start())
    assert (await within(route(plugin, "pid"))).result.reason == str(process.pid)
    await within(plugin.stop())
    process.terminate()
    await within(process.wait())


async def test_an_attached_process_that_ends_is_waited_for_without_ever_giving_up(plugins, within, life, directory):
    foreign = Foreign(directory, life.path)
    process = await foreign.run()
    await within(life.born())
    watcher = Watcher()
    plugin = plugins(attach=f"unix:{foreign.path}", events=watcher, timings=replace(FAST, stable_s=3600.0))
    await within(plugin.start())
    process.kill()
    await within(process.wait())
    await within(watcher.reached(PluginState.BACKOFF, times=7))
    os.unlink(foreign.path)
    process = await foreign.run()
    await within(watcher.reached(PluginState.READY, times=2))
    await within(plugin.stop())
    process.kill()
    await within(process.wait())
