"""Plugins inside the host."""

import asyncio
import gc
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from host.runtime import drive
from host.runtime.callback_http import HttpCallbacks
from host.runtime.handle import PluginState
from host.runtime.inprocess import InProcessPlugin, InProcessStartError
from host.runtime.invoke import Invoker
from host.runtime.scope import RequestScope
from host.tasks import TaskGroup
from host.upstream.client import UpstreamClient
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTimeout, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.immutable import freeze, freeze_headers
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptRequest
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginabi.payloads.routing import ModelRouteRequest, ModelRouteResponse
from tests.support.runtime import binding, new_callbacks, not_started, started
from tests.support.upstream_servers import ScriptedServer, ServerConnection

FULL_ERROR = """
class P(Plugin):
    async def model_route(self, request):
        raise PluginError(ErrorBody(
            message="quota", code="rate_limited", http_status=429, retryable=True, retry_after_ms=1500, scope="model",
            headers={"x-quota": ["0"]}, body=Body.from_bytes(b'{"a":1}'), body_protocol="openai", origin="upstream",
            details={"k": [1]}))
"""


async def route(plugin: InProcessPlugin, request: Any = None, scope: RequestScope | None = None, **fields: Any) -> Any:
    wanted = binding(plugin, "model.route", **{"on_error": "fail", **fields})
    return await Invoker().call(wanted, lambda _: request or ModelRouteRequest(), scope)


async def stream(plugin: InProcessPlugin, **fields: Any) -> Any:
    wanted = binding(plugin, "executor.execute_stream", **fields)
    return await Invoker().stream(wanted, lambda _: ExecutorRequest(), None)


async def test_L19_a_plugin_with_one_hook_is_ready_and_answers(tmp_path: Path):
    code = (
        "class P(Plugin):\n    async def model_route(self, request):\n        return ModelRouteResponse(reason='x')\n"
    )
    async with started(tmp_path, code) as plugin:
        assert plugin.state is PluginState.READY
        assert plugin.hello is not None
        assert "model.route" in plugin.hello.capabilities
        assert (await route(plugin)).value == ModelRouteResponse(reason="x")


async def test_nothing_answered_is_the_empty_answer(tmp_path: Path):
    code = "class P(Plugin):\n    async def model_route(self, request):\n        return None\n"
    async with started(tmp_path, code) as plugin:
        assert (await route(plugin)).value == ModelRouteResponse()


async def test_an_error_survives_bit_by_bit(tmp_path: Path):
    async with started(tmp_path, FULL_ERROR) as plugin:
        with pytest.raises(PluginError) as caught:
            await route(plugin)
    assert caught.value.body == ErrorBody(
        message="quota",
        code="rate_limited",
        http_status=429,
        retryable=True,
        retry_after_ms=1500,
        scope="model",
        headers={"x-quota": ["0"]},
        body=Body.from_bytes(b'{"a":1}'),
        body_protocol="openai",
        origin="upstream",
        details={"k": [1]},
    )


@pytest.mark.parametrize(
    ("raised", "body"),
    [
        ("PluginError(' ')", ErrorBody(message="plugin call failed", origin="plugin")),
        ("PluginError('a', origin='host')", ErrorBody(message="a", origin="plugin")),
        (
            "PluginError('a', http_status=200)",
            ErrorBody(message="a", http_status=500, origin="plugin", details={"http_status": 200}),
        ),
        ("PluginError('a', http_status='429')", ErrorBody(message="a", origin="plugin")),
        ("PluginError('a', code=' ')", ErrorBody(message="a", origin="plugin")),
    ],
)
async def test_an_error_is_normalised_as_if_it_had_crossed_a_wire(tmp_path: Path, raised: str, body: ErrorBody):
    code = f"class P(Plugin):\n    async def model_route(self, request):\n        raise {raised}\n"
    async with started(tmp_path, code) as plugin:
        with pytest.raises(PluginError) as caught:
            await route(plugin)
    assert caught.value.body == body


async def test_L22_an_exception_is_an_ordinary_error_and_the_plugin_goes_on(tmp_path: Path):
    code = """
class P(Plugin):
    calls = 0
    async def model_route(self, request):
        self.calls += 1
        if self.calls == 1:
            raise ZeroDivisionError("secret")
        return ModelRouteResponse(reason=str(self.calls))
"""
    async with started(tmp_path, code) as plugin:
        with capture_logs() as logs, pytest.raises(PluginError) as caught:
            await route(plugin)
        assert (caught.value.http_status, caught.value.code) == (500, "plugin_error")
        assert "secret" not in caught.value.body.message
        assert plugin.state is PluginState.READY
        assert (await route(plugin)).value.reason == "2"
    (line,) = [line for line in logs if line["event"] == "plugin.exception"]
    assert line["plugin_id"] == "p"
    assert "ZeroDivisionError: secret" in line["traceback"]


