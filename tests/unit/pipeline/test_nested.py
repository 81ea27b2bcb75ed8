"""host.model.*: nested executions."""

import asyncio
from typing import Any

import pytest

from host.errors import RequestError
from host.runtime.scope import CallScope
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.limits import MAX_NESTING_DEPTH
from pluginabi.payloads.callbacks import ModelCallRequest
from pluginabi.payloads.common import Termination
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.routing import ModelRouteResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    answering,
    as_item,
    client_request,
    compat_config,
    executor,
    streaming,
    world,
)

BEFORE, ROUTE, COMPLETE = "request.intercept_before", "model.route", "request.complete"


def call(body: Any = None, **fields: Any) -> ModelCallRequest:
    return ModelCallRequest(body=Body.from_value({"model": "inner"} if body is None else body), **fields)


class Caller:
    """A plugin `p` that makes one nested call from its router, and what came of it."""

    def __init__(self, params: ModelCallRequest, *, stream: bool = False, **hooks: Any) -> None:
        self.plugin = FakePlugin(
            id="p", hooks={ROUTE: self._route, BEFORE: lambda _: None, COMPLETE: lambda _: None}, priority=9, **hooks
        )
        self.world: World | None = None
        self.answer: Any = None
        self.items: list[Any] = []
        self.error: Exception | None = None
        self.scope: CallScope | None = None
        self._params = params
        self._stream = stream

    async def _route(self, _: Any) -> None:
        assert self.world is not None
        self.scope = self.plugin.handle.scopes[-1]
        models = self.world.gateway.models
        # As the runtime does, which counts nested calls.
        self.scope.request.budget.remaining -= 1  # type: ignore[union-attr]
        try:
            if self._stream:
                self.answer, stream = await models.execute_stream(self._params, self.scope)
                self.items = [item async for item in stream]
                await stream.aclose()
            else:
                self.answer = await models.execute(self._params, self.scope)
        except (PluginError, RequestError) as error:
            self.error = error


async def run(caller: Caller, *plugins: FakePlugin, **request: Any) -> World:
    caller.world = world(caller.plugin, *plugins, config=compat_config(models=("m", "inner")))
    await caller.world.gateway.execute(client_request(**request))
    await caller.world.settled()
    return caller.world


async def test_a_nested_call_goes_through_the_whole_pipeline_with_its_own_id_and_the_callers_principal():
    caller, upstream = Caller(call()), executor(answering({"id": "nested"}))
    w = await run(caller, upstream, headers={"X-A": "1"})
    inner, outer = upstream.seen("executor.execute")
    assert caller.answer.body.value() == {"id": "nested"}
    assert (inner.request_id, inner.parent_request_id, outer.request_id) == ("r1.1", "r1", "r1")
    assert (inner.model, inner.metadata["source"]) == ("inner", "plugin_host_model_callback")
    assert inner.metadata["caller"] == "tester"
    assert dict(inner.headers) == {"x-a": ("1",)}
    assert "source" not in outer.metadata
    assert w.decisions("nested")[0]["request_id"] == "r1.1"


async def test_NX_01_given_headers_query_and_exit_protocol_are_used():
    formats = ExecutorRegistration(input_formats=["openai"], output_formats=["openai", "claude"])
    upstream = executor(answering(), executor=formats)
    caller = Caller(
        call(entry_protocol="openai", exit_protocol="anthropic", headers={"X-B": ["2"]}, query={"q": ["3"]})
    )
    await run(caller, upstream, headers={"X-A": "1"})
    inner = upstream.seen("executor.execute")[0]
    assert (inner.source_format, inner.format) == ("openai", "claude")
    assert (dict(inner.headers), dict(inner.query)) == ({"x-b": ("2",)}, {"q": ("3",)})


@pytest.mark.parametrize("stream", [False, True])
async def test_NX_02_R74_the_callers_hooks_are_left_out_and_others_run(stream):
    other = FakePlugin(id="other", hooks={ROUTE: lambda _: None, BEFORE: lambda _: None, COMPLETE: lambda _: None})
    upstream = executor(answering(), stream=streaming(b'data: {"finish_reason":"stop"}\n\n'))
    caller = Caller(call(), stream=stream)
    await run(caller, other, upstream)
    assert caller.error is None
    for method in (ROUTE, BEFORE, COMPLETE):
        assert [seen.request_id for seen in other.seen(method)].count("r1.1") == 1
        assert [seen.request_id for seen in caller.plugin.seen(method)] == ["r1"]


async def test_R74_with_only_the_callers_router_nothing_is_routed():
    caller, upstream = Caller(call()), executor(answering())
    w = await run(caller, upstream)
    assert w.decisions("route", "r1.1") == []
    assert caller.answer.status == 200


async def test_a_nested_error_keeps_its_status_and_fields():
    error = PluginError(ErrorBody(message="slow", code="rate_limited", http_status=429, retry_after_ms=1500))
    upstream = executor(lambda seen: error if seen.model == "inner" else ExecutorResponse())
    caller = Caller(call())
    await run(caller, upstream)
    assert isinstance(caller.error, PluginError)
    assert (caller.error.http_status, caller.error.body.retry_after_ms) == (429, 1500)


