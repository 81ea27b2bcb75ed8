"""The test kit, and through it the service that answers a session's calls."""

import asyncio
import threading

import pytest

from pluginapi import (
    Body,
    Context,
    ExecutorRequest,
    ExecutorResponse,
    HttpResponse,
    ModelRouteRequest,
    ModelRouteResponse,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Reply,
    SchedulerPickRequest,
    Stream,
    Usage,
    UsageHandleRequest,
    blocking,
)
from pluginapi.testing import FakeHost, PluginHarness
from tests.support.dispatch import LONG

pytest_plugins = ["pluginapi.testing.fixtures"]

ROUTE = ModelRouteRequest(request_id="r1", requested_model="m")


class Made(Plugin):
    id = "made"
    version = "1.2.3"


def plugin_with(**hooks):
    return type("Made", (Made,), hooks)


async def test_a_call_returns_the_answer_that_crossed_the_wire(plugin_harness):
    async def model_route(self, request):
        return ModelRouteResponse(target_kind="provider", target=request.requested_model)

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        answer = await plugin.call("model.route", ROUTE)
        assert (plugin.hello.plugin, plugin.hello.version) == ("made", "1.2.3")
        assert tuple(plugin.hello.capabilities) == ("plugin.register", "model.route")
    assert answer == ModelRouteResponse(target_kind="provider", target="m")


async def test_no_opinion_is_the_response_with_its_defaults(plugin_harness):
    async def model_route(self):
        return None

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        assert await plugin.call("model.route", ROUTE) == ModelRouteResponse()


async def test_usage_of_a_reply_arrives_on_the_closing_frame(plugin_harness):
    async def executor_execute(self):
        return Reply(ExecutorResponse(body=Body.from_value({"a": 1})), usage=Usage(output_tokens=2))

    async with plugin_harness(plugin_with(executor_execute=executor_execute)) as plugin:
        result, usage = await plugin.reply("executor.execute", ExecutorRequest())
    assert (result.body.value(), usage) == ({"a": 1}, Usage(output_tokens=2))


async def test_an_error_crosses_the_wire_with_every_field(plugin_harness):
    async def model_route(self):
        raise PluginError(LONG)

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        with pytest.raises(PluginError) as caught:
            await plugin.call("model.route", ROUTE)
    assert caught.value.body == LONG


async def test_a_foreign_exception_is_logged_with_its_traceback(plugin_harness):
    async def model_route(self):
        raise ValueError("secret")

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        with pytest.raises(PluginError, match=r"ValueError in model\.route"):
            await plugin.call("model.route", ROUTE)
        ((line),) = plugin.logs
    assert (line.level, line.event) == ("error", "plugin.exception")
    assert "ValueError: secret" in line.fields["traceback"]


async def test_entering_registers_with_the_configuration_and_leaving_shuts_down(plugin_harness):
    seen = []

    async def plugin_register(self, request: RegisterRequest):
        seen.append(("register", dict(self.config), tuple(request.permissions)))
        return RegisterResponse(providers=("p",))

    async def plugin_shutdown(self):
        seen.append("shutdown")

    made = plugin_with(plugin_register=plugin_register, plugin_shutdown=plugin_shutdown)
    async with plugin_harness(made, config={"a": 1}, permissions=["kv"]) as plugin:
        assert list(plugin.registration.providers) == ["p"]
    assert seen == [("register", {"a": 1}, ("kv",)), "shutdown"]


async def test_a_refused_configuration_is_raised_on_entering(plugin_harness):
    async def plugin_register(self):
        raise PluginError("url is missing", http_status=400)

    with pytest.raises(PluginError, match="url is missing"):
        async with plugin_harness(plugin_with(plugin_register=plugin_register)):
            pytest.fail("entered")


async def test_reconfigure_changes_the_configuration_of_the_running_plugin(plugin_harness):
    async def plugin_reconfigure(self):
        return None

    async with plugin_harness(plugin_with(plugin_reconfigure=plugin_reconfigure), config={"a": 1}) as plugin:
        await plugin.reconfigure({"a": 2})
        assert plugin.plugin.config == {"a": 2}


