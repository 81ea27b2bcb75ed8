"""Model calls of plugins: whose request they belong to, how deep and how many, and what their errors keep."""

import asyncio
from typing import Any

import pytest

from host.errors import RequestError
from host.runtime.callbacks import HostCallbacks
from host.runtime.scope import NestedBudget, RequestScope
from host.tasks import TaskGroup
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.limits import CALLBACK_MAX_INFLIGHT, MAX_NESTED_CALLS_PER_REQUEST, MAX_NESTING_DEPTH
from pluginabi.payloads.callbacks import (
    ModelCallRequest,
    ModelCallResponse,
)
from tests.support.callbacks import Items, Models, refusal, scope


async def test_a_nested_call_is_one_deeper_without_its_caller_and_shares_the_budget():
    state, principal = object(), object()
    root = RequestScope(request_id="r1", state=state, principal=principal, skip=frozenset({"a"}))
    nested = scope(request=root).nested("r2")
    assert (nested.request_id, nested.parent_request_id, nested.depth) == ("r2", "r1", 1)
    assert nested.skip == {"a", "p"}
    assert nested.budget is root.budget
    assert (nested.state, nested.principal) == (state, principal)


async def test_a_nested_call_outside_of_a_request_begins_one_of_its_own():
    nested = scope(method="management.handle").nested("r2")
    assert (nested.parent_request_id, nested.depth, nested.skip) == (None, 1, {"p"})


async def test_a_model_is_run_under_the_calling_scope(callbacks: HostCallbacks):
    models = callbacks.models = Models(ModelCallResponse(status=201))
    parent = scope(request=RequestScope(request_id="r1"))
    assert await callbacks.call(parent, "host.model.execute", ModelCallRequest()) == ModelCallResponse(status=201)
    assert models.scopes == [parent]


async def test_nested_calls_stop_at_the_depth_limit(callbacks: HostCallbacks):
    callbacks.models = Models()
    for depth, allowed in ((MAX_NESTING_DEPTH - 1, True), (MAX_NESTING_DEPTH, False)):
        parent = scope(request=RequestScope(request_id="r1", depth=depth))
        if allowed:
            await callbacks.call(parent, "host.model.execute", ModelCallRequest())
        else:
            with pytest.raises(PluginError) as caught:
                await callbacks.call(parent, "host.model.execute", ModelCallRequest())
            assert refusal(caught) == ("depth_exceeded", 500)


async def test_one_client_request_has_64_nested_calls_at_all_depths_together(callbacks: HostCallbacks):
    callbacks.models = Models()
    root = RequestScope(request_id="r1")
    deeper = scope(request=root).nested("r2")
    for number in range(MAX_NESTED_CALLS_PER_REQUEST):
        parent = scope(request=root if number % 2 else deeper)
        await callbacks.call(parent, "host.model.execute", ModelCallRequest())
    assert root.budget == NestedBudget(remaining=0)
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(request=deeper), "host.model.execute", ModelCallRequest())
    assert caught.value.code == "depth_exceeded"


async def test_F8_a_plugin_has_its_own_budget_of_nested_calls_in_flight(callbacks: HostCallbacks, within: Any):
    models = callbacks.models = Models()
    models.hold = asyncio.Event()
    running = [
        asyncio.ensure_future(callbacks.call(scope(), "host.model.execute", ModelCallRequest()))
        for _ in range(CALLBACK_MAX_INFLIGHT)
    ]
    await asyncio.sleep(0)
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(), "host.model.execute", ModelCallRequest())
    assert refusal(caught) == ("plugin_overloaded", 503)
    assert caught.value.body.retry_after_ms is not None
    other = asyncio.ensure_future(callbacks.call(scope(plugin_id="q"), "host.model.execute", ModelCallRequest()))
    models.hold.set()
    await within(asyncio.gather(*running, other))
    await callbacks.call(scope(), "host.model.execute", ModelCallRequest())


FULL = ErrorBody(
    message="m",
    code="c",
    http_status=429,
    retryable=False,
    retry_after_ms=7,
    scope="credential",
    headers={"a": ["b"]},
    body=Body(text="t"),
    body_protocol="claude",
    origin="upstream",
    details={"k": 1},
)


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (PluginError(FULL), 429, "c"),
        (PluginTransportError("q", "executor.execute", phase="exit", cause="x"), 502, "plugin_crashed"),
        (RequestError(400, "unknown_model", "no such model"), 400, "unknown_model"),
    ],
)
async def test_the_error_of_a_nested_call_keeps_its_status(
    callbacks: HostCallbacks, raised: Exception, status: int, code: str
):
    callbacks.models = Models(raised)
    for serve in (callbacks.call, callbacks.open_stream):
        method = "host.model.execute" if serve == callbacks.call else "host.model.execute_stream"
        with pytest.raises(PluginError) as caught:
            await serve(scope(), method, ModelCallRequest())  # type: ignore[operator]
        assert (caught.value.http_status, caught.value.code) == (status, code)
        if raised is not None and isinstance(raised, PluginError):
            assert caught.value.body == FULL


async def test_H118_a_nested_stream_that_fails_to_open_leaves_nothing_behind(callbacks: HostCallbacks):
    callbacks.models = Models(PluginError("no", http_status=503))
    parent = scope()
    with pytest.raises(PluginError):
        await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
    assert parent.on_close == []
    assert callbacks._models_in_flight == {}


async def test_a_nested_stream_delivers_its_items_and_usage(callbacks: HostCallbacks):
    items = (StreamItem(body=Body(text="a")), StreamItem(body=Body(text="b")))
    callbacks.models = Models(items=Items(*items))
    parent = scope()
    result, stream = await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
    assert result == ModelCallResponse(status=200)
    assert [item async for item in stream] == list(items)
    assert stream.usage == Usage(output_tokens=3)
    assert parent.on_close == []
    assert callbacks._models_in_flight == {}


async def test_an_error_in_the_middle_of_a_nested_stream_keeps_its_status(callbacks: HostCallbacks):
    fault = PluginTransportError("q", "executor.execute_stream", phase="exit", cause="gone")
    callbacks.models = Models(items=Items(StreamItem(), ends=fault))
    _, stream = await callbacks.open_stream(scope(), "host.model.execute_stream", ModelCallRequest())
    with pytest.raises(PluginError) as caught:
        _ = [item async for item in stream]
    assert (caught.value.http_status, caught.value.code, caught.value.body.origin) == (502, "plugin_crashed", "host")


async def test_H116_H117_a_parent_that_closes_closes_its_nested_stream(
    callbacks: HostCallbacks, tasks: TaskGroup, within: Any
):
    inner = Items(StreamItem(), hangs=True)
    callbacks.models = Models(items=inner)
    parent = scope()
    _, stream = await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
    iterator = aiter(stream)
    await anext(iterator)
    waiting = asyncio.ensure_future(anext(iterator))
    await asyncio.sleep(0)
    parent.close()
    with pytest.raises(PluginError) as caught:
        await within(waiting)
    assert caught.value.code == "parent_closed"
    assert inner.closed == ["parent_closed"]
    assert callbacks._models_in_flight == {}


async def test_a_nested_stream_that_its_plugin_left_lying_ends_with_the_call_and_is_not_counted_on(
    callbacks: HostCallbacks, tasks: TaskGroup, within: Any
):
    """The hook neither read nor closed it."""
    callbacks.models = Models(ModelCallResponse(), Items(StreamItem(raw=Body(text="x"))))
    for _ in range(CALLBACK_MAX_INFLIGHT + 1):
        parent = scope()
        await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
        parent.close()
        await within(tasks.join())