async def test_NX_04_a_nested_stream_delivers_its_items_and_then_its_error_with_every_field():
    failing = FakeItems([as_item({"t": "a"}), PluginError("rate limited", http_status=429, headers={"x": ["1"]})])
    caller = Caller(call(), stream=True)

    async def collect() -> None:
        caller.world = world(
            caller.plugin, executor(answering(), stream=lambda _: failing), config=compat_config(models=("m", "inner"))
        )
        await caller.world.gateway.execute(client_request())

    await collect()
    assert isinstance(caller.error, PluginError)
    assert (caller.error.http_status, dict(caller.error.body.headers)) == (429, {"x": ["1"]})


async def test_NX_05_closing_a_nested_stream_closes_the_upstream():
    items = FakeItems([as_item({"t": "a"}), asyncio.Event()])
    w = world(executor(answering(), stream=lambda _: items), config=compat_config(models=("m", "inner")))
    scope = outer_scope(w)
    _, stream = await w.gateway.models.execute_stream(call(), scope)
    await anext(aiter(stream))
    await stream.aclose("parent_closed")
    assert items.closed == ["parent_closed"]
    assert [it.outcome for it in w.completed] == ["canceled"]


def outer_scope(w: World, *, depth: int = 0) -> CallScope:
    ex = w.gateway.begin(client_request(), "executor.execute")
    ex.scope.depth = depth
    return CallScope(plugin_id="p", method=ROUTE, request=ex.scope)


async def test_the_depth_is_limited():
    w = world(executor(answering()), config=compat_config(models=("m", "inner")))
    with pytest.raises(PluginError) as refused:
        await w.gateway.models.execute(call(), outer_scope(w, depth=MAX_NESTING_DEPTH))
    assert refused.value.code == "depth_exceeded"


async def test_a_call_without_a_request_has_no_parent():
    w = world(executor(answering()))
    with pytest.raises(PluginError) as refused:
        await w.gateway.models.execute(call(), CallScope(plugin_id="p", method="usage.handle"))
    assert refused.value.code == "parent_closed"


@pytest.mark.parametrize(
    ("stream", "params"),
    [
        (False, call({"model": "inner", "stream": True})),
        (True, call({"model": "inner", "stream": False})),
        (False, call({})),
        (False, ModelCallRequest(model="inner", body=Body(text="no json"))),
    ],
    ids=["stream on execute", "no stream on execute_stream", "no model", "no json"],
)
async def test_a_call_that_contradicts_itself_is_400(stream, params):
    caller = Caller(params, stream=stream)
    await run(caller, executor(answering(), stream=streaming({"t": "a"})))
    assert isinstance(caller.error, RequestError)
    assert caller.error.body.http_status == 400


async def test_a_streamed_call_asks_the_upstream_for_a_stream_and_for_the_model_of_the_call():
    upstream = executor(answering(), stream=streaming({"t": "a"}))
    caller = Caller(call({"model": "other"}, model="inner"), stream=True)
    await run(caller, upstream)
    assert upstream.seen("executor.execute_stream")[0].body.value() == {"model": "inner", "stream": True}
    assert [item.body.value() for item in caller.items] == [{"t": "a"}]


@pytest.mark.parametrize(("status", "stream"), [(200, False), (200, True), (403, False), (403, True)])
async def test_a_terminated_nested_call_answers_its_response_or_fails_with_its_status(status, stream):
    end = RequestInterceptResponse(terminate=Termination(status=status, body=Body.from_value({"by": "guard"})))
    guard = FakePlugin(id="guard", hooks={BEFORE: lambda seen: end if seen.model == "inner" else None})
    caller = Caller(call(), stream=stream)
    await run(caller, guard, executor(answering()))
    if status == 403:
        assert isinstance(caller.error, PluginError)
        assert (caller.error.http_status, caller.error.body.body.value()) == (403, {"by": "guard"})
    else:
        got = caller.items[0].raw.to_bytes() if stream else caller.answer.body.to_bytes()
        assert got == b'{"by":"guard"}'


async def test_a_nested_call_uses_the_state_its_request_started_with():
    w = world(executor(answering()), config=compat_config(models=("m", "inner")))
    scope = outer_scope(w)
    w.gateway.state = world(executor(lambda _: PluginError("new state", http_status=500))).gateway.state
    assert (await w.gateway.models.execute(call(), scope)).status == 200


async def test_routers_of_a_nested_call_may_route_it():
    target = FakePlugin(id="target", hooks={"executor.execute": answering({"by": "target"})})
    chosen = ModelRouteResponse(target_kind="executor", target="target")
    other = FakePlugin(id="other", hooks={ROUTE: lambda seen: chosen if seen.parent_request_id else None})
    caller = Caller(call())
    await run(caller, other, target, executor(answering()))
    assert caller.answer.body.value() == {"by": "target"}
