"""The only door to plugin code."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from host.runtime.handle import Reply
from host.runtime.invoke import Invoker
from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, PluginTimeout, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from pluginabi.payloads.routing import ModelRouteRequest, ModelRouteResponse
from tests.support.carriers import FULL
from tests.support.runtime import FakeHandle, binding, observer

REQUEST = ModelRouteRequest(request_id="r1")
TRANSPORT_FAULT = PluginTransportError("p", "model.route", phase="exit", cause="it exited")


class Items:
    """An `ItemStream` made of an async generator."""

    def __init__(self, generator: AsyncIterator[StreamItem], usage: Usage | None = None) -> None:
        self.usage: Usage | None = None
        self.closed: list[str] = []
        self._generator = generator
        self._usage = usage

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        async for item in self._generator:
            yield item
        self.usage = self._usage

    async def aclose(self, reason: str = "client_gone") -> None:
        self.closed.append(reason)


def item(text: str) -> StreamItem:
    return StreamItem(raw=Body(text=text))


async def call(handle: FakeHandle, method: str = "model.route", request: Any = None, **fields: Any) -> Any:
    return await Invoker().call(binding(handle, method, **fields), lambda _: REQUEST, request)


async def test_an_answer_comes_back_with_its_usage():
    answer = ModelRouteResponse(target_kind="self")
    handle = FakeHandle(model_route=Reply(result=answer, usage=Usage(input_tokens=1)))
    found = await call(handle)
    assert (found.value, found.usage, found.failed_open, found.error) == (answer, Usage(input_tokens=1), False, None)


async def test_the_input_is_built_for_this_binding_and_passed_as_it_is():
    handle = FakeHandle()
    wanted = binding(handle, "model.route")
    seen = []

    def build(one: Any) -> ModelRouteRequest:
        seen.append(one)
        return REQUEST

    await Invoker().call(wanted, build, None)
    assert seen == [wanted]
    assert handle.calls[0][1] is REQUEST


@pytest.mark.parametrize("error", [PluginError(FULL), TRANSPORT_FAULT, PluginTimeout("p", "m", timeout_ms=5)])
async def test_a_failure_is_skipped_or_raised_unchanged_as_the_binding_says(error: Exception):
    skipped = await call(FakeHandle(model_route=error), on_error="skip")
    assert skipped.failed_open is True
    assert skipped.value is None
    with pytest.raises(type(error)) as caught:
        await call(FakeHandle(model_route=error), on_error="fail")
    assert caught.value is error


async def test_every_field_of_a_skipped_error_stays_readable():
    assert (await call(FakeHandle(model_route=PluginError(FULL)))).error == FULL


async def test_an_unexpected_exception_is_a_plugin_error_that_tells_clients_only_its_class():
    with capture_logs() as logs, pytest.raises(PluginError) as caught:
        await call(FakeHandle(model_route=ZeroDivisionError("secret detail")), on_error="fail")
    assert caught.value.http_status == 500
    assert "ZeroDivisionError" in caught.value.body.message
    assert "secret" not in caught.value.body.message
    assert any(line["event"] == "plugin.unexpected_exception" for line in logs)


async def test_a_broken_scheduler_is_left_out_while_its_own_errors_count():
    with pytest.raises(PluginError):
        await call(FakeHandle(scheduler_pick=PluginError("no", http_status=403)), "scheduler.pick")
    found = await call(FakeHandle(scheduler_pick=TRANSPORT_FAULT), "scheduler.pick")
    assert found.failed_open is True


async def test_S93_a_schedulers_error_keeps_its_status():
    with pytest.raises(PluginError) as caught:
        await call(FakeHandle(scheduler_pick=PluginError("no", http_status=403)), "scheduler.pick")
    assert caught.value.http_status == 403


async def test_the_deadline_is_the_bindings_unless_the_caller_says_otherwise():
    handle = FakeHandle()
    invoker = Invoker()
    before = time.monotonic()
    await invoker.call(binding(handle, "model.route", timeout_s=3.0), lambda _: REQUEST, None)
    await invoker.call(binding(handle, "model.route", timeout_s=3.0), lambda _: REQUEST, None, timeout_s=1.0)
    await invoker.call(binding(handle, "model.route", timeout_s=3.0), lambda _: REQUEST, None, timeout_s=None)
    assert handle.timeouts_s == [3.0, 1.0, None]
    first, second, third = (scope.deadline_s for scope in handle.scopes)
    assert first is not None and 3.0 <= first - before < 8.0
    assert second is not None and 1.0 <= second - before < 6.0
    assert third is None


async def test_the_callback_scope_carries_permissions_and_request_and_ends_with_the_call():
    request = RequestScope(request_id="r1")
    seen: list[bool] = []

    async def answer(params: Any, scope: CallScope) -> Reply:
        seen.append(scope.closed)
        return Reply(result=ModelRouteResponse())

    for handle in (FakeHandle(model_route=answer), FakeHandle(model_route=PluginError("x"))):
        await call(handle, request=request, permissions=frozenset({"kv"}))
        (scope,) = handle.scopes
        assert scope.request is request
        assert (scope.plugin_id, scope.method, scope.permissions) == ("p", "model.route", {"kv"})
        assert scope.closed
    assert seen == [False]


async def test_cancelling_a_call_cancels_the_plugin_and_closes_the_scope(within: Any):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(params: Any, scope: CallScope) -> Reply:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    handle = FakeHandle(model_route=answer)
    seen, observe = observer()
    work = Invoker(observe=observe).call(binding(handle, "model.route"), lambda _: REQUEST, None)
    task = asyncio.ensure_future(work)
    await within(started.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert cancelled.is_set()
    assert handle.scopes[0].closed
    assert seen == [("p", "model.route", "cancelled")]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Reply(result=ModelRouteResponse()), "ok"),
        (PluginError("x"), "error"),
        (TRANSPORT_FAULT, "fault"),
        (PluginTimeout("p", "model.route", timeout_ms=5), "timeout"),
    ],
)
async def test_every_call_is_counted_with_its_outcome(answer: Any, outcome: str):
    seen, observe = observer()
    handle = FakeHandle(model_route=answer)
    await Invoker(observe=observe).call(binding(handle, "model.route"), lambda _: REQUEST, None)
    assert seen == [("p", "model.route", outcome)]


async def test_the_decision_trace_gets_every_call_and_why_it_failed():
    records: list[tuple[str, dict[str, Any]]] = []
    request = RequestScope(request_id="r1", record=lambda kind, **fields: records.append((kind, fields)))
    await call(FakeHandle(), request=request)
    await call(FakeHandle(model_route=PluginError(FULL)), request=request)
    (_, good), (_, bad) = records
    assert [kind for kind, _ in records] == ["call", "call"]
    assert (good["plugin_id"], good["method"], good["outcome"]) == ("p", "model.route", "ok")
    assert good["duration_ms"] >= 0
    assert (bad["outcome"], bad["cause"], bad["code"], bad["status"]) == ("failed_open", "error", "rate_limited", 429)


async def test_the_trace_of_a_stream_is_not_flooded_by_hooks_that_work():
    records: list[Any] = []
    request = RequestScope(request_id="r1", record=lambda kind, **fields: records.append(fields["outcome"]))
    method = "response.intercept_stream_chunk"
    await call(FakeHandle(), method, request)
    await call(FakeHandle(response_intercept_stream_chunk=PluginError("x")), method, request)
    assert records == ["failed_open"]
    assert request.tallies is not None
    assert request.tallies["p", method].calls == 1


async def test_a_failure_is_logged_with_plugin_method_and_request():
    with capture_logs() as logs:
        await call(FakeHandle(model_route=TRANSPORT_FAULT), request=RequestScope(request_id="r1"))
    (line,) = [line for line in logs if line["event"] == "plugin.call_failed"]
    assert (line["plugin_id"], line["method"], line["request_id"], line["failed_open"]) == (
        "p",
        "model.route",
        "r1",
        True,
    )


# -- streams


async def open_stream(handle: FakeHandle, *, invoker: Invoker | None = None, **fields: Any) -> Reply:
    wanted = binding(handle, "executor.execute_stream", **fields)
    return await (invoker or Invoker()).stream(wanted, lambda _: ExecutorRequest(), None)


def streaming(generator: AsyncIterator[StreamItem], usage: Usage | None = None) -> tuple[FakeHandle, Items]:
    items = Items(generator, usage)
    return FakeHandle(executor_execute_stream=Reply(result=ExecutorResponse(), items=items)), items


async def test_items_come_in_order_and_the_usage_at_the_end():
    async def produce() -> AsyncIterator[StreamItem]:
        yield item("a")
        yield StreamItem()
        yield item("b")

    handle, _ = streaming(produce(), Usage(output_tokens=2))
    seen, observe = observer()
    reply = await open_stream(handle, invoker=Invoker(observe=observe), idle_timeout_s=5.0)
    assert handle.scopes[0].closed is False
    assert [found async for found in reply.items] == [item("a"), StreamItem(), item("b")]
    assert reply.items.usage == Usage(output_tokens=2)
    assert handle.scopes[0].closed is True
    assert seen == [("p", "executor.execute_stream", "ok"), ("p", "executor.execute_stream:items", "ok")]


async def test_an_answer_without_a_stream_closes_the_call():
    handle = FakeHandle(executor_execute_stream=Reply(result=ExecutorResponse()))
    reply = await open_stream(handle)
    assert reply.items is None
    assert handle.scopes[0].closed


async def test_an_error_instead_of_a_stream_is_raised_whatever_the_failure_mode():
    handle = FakeHandle(executor_execute_stream=PluginError(FULL))
    with pytest.raises(PluginError) as caught:
        await open_stream(handle, on_error="skip")
    assert caught.value.body == FULL
    assert handle.scopes[0].closed


async def test_an_error_in_the_middle_keeps_every_field():
    async def produce() -> AsyncIterator[StreamItem]:
        yield item("a")
        raise PluginError(FULL)

    handle, _ = streaming(produce())
    reply = await open_stream(handle, idle_timeout_s=5.0)
    got = []
    with pytest.raises(PluginError) as caught:
        async for found in reply.items:
            got.append(found)
    assert got == [item("a")]
    assert caught.value.body == FULL
    assert handle.scopes[0].closed


async def test_the_parents_deadline_no_longer_counts_after_the_result():
    async def produce() -> AsyncIterator[StreamItem]:
        yield item("a")

    handle, _ = streaming(produce())
    reply = await open_stream(handle, timeout_s=3.0)
    assert handle.scopes[0].deadline_s is None
    await reply.items.aclose()


async def test_silence_between_items_ends_the_stream_as_a_timeout(within: Any):
    async def produce() -> AsyncIterator[StreamItem]:
        yield item("a")
        await asyncio.Event().wait()

    handle, items = streaming(produce())
    seen, observe = observer()
    reply = await open_stream(handle, invoker=Invoker(observe=observe), idle_timeout_s=0.02)
    stream = aiter(reply.items)
    assert await anext(stream) == item("a")
    with pytest.raises(PluginTimeout) as caught:
        await within(anext(stream))
    assert caught.value.timeout_ms == 20
    assert items.closed == ["deadline"]
    assert seen[-1] == ("p", "executor.execute_stream:items", "timeout")
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_time_the_consumer_takes_is_not_silence(monkeypatch: pytest.MonkeyPatch):
    """The idle check runs while nobody asks for an item, and must not fire."""

    async def produce() -> AsyncIterator[StreamItem]:
        yield item("a")
        yield item("b")

    handle, _ = streaming(produce())
    reply = await open_stream(handle, idle_timeout_s=5.0)
    stream = aiter(reply.items)
    await anext(stream)
    reply.items._check()
    assert await anext(stream) == item("b")
    await reply.items.aclose()


async def test_progress_counts_as_a_sign_of_life(within: Any):
    """Each item, progress or not, starts the idle time anew."""
    gates = [asyncio.Event() for _ in range(3)]

    async def produce() -> AsyncIterator[StreamItem]:
        for gate in gates:
            await gate.wait()
            yield StreamItem()

    handle, _ = streaming(produce())
    reply = await open_stream(handle, idle_timeout_s=30.0)
    stream = aiter(reply.items)
    limits = []
    for gate in gates:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        limits.append(reply.items._waits_until_s)
        gate.set()
        assert (await within(waiting)).is_progress
    assert limits == sorted(limits)
    await reply.items.aclose()


async def test_closing_a_stream_tells_the_plugin_why_and_only_once():
    async def produce() -> AsyncIterator[StreamItem]:
        yield item("a")

    handle, items = streaming(produce())
    seen, observe = observer()
    reply = await open_stream(handle, invoker=Invoker(observe=observe))
    await reply.items.aclose("client_gone")
    await reply.items.aclose("shutdown")
    assert items.closed == ["client_gone"]
    assert handle.scopes[0].closed
    assert seen[-1] == ("p", "executor.execute_stream:items", "cancelled")


async def test_a_cancelled_reader_is_not_mistaken_for_silence(within: Any):
    async def produce() -> AsyncIterator[StreamItem]:
        await asyncio.Event().wait()
        yield item("never")

    handle, _ = streaming(produce())
    reply = await open_stream(handle, idle_timeout_s=30.0)
    reading = asyncio.ensure_future(anext(aiter(reply.items)))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(reading)
    await reply.items.aclose()