async def test_a_stream_is_read_with_its_events_and_usage(plugin_harness):
    async def executor_execute_stream(self):
        for number in range(100):
            yield {"n": number}
        yield Usage(output_tokens=100)

    async with plugin_harness(plugin_with(executor_execute_stream=executor_execute_stream)) as plugin:
        run = await plugin.stream("executor.execute_stream", ExecutorRequest())
    assert (run.values(), run.usage) == ([{"n": number} for number in range(100)], Usage(output_tokens=100))


async def test_raw_bytes_arrive_byte_by_byte_even_where_they_look_like_json(plugin_harness):
    parts = [b'{"a":\n1}\r\n', b"data: \xc3", b"\xa9\n\n", b""]

    async def executor_execute_stream(self):
        for part in parts:
            yield part

    async with plugin_harness(plugin_with(executor_execute_stream=executor_execute_stream)) as plugin:
        run = await plugin.stream("executor.execute_stream", ExecutorRequest())
    assert [item.raw.to_bytes() for item in run.items] == parts


async def test_an_error_in_the_middle_of_a_stream_keeps_every_field(plugin_harness):
    async def executor_execute_stream(self):
        yield {"n": 1}
        raise PluginError(LONG)

    seen = []
    async with plugin_harness(plugin_with(executor_execute_stream=executor_execute_stream)) as plugin:
        with pytest.raises(PluginError) as caught:
            async with plugin.open_stream("executor.execute_stream", ExecutorRequest()) as stream:
                async for item in stream:
                    seen.append(item.body.value())
    assert (seen, caught.value.body) == ([{"n": 1}], LONG)


async def test_leaving_a_stream_early_runs_the_authors_cleanup(plugin_harness, within):
    cleaned = asyncio.Event()

    async def executor_execute_stream(self):
        try:
            while True:
                yield {"n": 1}
        finally:
            cleaned.set()

    async with plugin_harness(plugin_with(executor_execute_stream=executor_execute_stream)) as plugin:
        async with plugin.open_stream("executor.execute_stream", ExecutorRequest()) as stream:
            await anext(stream)
        await within(cleaned.wait())


async def test_a_producer_waits_for_its_consumer(plugin_harness, within):
    produced = []
    full = asyncio.Event()

    async def executor_execute_stream(self):
        for number in range(64):
            produced.append(number)
            if number == 32:
                full.set()
            yield {"n": number}

    async with plugin_harness(plugin_with(executor_execute_stream=executor_execute_stream)) as plugin:
        async with plugin.open_stream("executor.execute_stream", ExecutorRequest()) as stream:
            await within(full.wait())
            # The window is 32 items: the 33rd was produced and now waits for credit.
            assert len(produced) == 33
            assert len([item async for item in stream]) == 64


async def test_a_timed_out_call_is_cancelled_in_the_plugin(plugin_harness, within):
    cancelled = asyncio.Event()

    async def model_route(self, ctx: Context):
        try:
            await asyncio.Event().wait()
        finally:
            assert ctx.cancelled.is_set()
            cancelled.set()

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        with pytest.raises(Exception, match="no answer within 500 ms"):
            await plugin.call("model.route", ROUTE, timeout_ms=500)
        await within(cancelled.wait())


async def test_the_context_knows_its_request_permissions_and_deadline(plugin_harness):
    async def model_route(self, ctx: Context):
        remaining_s = ctx.remaining_s()
        assert remaining_s is not None and 0 < remaining_s <= 30
        reason = f"{ctx.plugin_id} {ctx.request_id} {sorted(ctx.permissions)}"
        return ModelRouteResponse(target_kind="self", reason=reason)

    async with plugin_harness(plugin_with(model_route=model_route), permissions=["kv", "http"]) as plugin:
        answer = await plugin.call("model.route", ROUTE, timeout_ms=30_000)
    assert answer.reason == "made r1 ['http', 'kv']"


