"""The boundary between calls and an author's code: values and exceptions become uniform here."""

import asyncio
import contextvars
import sys
import threading

import pytest

from pluginabi.errors import PluginTransportError
from pluginapi import (
    Context,
    Dispatcher,
    Empty,
    ErrorBody,
    ModelRouteRequest,
    ModelRouteResponse,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Reply,
    SchedulerPickRequest,
    SchedulerPickResponse,
    ShutdownRequest,
    Usage,
    UsageHandleRequest,
    blocking,
)
from tests.support.dispatch import LONG, logged, plugin_with, route


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
    barrier = threading.Barrier(2, timeout=20)

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