async def test_inputs_are_shared_and_deeply_immutable(tmp_path: Path):
    code = """
class P(Plugin):
    async def model_route(self, request):
        self.seen = request
        problems = []
        for attempt in (
            lambda: setattr(request, "stream", True),
            lambda: request.metadata.__setitem__("a", 1),
            lambda: request.metadata["list"].append(1),
            lambda: request.metadata["map"].update(x=1),
            lambda: request.headers["a"].append("b"),
        ):
            try:
                attempt()
            except (TypeError, AttributeError):
                continue
            problems.append(1)
        return ModelRouteResponse(reason=str(len(problems)))
"""
    request = ModelRouteRequest(
        headers=freeze_headers([("A", "1")]), metadata=freeze({"list": [1], "map": {"a": [{}]}, "drop": object()})
    )
    async with started(tmp_path, code) as plugin:
        assert (await route(plugin, request)).value.reason == "0"
        assert plugin._dispatcher is not None
        assert plugin._dispatcher.plugin.seen is request  # type: ignore[attr-defined]


async def test_the_context_knows_plugin_request_permissions_and_deadline(tmp_path: Path):
    code = """
class P(Plugin):
    async def model_route(self, request, ctx):
        remaining = ctx.remaining_s()
        parts = [ctx.plugin_id, ctx.request_id, sorted(ctx.permissions), 0 < remaining <= 5]
        return ModelRouteResponse(reason=repr(parts))
"""
    async with started(tmp_path, code) as plugin:
        scope = RequestScope(request_id="r1")
        answer = await route(plugin, scope=scope, permissions=frozenset({"kv", "http"}))
    assert answer.value.reason == "['p', 'r1', ['http', 'kv'], True]"


async def test_a_hook_past_its_deadline_is_a_timeout_and_the_plugin_goes_on(tmp_path: Path, within: Any):
    code = """
class P(Plugin):
    waits = True
    async def model_route(self, request, ctx):
        if self.waits:
            self.waits = False
            self.ctx = ctx
            await asyncio.Event().wait()
        return ModelRouteResponse(reason=str(self.ctx.cancelled.is_set()))
"""
    async with started(tmp_path, code) as plugin:
        with pytest.raises(PluginTimeout) as caught:
            await within(route(plugin, timeout_s=0.02))
        assert (caught.value.http_status, caught.value.code) == (504, "plugin_timeout")
        assert (await route(plugin)).value.reason == "True"
        assert plugin.in_flight == 0


async def test_a_blocking_hook_runs_in_a_thread_and_learns_that_it_is_cancelled(tmp_path: Path, within: Any):
    code = """
import threading
class P(Plugin):
    started = threading.Event()
    ended = threading.Event()
    @blocking
    def model_route(self, request, ctx):
        self.thread = threading.current_thread()
        self.started.set()
        while not ctx.cancelled.is_set():
            self.ended.wait(0.01)
        self.ended.set()
"""
    async with started(tmp_path, code) as plugin:
        with pytest.raises(PluginTimeout):
            await within(route(plugin, timeout_s=0.1))
        assert plugin._dispatcher is not None
        author: Any = plugin._dispatcher.plugin
        assert await asyncio.to_thread(author.ended.wait, 10)
        assert author.thread is not threading.main_thread()


async def test_hooks_of_one_plugin_run_at_the_same_time(tmp_path: Path, within: Any):
    code = """
class P(Plugin):
    def __init__(self):
        self.both = asyncio.Barrier(2)
    async def model_route(self, request):
        await self.both.wait()
        return ModelRouteResponse(reason="met")
"""
    async with started(tmp_path, code) as plugin:
        answers = await within(asyncio.gather(route(plugin), route(plugin)))
    assert [answer.value.reason for answer in answers] == ["met", "met"]


async def test_a_full_plugin_queues_calls_and_then_says_overloaded(
    tmp_path: Path, within: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("host.runtime.inprocess.QUEUE_MAX_WAIT_S", 0.02)
    code = """
class P(Plugin):
    async def plugin_register(self, request):
        self.go, self.running = asyncio.Event(), asyncio.Event()
    async def model_route(self, request):
        self.running.set()
        await self.go.wait()
"""
    tasks = TaskGroup("test")
    plugin = not_started(tmp_path, code, tasks, max_inflight=1)
    await plugin.start()
    assert plugin._dispatcher is not None
    author: Any = plugin._dispatcher.plugin
    first = asyncio.ensure_future(route(plugin))
    await within(author.running.wait())
    with pytest.raises(PluginTransportError) as caught:
        await within(route(plugin))
    assert (caught.value.code, caught.value.http_status) == ("plugin_overloaded", 503)
    author.go.set()
    await within(first)
    await within(route(plugin))
    await tasks.stop()


# -- streams

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
            async with asyncio.timeout(10):
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


# -- start, reconfigure, stop


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('no disk')", "importing 'plugin:P' failed: OSError: no disk"),
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


async def test_a_body_is_not_copied_on_its_way_in_and_out(tmp_path: Path):
    code = """
class P(Plugin):
    async def request_intercept_before(self, request):
        return RequestInterceptResponse(body=request.body)
"""
    body = Body.from_bytes(b'{"a": 1}')
    async with started(tmp_path, code) as plugin:
        wanted = binding(plugin, "request.intercept_before")
        answer = await Invoker().call(wanted, lambda _: RequestInterceptRequest(body=body), None)
    assert answer.value.body is body