async def test_callbacks_are_answered_by_the_fake_host_and_remembered(plugin_harness, fake_host):
    async def model_route(self, request, ctx: Context):
        response = await ctx.http.do("GET", "https://example.test/where")
        await ctx.kv.set("seen", response.body.value())
        return ModelRouteResponse(target_kind="provider", target=response.body.value()["target"])

    fake_host.on("host.http.do", HttpResponse(status=200, body=Body.from_value({"target": "x"})))
    async with plugin_harness(
        plugin_with(model_route=model_route), host=fake_host, permissions=["http", "kv"]
    ) as plugin:
        assert (await plugin.call("model.route", ROUTE)).target == "x"
    assert [request.url for request in fake_host.asked("host.http.do")] == ["https://example.test/where"]
    assert fake_host.kv == {"seen": {"target": "x"}}
    assert all(callback.parent is not None for callback in fake_host.calls)


async def test_a_callback_without_its_permission_is_refused_and_says_which(plugin_harness):
    async def model_route(self, ctx: Context):
        await ctx.kv.get("k")

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        with pytest.raises(PluginError, match=r"host\.kv\.get needs the permission 'kv'") as caught:
            await plugin.call("model.route", ROUTE)
    assert caught.value.code == "permission_denied"


async def test_scripted_answers_come_in_turn_and_the_last_one_stays(plugin_harness, fake_host):
    async def model_route(self, ctx: Context):
        statuses = []
        for _ in range(3):
            try:
                statuses.append((await ctx.http.do("GET", "https://x")).status)
            except PluginError as error:
                statuses.append(error.http_status)
        return ModelRouteResponse(reason=str(statuses))

    fake_host.on("host.http.do", PluginError("down", http_status=503), lambda request: HttpResponse(status=204))
    async with plugin_harness(plugin_with(model_route=model_route), host=fake_host, permissions=["http"]) as plugin:
        assert (await plugin.call("model.route", ROUTE)).reason == "[503, 204, 204]"


async def test_kv_of_the_fake_host_behaves_like_the_hosts(plugin_harness, fake_host):
    async def model_route(self, ctx: Context):
        kv = ctx.kv
        seen = [
            await kv.get("a", "miss"),
            await kv.set("a", 1, only_if_absent=True),
            await kv.set("a", 2, only_if_absent=True),
            await kv.increment("a", 4),
            await kv.increment("new", ttl_ms=50),
            await kv.expire("a", 10),
            await kv.expire("b", 10),
            await kv.delete("a"),
            await kv.delete("a"),
        ]
        return ModelRouteResponse(reason=str(seen))

    async with plugin_harness(plugin_with(model_route=model_route), host=fake_host, permissions=["kv"]) as plugin:
        answer = await plugin.call("model.route", ROUTE)
    assert answer.reason == "['miss', True, False, 5, 1, True, False, True, False]"
    assert fake_host.kv_ttl_ms == {"new": 50}


async def test_an_unscripted_callback_names_what_is_missing(plugin_harness):
    async def model_route(self, ctx: Context):
        await ctx.http.do("GET", "https://x")

    async with plugin_harness(plugin_with(model_route=model_route), permissions=["http"]) as plugin:
        with pytest.raises(PluginError, match=r"use FakeHost\.on or on_stream"):
            await plugin.call("model.route", ROUTE)


def test_scripting_an_unknown_method_fails_at_once(fake_host):
    with pytest.raises(KeyError):
        fake_host.on("host.htpp.do", HttpResponse())


async def test_an_upstream_stream_is_forwarded_and_closed_when_the_client_leaves(plugin_harness, fake_host, within):
    async def executor_execute_stream(self, ctx: Context):
        upstream = await ctx.http.stream("POST", "https://up")
        return Stream(upstream)

    fake_host.on_stream("host.http.do_stream", HttpResponse(status=200), [b"one", b"two"], hold=asyncio.Event())
    made = plugin_with(executor_execute_stream=executor_execute_stream)
    async with plugin_harness(made, host=fake_host, permissions=["http"]) as plugin:
        async with plugin.open_stream("executor.execute_stream", ExecutorRequest()) as stream:
            assert [(await anext(stream)).raw.to_bytes() for _ in range(2)] == [b"one", b"two"]
            assert fake_host.closed_streams == 0
        await within(fake_host.stream_closed.wait())


