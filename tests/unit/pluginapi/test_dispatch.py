"""The boundary between calls and an author's code: values and exceptions become uniform here."""

import asyncio
import contextvars
import sys
import threading

import msgspec
import pytest

from pluginabi.errors import PluginTransportError
from pluginapi import (
    Body,
    Context,
    Dispatcher,
    Empty,
    ErrorBody,
    ExecutorRequest,
    ExecutorResponse,
    HttpStream,
    ModelRouteRequest,
    ModelRouteResponse,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Reply,
    SchedulerPickRequest,
    SchedulerPickResponse,
    ShutdownRequest,
    Stream,
    StreamItem,
    Usage,
    UsageHandleRequest,
    blocking,
)

LONG = ErrorBody(
    message="slow down",
    code="rate_limited",
    http_status=429,
    retryable=False,
    retry_after_ms=1500,
    scope="model",
    headers={"x-quota": ["0"]},
    body=Body.from_value({"error": "quota"}),
    body_protocol="openai",
    origin="upstream",
    details={"limit": 3},
)


def plugin_with(**hooks):
    """An instance of a plugin class made of these hooks."""
    return type("Made", (Plugin,), {"id": "made", **hooks})()


def logged(lines):
    return Context(log=lambda level, event, fields: lines.append((level, event, fields)))


async def route(hook, ctx=None):
    return await Dispatcher(plugin_with(model_route=hook)).dispatch(
        "model.route", ModelRouteRequest(), ctx or Context()
    )


async def stream(hook):
    dispatcher = Dispatcher(plugin_with(executor_execute_stream=hook))
    return await dispatcher.dispatch("executor.execute_stream", ExecutorRequest(), Context())


async def test_arguments_are_given_by_name_to_the_hooks_that_ask_for_them(within):
    seen = []
    ctx = Context(request_id="r1")
    request = ModelRouteRequest(requested_model="m")

    async def both(self, request, ctx):
        seen.append((request, ctx))

    async def swapped(self, ctx, request):
        seen.append((request, ctx))

    async def only_request(self, request):
        seen.append(request)

    async def only_ctx(self, ctx):
        seen.append(ctx)

    async def none(self):
        seen.append("none")

    for hook in (both, swapped, only_request, only_ctx, none):
        await within(Dispatcher(plugin_with(model_route=hook)).dispatch("model.route", request, ctx))
    assert seen == [(request, ctx), (request, ctx), request, ctx, "none"]


async def test_a_struct_nothing_and_a_reply_become_one_shape():
    answer = ModelRouteResponse(target_kind="self")
    usage = Usage(input_tokens=1)

    async def struct(self):
        return answer

    async def nothing(self):
        return None

    async def reply(self):
        return Reply(answer, usage=usage)

    assert (await route(struct)).result is answer
    assert (await route(nothing)).result is None
    with_usage = await route(reply)
    assert (with_usage.result, with_usage.usage_of()) == (answer, usage)


async def test_an_answer_of_another_type_is_the_authors_error_and_says_what_was_expected():
    async def wrong(self):
        return {"target_kind": "self"}

    with pytest.raises(PluginError, match=r"model.route answered dict; it answers ModelRouteResponse or nothing"):
        await route(wrong)


async def test_a_plugin_error_keeps_every_field():
    async def hook(self):
        raise PluginError(LONG)

    with pytest.raises(PluginError) as caught:
        await route(hook)
    assert caught.value.body is LONG


async def test_a_foreign_exception_becomes_a_500_with_its_class_name_and_its_text_stays_in_the_log():
    lines = []

    async def hook(self):
        raise KeyError("a secret key")

    with pytest.raises(PluginError) as caught:
        await route(hook, logged(lines))
    assert caught.value.body == ErrorBody(message="KeyError in model.route", code="plugin_error", http_status=500)
    ((level, event, fields),) = lines
    assert (level, event, fields["error"]) == ("error", "plugin.exception", "KeyError")
    assert "a secret key" in fields["traceback"]
    assert fields["traceback"].splitlines()[1].strip().startswith(f'File "{__file__}"')


async def test_leaving_the_process_from_a_hook_is_an_ordinary_error():
    async def hook(self):
        sys.exit(3)

    with pytest.raises(PluginError, match=r"SystemExit in model.route"):
        await route(hook)


