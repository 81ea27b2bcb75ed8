"""Calls of plugins inside the host."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from host.runtime.handle import PluginState
from host.runtime.invoke import Invoker
from host.runtime.scope import RequestScope
from host.tasks import TaskGroup
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, PluginTimeout, PluginTransportError
from pluginabi.immutable import freeze, freeze_headers
from pluginabi.payloads.intercept import RequestInterceptRequest
from pluginabi.payloads.routing import ModelRouteRequest, ModelRouteResponse
from tests.support.carriers import FULL
from tests.support.inprocess_calls import route
from tests.support.runtime import binding, not_started, started

FULL_ERROR = """
class P(Plugin):
    async def model_route(self, request):
        raise PluginError(ErrorBody(
            message="quota", code="rate_limited", http_status=429, retryable=True, retry_after_ms=1500, scope="model",
            headers={"x-quota": ["0"]}, body=Body.from_bytes(b'{"a":1}'), body_protocol="openai", origin="upstream",
            details={"k": [1]}))
"""


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
    assert caught.value.body == replace(FULL, origin="upstream")


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


# -- start, reconfigure, stop


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