async def test_an_error_of_an_upstream_stream_keeps_its_status_through_the_executor(plugin_harness, fake_host):
    async def executor_execute_stream(self, ctx: Context):
        async with ctx.http.stream("POST", "https://up") as upstream:
            async for part in upstream:
                yield part

    fake_host.on_stream("host.http.do_stream", HttpResponse(status=200), [b"one"], error=PluginError(LONG))
    made = plugin_with(executor_execute_stream=executor_execute_stream)
    async with plugin_harness(made, host=fake_host, permissions=["http"]) as plugin:
        with pytest.raises(PluginError) as caught:
            await plugin.stream("executor.execute_stream", ExecutorRequest())
    assert caught.value.body == LONG


async def test_a_log_line_from_a_blocking_hook_arrives(plugin_harness, within):
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    @blocking
    def scheduler_pick(self, ctx: Context):
        ctx.log.info("picked", thread=threading.current_thread().name)
        loop.call_soon_threadsafe(told.set)

    async with plugin_harness(plugin_with(scheduler_pick=scheduler_pick)) as plugin:
        await plugin.call("scheduler.pick", SchedulerPickRequest())
        await within(told.wait())
        assert [(line.event, line.fields) for line in plugin.logs] == [("picked", {"thread": "plugin:made:1"})]


async def test_log_fields_that_json_cannot_carry_are_shown_as_text(plugin_harness):
    async def usage_handle(self, ctx: Context):
        ctx.log.info("odd", value=object, surrogate="\ud800")

    async with plugin_harness(plugin_with(usage_handle=usage_handle)) as plugin:
        await plugin.call("usage.handle", UsageHandleRequest())
        assert [line.fields for line in plugin.logs] == [{"value": "<class 'object'>", "surrogate": r"'\ud800'"}]


async def test_an_answer_that_json_cannot_carry_is_the_authors_error(plugin_harness):
    async def executor_execute(self):
        return ExecutorResponse(metadata={"a": object()})

    async with plugin_harness(plugin_with(executor_execute=executor_execute)) as plugin:
        with pytest.raises(PluginError, match="what JSON cannot carry"):
            await plugin.call("executor.execute", ExecutorRequest())


async def test_error_details_that_json_cannot_carry_cost_neither_status_nor_code(plugin_harness):
    async def model_route(self):
        raise PluginError("no", http_status=403, code="forbidden", details={"a": object()})

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        with pytest.raises(PluginError) as caught:
            await plugin.call("model.route", ROUTE)
    assert (caught.value.http_status, caught.value.code, str(caught.value)) == (403, "forbidden", "no")


async def test_many_calls_run_at_once(plugin_harness, within):
    barrier = asyncio.Barrier(20)

    async def model_route(self):
        await barrier.wait()

    async with plugin_harness(plugin_with(model_route=model_route)) as plugin:
        await within(asyncio.gather(*[plugin.call("model.route", ROUTE) for _ in range(20)]))


async def test_leaving_the_harness_cancels_what_still_runs(plugin_harness, within):
    started, ended = asyncio.Event(), asyncio.Event()

    async def usage_handle(self):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with plugin_harness(plugin_with(usage_handle=usage_handle)) as plugin:
        task = asyncio.create_task(plugin.call("usage.handle", UsageHandleRequest()))
        await within(started.wait())
    with pytest.raises(PluginError):
        await within(task)
    assert ended.is_set()


async def test_the_harness_can_be_used_without_the_fixtures():
    async with PluginHarness(Made, host=FakeHost()) as plugin:
        assert tuple(plugin.hello.capabilities) == ("plugin.register",)