async def test_a_transport_fault_of_a_callback_keeps_its_status():
    async def hook(self):
        raise PluginTransportError("other", "executor.execute", phase="wait", cause="no answer within 5 ms")

    with pytest.raises(PluginError) as caught:
        await route(hook)
    assert (caught.value.http_status, caught.value.code) == (504, "plugin_timeout")


async def test_cancelling_the_caller_passes_through_and_sets_the_cancelled_signal(within):
    started = asyncio.Event()
    ctx = Context()

    async def hook(self):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(route(hook, ctx))
    await within(started.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert ctx.cancelled.is_set()


async def test_somebody_elses_cancellation_that_a_hook_lets_escape_is_an_error_and_not_a_gone_client():
    async def hook(self):
        inner = asyncio.get_running_loop().create_future()
        inner.cancel()
        await inner

    with pytest.raises(PluginError, match=r"CancelledError in model.route"):
        await route(hook)


async def test_an_unknown_or_unimplemented_method_is_not_found():
    dispatcher = Dispatcher(plugin_with())
    for method in ("model.route", "no.such"):
        with pytest.raises(PluginError) as caught:
            await dispatcher.dispatch(method, ModelRouteRequest(), Context())
        assert (caught.value.code, caught.value.http_status) == ("method_not_found", 500)


async def test_register_and_shutdown_are_answered_without_being_overridden():
    dispatcher = Dispatcher(plugin_with())
    registered = await dispatcher.dispatch("plugin.register", RegisterRequest(), Context())
    stopped = await dispatcher.dispatch("plugin.shutdown", ShutdownRequest(), Context())
    assert (registered.result, stopped.result) == (RegisterResponse(), Empty())


async def test_register_hands_over_the_configuration_deeply_immutable_and_the_permissions():
    dispatcher = Dispatcher(plugin_with())
    request = RegisterRequest(config={"threshold": 3, "deep": {"list": [1]}}, permissions=["kv"])
    await dispatcher.dispatch("plugin.register", request, Context())
    assert dispatcher.plugin.config == {"threshold": 3, "deep": {"list": (1,)}}
    assert dispatcher.permissions == {"kv"}
    with pytest.raises(TypeError, match="immutable"):
        dispatcher.plugin.config["deep"]["x"] = 1


async def test_a_refused_reconfigure_keeps_the_configuration_and_permissions_that_worked():
    async def plugin_reconfigure(self, request):
        raise PluginError("threshold must be positive", http_status=400)

    dispatcher = Dispatcher(plugin_with(plugin_reconfigure=plugin_reconfigure))
    await dispatcher.dispatch("plugin.register", RegisterRequest(config={"a": 1}, permissions=["kv"]), Context())
    with pytest.raises(PluginError):
        await dispatcher.dispatch("plugin.reconfigure", RegisterRequest(config={"a": -1}), Context())
    assert (dispatcher.plugin.config, dispatcher.permissions) == ({"a": 1}, {"kv"})


async def test_an_empty_answer_of_a_notification_is_accepted():
    seen = []

    async def usage_handle(self, request):
        seen.append(request.model)

    dispatcher = Dispatcher(plugin_with(usage_handle=usage_handle))
    reply = await dispatcher.dispatch("usage.handle", UsageHandleRequest(model="m"), Context())
    assert (seen, reply.result) == (["m"], None)


# -- blocking hooks


async def test_a_blocking_hook_runs_off_the_loop_with_the_callers_context_variables(within):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("caller's")
    seen = []

    def pick(self, request):
        seen.append((threading.current_thread() is threading.main_thread(), variable.get()))
        return SchedulerPickResponse(auth_id="a")

    dispatcher = Dispatcher(plugin_with(scheduler_pick=blocking(pick)))
    reply = await within(dispatcher.dispatch("scheduler.pick", SchedulerPickRequest(), Context()))
    assert (reply.result.auth_id, seen) == ("a", [(False, "caller's")])
    dispatcher.close()


async def test_blocking_hooks_run_at_the_same_time_up_to_their_number_of_threads(within):
    # The barrier opens only when two hooks are inside at once.
    barrier = threading.Barrier(2, timeout=5)

    def pick(self):
        barrier.wait()

    dispatcher = Dispatcher(plugin_with(scheduler_pick=blocking(pick), blocking_threads=2))
    calls = [dispatcher.dispatch("scheduler.pick", SchedulerPickRequest(), Context()) for _ in range(4)]
    await within(asyncio.gather(*calls))
    dispatcher.close()


async def test_a_blocking_hook_sees_that_its_call_was_cancelled(within):
    loop = asyncio.get_running_loop()
    started, noticed = asyncio.Event(), asyncio.Event()
    may_look = threading.Event()

    def pick(self, ctx):
        loop.call_soon_threadsafe(started.set)
        may_look.wait(5)
        if ctx.cancelled.is_set():
            loop.call_soon_threadsafe(noticed.set)

    dispatcher = Dispatcher(plugin_with(scheduler_pick=blocking(pick)))
    task = asyncio.create_task(dispatcher.dispatch("scheduler.pick", SchedulerPickRequest(), Context()))
    await within(started.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    may_look.set()
    await within(noticed.wait())
    dispatcher.close()


async def test_errors_of_a_blocking_hook_are_converted_like_any_other(within):
    def own(self):
        raise PluginError(LONG)

    def foreign(self):
        raise StopIteration

    dispatcher = Dispatcher(plugin_with(scheduler_pick=blocking(own), model_route=blocking(foreign)))
    with pytest.raises(PluginError) as caught:
        await within(dispatcher.dispatch("scheduler.pick", SchedulerPickRequest(), Context()))
    assert caught.value.body is LONG
    with pytest.raises(PluginError, match=r"RuntimeError in model.route"):
        await within(dispatcher.dispatch("model.route", ModelRouteRequest(), Context()))
    dispatcher.close()


# -- streams


async def test_a_generator_opens_a_stream_and_every_short_spelling_becomes_an_item(within):
    class Point(msgspec.Struct):
        x: int

    whole = StreamItem(event="whole", body=Body(text="t"))

    async def hook(self):
        yield {"a": 1}
        yield ("named", {"b": 2})
        yield [1, 2]
        yield Point(3)
        yield Body(text="plain")
        yield None
        yield whole

    reply = await within(stream(hook))
    items = [item async for item in reply.items]
    assert reply.result == ExecutorResponse()
    assert [(item.event, item.body.to_bytes()) for item in items if not item.is_progress] == [
        (None, b'{"a":1}'),
        ("named", b'{"b":2}'),
        (None, b"[1,2]"),
        (None, b'{"x":3}'),
        (None, b"plain"),
        ("whole", b"t"),
    ]
    assert items[5].is_progress
    assert items[6] is whole


async def test_bytes_and_text_are_raw_data(within):
    async def hook(self):
        yield b"data: \xc3"
        yield "text\n\n"

    reply = await within(stream(hook))
    assert [item.raw.to_bytes() async for item in reply.items] == [b"data: \xc3", b"text\n\n"]


async def test_a_stream_answer_carries_status_headers_and_usage(within):
    async def items():
        yield {"a": 1}

    async def hook(self):
        return Stream(items(), status=201, headers={"X-One": "1", "x-two": ["a", "b"]}, usage=Usage(total_tokens=9))

    reply = await within(stream(hook))
    assert (reply.result.status, dict(reply.result.headers)) == (201, {"x-one": ("1",), "x-two": ("a", "b")})
    assert len([item async for item in reply.items]) == 1
    assert reply.usage_of() == Usage(total_tokens=9)


class Upstream:
    """The items of `ctx.http.stream`, as a port gives them."""

    usage = None

    def __init__(self) -> None:
        self.closed = ""
        self.left = [StreamItem(raw=Body.exact(piece)) for piece in (b"data: 1\n\n", b"data: 2\n\n")]

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise PluginError(LONG)
        return self.left.pop(0)

    async def aclose(self, reason="client_gone"):
        self.closed = reason


async def test_an_upstreams_stream_passed_on_keeps_its_items_and_its_error_and_is_closed_with_the_answer(within):
    upstream = Upstream()
    items = list(upstream.left)

    async def hook(self):
        return Stream(HttpStream(200, {}, upstream), usage=Usage(total_tokens=9))

    reply = await within(stream(hook))
    passed = [await within(anext(reply.items)) for _ in items]
    assert [before is after for before, after in zip(items, passed, strict=True)] == [True, True]
    with pytest.raises(PluginError) as caught:
        await within(anext(reply.items))
    assert caught.value.body is LONG
    await within(reply.items.aclose("deadline"))
    assert (upstream.closed, reply.usage_of()) == ("deadline", Usage(total_tokens=9))


async def test_a_yielded_usage_is_the_usage_of_the_end_and_no_item(within):
    async def hook(self):
        yield Usage(input_tokens=1)
        yield {"a": 1}
        yield Usage(input_tokens=1, output_tokens=2)

    reply = await within(stream(hook))
    assert len([item async for item in reply.items]) == 1
    assert reply.usage_of() == Usage(input_tokens=1, output_tokens=2)


async def test_an_error_before_the_first_item_of_a_generator_is_an_ordinary_answer(within):
    async def hook(self):
        raise PluginError(LONG)
        yield

    with pytest.raises(PluginError) as caught:
        await within(stream(hook))
    assert caught.value.body is LONG


async def test_an_error_after_items_keeps_every_field_and_the_usage_so_far(within):
    async def hook(self):
        yield {"a": 1}
        yield Usage(input_tokens=1)
        raise PluginError(LONG)

    reply = await within(stream(hook))
    assert (await within(anext(reply.items))).body.to_bytes() == b'{"a":1}'
    with pytest.raises(PluginError) as caught:
        await within(anext(reply.items))
    assert (caught.value.body, reply.usage_of()) == (LONG, Usage(input_tokens=1))


async def test_a_foreign_exception_in_a_stream_is_a_500_with_its_class_name(within):
    async def hook(self):
        yield {"a": 1}
        raise ValueError("secret")

    reply = await within(stream(hook))
    await within(anext(reply.items))
    with pytest.raises(PluginError, match=r"ValueError in executor.execute_stream"):
        await within(anext(reply.items))


async def test_an_empty_generator_is_an_empty_stream(within):
    async def hook(self):
        return
        yield

    reply = await within(stream(hook))
    assert [item async for item in reply.items] == []


async def test_events_and_raw_data_in_one_stream_are_an_error(within):
    async def hook(self):
        yield {"a": 1}
        yield None
        yield b"raw"

    reply = await within(stream(hook))
    with pytest.raises(PluginError, match="all events or all raw"):
        [item async for item in reply.items]


async def test_a_value_that_is_no_item_is_an_error(within):
    async def hook(self):
        yield {"a": 1}
        yield ("one", "two", "three")

    reply = await within(stream(hook))
    with pytest.raises(PluginError, match=r"TypeError in executor.execute_stream"):
        [item async for item in reply.items]


async def test_closing_runs_the_authors_cleanup_once(within):
    closed = []

    async def hook(self):
        try:
            yield {"a": 1}
            yield {"a": 2}
        finally:
            closed.append("closed")

    reply = await within(stream(hook))
    await within(anext(reply.items))
    await within(reply.items.aclose("client_gone"))
    await within(reply.items.aclose())
    assert closed == ["closed"]
    assert [item async for item in reply.items] == []


async def test_closing_a_stream_whose_items_never_started_keeps_them_from_starting(within):
    async def items():
        pytest.fail("started")
        yield

    async def hook(self):
        return Stream(items())

    reply = await within(stream(hook))
    await within(reply.items.aclose())
    assert [item async for item in reply.items] == []


async def test_an_exception_in_the_cleanup_of_a_closed_stream_is_logged_and_dropped(within):
    lines = []

    async def hook(self):
        try:
            yield {"a": 1}
        finally:
            raise ValueError("in cleanup")

    dispatcher = Dispatcher(plugin_with(executor_execute_stream=hook))
    reply = await within(dispatcher.dispatch("executor.execute_stream", ExecutorRequest(), logged(lines)))
    await within(anext(reply.items))
    await within(reply.items.aclose())
    assert [fields["error"] for _, _, fields in lines] == ["ValueError"]


@pytest.mark.parametrize("status", [199, 300, 429])
async def test_a_stream_with_another_status_than_success_is_an_error(status):
    async def hook(self):
        return Stream(items=None, status=status)

    with pytest.raises(PluginError, match="200 to 299"):
        await stream(hook)


async def test_a_streaming_hook_that_opens_no_stream_is_an_error():
    async def hook(self):
        return ExecutorResponse()

    with pytest.raises(PluginError, match=r"answered ExecutorResponse; it answers Stream"):
        await stream(hook)
