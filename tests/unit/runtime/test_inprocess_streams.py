"""Streams of plugins inside the host."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from host.runtime import drive
from host.runtime.callback_http import HttpCallbacks
from host.runtime.invoke import Invoker
from host.tasks import TaskGroup
from host.upstream.client import UpstreamClient
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, PluginTimeout
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from tests.support.inprocess_calls import stream
from tests.support.runtime import binding, new_callbacks, started
from tests.support.upstream_servers import ScriptedServer, ServerConnection

STREAMS = """
class P(Plugin):
    closed = None
    async def executor_execute_stream(self, request, ctx):
        self.closed = asyncio.Event()
        try:
            yield b"a"
            yield None
            yield b"b"
            yield Usage(output_tokens=2)
            if self.config.get("fails"):
                raise PluginError("late", http_status=429, code="c")
            if self.config.get("hangs"):
                await asyncio.Event().wait()
        finally:
            self.closed.set()
"""


async def test_a_stream_yields_items_progress_and_usage(tmp_path: Path):
    async with started(tmp_path, STREAMS) as plugin:
        reply = await stream(plugin)
        assert plugin.in_flight == 1
        items = [item async for item in reply.items]
        assert items == [StreamItem(raw=Body.exact(b"a")), StreamItem(), StreamItem(raw=Body.exact(b"b"))]
        assert reply.items.usage == Usage(output_tokens=2)
        assert isinstance(reply.result, ExecutorResponse)
        assert plugin.in_flight == 0


async def test_an_error_in_the_middle_of_a_stream_keeps_its_status(tmp_path: Path):
    async with started(tmp_path, STREAMS, config={"fails": True}) as plugin:
        reply = await stream(plugin)
        got = []
        with pytest.raises(PluginError) as caught:
            async for item in reply.items:
                got.append(item)
    assert len(got) == 3
    assert (caught.value.http_status, caught.value.code, caught.value.body.origin) == (429, "c", "plugin")
    assert reply.items.usage == Usage(output_tokens=2)


async def test_closing_a_stream_runs_the_authors_finally_blocks(tmp_path: Path, within: Any):
    async with started(tmp_path, STREAMS, config={"hangs": True}) as plugin:
        reply = await stream(plugin)
        await anext(aiter(reply.items))
        await within(reply.items.aclose())
        assert plugin._dispatcher is not None
        author: Any = plugin._dispatcher.plugin
        assert author.closed.is_set()
        assert plugin.in_flight == 0


async def test_a_silent_stream_is_closed_by_the_idle_timeout(tmp_path: Path, within: Any):
    async with started(tmp_path, STREAMS, config={"hangs": True}) as plugin:
        reply = await stream(plugin, idle_timeout_s=0.02)
        got = []
        with pytest.raises(PluginTimeout):
            async with asyncio.timeout(60):
                async for item in reply.items:
                    got.append(item)
        assert len(got) == 3
        assert plugin._dispatcher is not None
        author: Any = plugin._dispatcher.plugin
        assert author.closed.is_set()


async def test_a_generator_whose_cleanup_never_ends_holds_nobody_up(
    tmp_path: Path, within: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drive, "DEADLINE_GRACE_S", 0.01)
    monkeypatch.setattr("host.runtime.inprocess.CLOSE_TIMEOUT_S", 0.01)
    code = """
class P(Plugin):
    async def executor_execute_stream(self, request, ctx):
        try:
            yield b"a"
        finally:
            await asyncio.Event().wait()
"""
    async with started(tmp_path, code) as plugin:
        reply = await stream(plugin)
        await anext(aiter(reply.items))
        with capture_logs() as logs:
            await within(reply.items.aclose())
        assert any(line["event"] == "plugin.close_timeout" for line in logs)
        assert plugin.in_flight == 0


async def test_a_stream_that_opens_after_the_deadline_is_closed(tmp_path: Path, within: Any):
    code = """
class P(Plugin):
    async def executor_execute_stream(self, request, ctx):
        self.closed = asyncio.Event()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        async def items():
            try:
                yield b"a"
            finally:
                self.closed.set()
        self.items = items()
        return Stream(items=self.items)
"""
    async with started(tmp_path, code) as plugin:
        with pytest.raises(PluginTimeout):
            await within(stream(plugin, timeout_s=0.02))
        await within(plugin._tasks.join())
        assert plugin._dispatcher is not None
        author: Any = plugin._dispatcher.plugin
        with pytest.raises(StopAsyncIteration):
            await anext(author.items)


PASSING_ON = """
class P(Plugin):
    async def executor_execute_stream(self, request, ctx):
        answer = await ctx.http.stream("GET", request.model)
        return Stream(items=answer, status=answer.status)
"""


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("rest", "code"), [(b"0\r\n\r\n", ""), (b"nonsense\r\n", "upstream_disconnected")], ids=["whole", "broken"]
)
async def test_an_upstream_stream_that_a_plugin_passes_on_counts_as_its_call_until_its_end(
    tmp_path: Path, within: Any, rest: bytes, code: str
):
    go_on = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(HEAD + b"3\r\none\r\n")
        await go_on.wait()
        await connection.send(rest)
        await connection.closed_by_peer()

    tasks = TaskGroup("http")
    client = UpstreamClient()
    callbacks = new_callbacks(tasks, http=HttpCallbacks(client))
    async with ScriptedServer(script) as server, started(tmp_path, PASSING_ON, callbacks=callbacks) as plugin:
        wanted = binding(plugin, "executor.execute_stream", permissions=frozenset({"http"}))
        opened = await within(Invoker().stream(wanted, lambda _: ExecutorRequest(model=server.url), None))
        assert (await within(anext(opened.items))).raw.to_bytes() == b"one"
        assert plugin.in_flight == 1
        go_on.set()
        with pytest.raises((StopAsyncIteration, PluginError)) as ended:
            await within(anext(opened.items))
        assert getattr(ended.value, "code", "") == code
        assert plugin.in_flight == 0
        await client.close()
    await tasks.stop()


async def test_closing_an_upstream_stream_that_a_plugin_passes_on_closes_its_connection(tmp_path: Path, within: Any):
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(HEAD + b"3\r\none\r\n")
        await connection.closed_by_peer()

    tasks = TaskGroup("http")
    client = UpstreamClient()
    callbacks = new_callbacks(tasks, http=HttpCallbacks(client))
    async with ScriptedServer(script) as server, started(tmp_path, PASSING_ON, callbacks=callbacks) as plugin:
        wanted = binding(plugin, "executor.execute_stream", permissions=frozenset({"http"}))
        opened = await within(Invoker().stream(wanted, lambda _: ExecutorRequest(model=server.url), None))
        await within(opened.items.aclose())
        assert plugin.in_flight == 0
        await within(client.close())
    await tasks.stop()
