"""Calls and their answers."""

import asyncio

import msgspec
import pytest
from msgspec import UNSET

from pluginabi import Body, ErrorBody, IncomingCall, PluginError, PluginTimeout, PluginTransportError, Usage
from pluginabi.codec import decode_params, decode_result
from pluginabi.errors import HOST_CODES
from pluginabi.frames import Call, Cancel, Item, Result
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptResponse
from pluginabi.payloads.routing import ModelRouteRequest, ModelRouteResponse
from tests.contract.conftest import BareFactory
from tests.support.wire import PLUGIN_ID, PROFILES, Pair, plain, within


async def test_params_and_result_arrive_as_they_were_sent(pair: Pair) -> None:
    seen: list[object] = []

    async def route(call: IncomingCall) -> None:
        seen.append(decode_params(call.method, call.params))
        call.respond(ModelRouteResponse(target_kind="provider", target="claude", reason="ünïcode ✓"))

    pair.plugin.methods["model.route"] = route
    request = ModelRouteRequest(
        request_id="r1", requested_model="gpt", headers={"a": ["1", "2"]}, body=Body.from_value({"x": [1, None]})
    )
    reply = await within(pair.host.session.start_call("model.route", request).reply())
    assert plain(seen[0]) == plain(request)
    answer = decode_result("model.route", reply.result, plugin_id=PLUGIN_ID)
    assert answer == ModelRouteResponse(target_kind="provider", target="claude", reason="ünïcode ✓")
    assert pair.host.session.in_flight == 0
    assert pair.plugin.session.incoming == 0


@pytest.mark.parametrize("answer", [None, b"null", b"{}", ModelRouteResponse()])
async def test_an_answer_that_says_nothing_is_the_struct_with_its_defaults(
    pair: Pair, answer: ModelRouteResponse
) -> None:
    async def route(call: IncomingCall) -> None:
        call.respond(answer)

    pair.plugin.methods["model.route"] = route
    reply = await within(pair.host.session.start_call("model.route", b"{}").reply())
    assert decode_result("model.route", reply.result, plugin_id=PLUGIN_ID) == ModelRouteResponse()


@pytest.mark.parametrize(
    "body",
    [
        Body.from_bytes(b'{\r\n  "pretty": [1,\n 2]\n}\n'),
        Body.from_bytes("plain text, ünïcode, \u2028 and \n newlines".encode()),
        Body.from_bytes(bytes(range(256))),
        Body.from_bytes(b'"}, "kind": "end"'),
        Body(text=""),
        Body.exact(b"{ }"),
        Body.from_value("\n\r\t\x00"),
    ],
    ids=["pretty-json", "text", "binary", "injection", "empty", "exact", "escapes"],
)
async def test_bodies_keep_their_meaning_and_their_form(pair: Pair, body: Body) -> None:
    async def execute(call: IncomingCall) -> None:
        request: ExecutorRequest = decode_params(call.method, call.params)
        call.respond(ExecutorResponse(status=201, body=request.body))

    pair.plugin.methods["executor.execute"] = execute
    reply = await within(pair.host.session.start_call("executor.execute", ExecutorRequest(body=body)).reply())
    got = decode_result("executor.execute", reply.result, plugin_id=PLUGIN_ID).body
    if body.json is UNSET:
        assert got == body
    else:
        assert got.text is UNSET
        assert got.base64 is UNSET
        assert got.value() == body.value()


@pytest.mark.parametrize("body", [UNSET, Body(text="")], ids=["absent-keeps", "empty"])
async def test_absent_and_empty_bodies_differ(pair: Pair, body: Body) -> None:
    async def intercept(call: IncomingCall) -> None:
        call.respond(RequestInterceptResponse(body=body, clear_headers=["x"]))

    pair.plugin.methods["request.intercept_before"] = intercept
    reply = await within(pair.host.session.start_call("request.intercept_before", b"{}").reply())
    assert decode_result("request.intercept_before", reply.result, plugin_id=PLUGIN_ID).body == body


async def test_usage_comes_with_the_closing_frame(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        call.respond(ExecutorResponse(), Usage(input_tokens=0, output_tokens=7))

    pair.plugin.methods["executor.execute"] = execute
    call = pair.host.session.start_call("executor.execute", ExecutorRequest())
    assert (await within(call.reply())).usage == Usage(input_tokens=0, output_tokens=7)
    assert call.usage == Usage(input_tokens=0, output_tokens=7)


async def test_parallel_calls_get_their_own_answers_in_any_order(pair: Pair) -> None:
    waiting: list[IncomingCall] = []
    all_there = asyncio.Event()

    async def route(call: IncomingCall) -> None:
        waiting.append(call)
        if len(waiting) == 50:
            all_there.set()

    pair.plugin.methods["model.route"] = route
    calls = [
        pair.host.session.start_call("model.route", ModelRouteRequest(requested_model=str(number)))
        for number in range(50)
    ]
    await within(all_there.wait())
    assert pair.host.session.in_flight == 50
    for served in reversed(waiting):
        served.respond(ModelRouteResponse(target=decode_params(served.method, served.params).requested_model))
    for number, call in enumerate(calls):
        reply = await within(call.reply())
        assert decode_result("model.route", reply.result, plugin_id=PLUGIN_ID).target == str(number)


FULL_ERROR = ErrorBody(
    message="slow down",
    code="rate_limited",
    http_status=429,
    retryable=True,
    retry_after_ms=1500,
    scope="model",
    headers={"x-quota": ["0", "1"]},
    body=Body.from_value({"error": {"type": "rate"}}),
    body_protocol="openai",
    origin="upstream",
    details={"limit": {"tokens": 5, "none": None}},
)


async def test_an_error_keeps_every_field(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        call.fail(FULL_ERROR, Usage(total_tokens=3))

    pair.plugin.methods["executor.execute"] = execute
    call = pair.host.session.start_call("executor.execute", b"{}")
    with pytest.raises(PluginError) as caught:
        await within(call.reply())
    assert plain(caught.value.body) == plain(FULL_ERROR)
    assert call.usage == Usage(total_tokens=3)


async def test_a_plugin_may_claim_no_origin_but_upstream(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        call.fail(ErrorBody(message="no", origin="host"))

    pair.plugin.methods["model.route"] = route
    with pytest.raises(PluginError) as caught:
        await within(pair.host.session.start_call("model.route", b"{}").reply())
    assert caught.value.body.origin == "plugin"


@pytest.mark.parametrize(("sent", "kept"), [(399, 500), (400, 400), (418, 418), (599, 599), (600, 500), (200, 500)])
async def test_only_a_status_of_an_error_is_an_error_status(pair: Pair, sent: int, kept: int) -> None:
    async def route(call: IncomingCall) -> None:
        call.fail(ErrorBody(message="no", http_status=sent))

    pair.plugin.methods["model.route"] = route
    with pytest.raises(PluginError) as caught:
        await within(pair.host.session.start_call("model.route", b"{}").reply())
    assert caught.value.http_status == kept
    assert caught.value.body.details == ({} if kept == sent else {"http_status": sent})


async def test_a_failed_result_is_an_error_even_when_it_claims_a_stream(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=False, stream=True, error=ErrorBody(message="busy", http_status=503)))
        with pytest.raises(PluginError, match="busy"):
            await within(call.reply())


async def test_a_call_says_what_the_caller_wants(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        host.session.start_call("executor.execute_stream", b'{"model":"m"}', stream=True, timeout_ms=60_000)
        frame = await plugin.next(Call)
        assert (frame.id, frame.method, frame.stream, frame.timeout_ms) == (1, "executor.execute_stream", True, 60_000)
        assert msgspec.json.decode(frame.params) == {"model": "m"}
        host.session.start_call("model.route", b"{}")
        frame = await plugin.next(Call)
        assert (frame.id, frame.stream, frame.timeout_ms, frame.parent) == (2, False, None, None)


async def test_a_call_that_takes_too_long_times_out_and_is_cancelled_with_reason_deadline(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}", timeout_ms=60_000)
        await plugin.next(Call)
        call.time_is_up()
        with pytest.raises(PluginTimeout) as caught:
            await within(call.reply())
        assert (caught.value.http_status, caught.value.code) == (504, "plugin_timeout")
        assert caught.value.timeout_ms == 60_000
        assert await plugin.next(Cancel) == Cancel(id=1, reason="deadline")


async def test_a_deadline_passes_by_itself(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        await asyncio.Event().wait()

    pair.plugin.methods["model.route"] = route
    calls = [pair.host.session.start_call("model.route", b"{}", timeout_ms=timeout_ms) for timeout_ms in (20, 1, 10)]
    for call in calls:
        with pytest.raises(PluginTimeout):
            await within(call.reply())


async def test_a_late_answer_is_dropped_but_frees_the_slot(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}", timeout_ms=60_000)
        freed = asyncio.Event()
        call.on_closed(freed.set)
        await plugin.next(Call)
        call.time_is_up()
        with pytest.raises(PluginTimeout):
            await within(call.reply())
        assert not freed.is_set()
        assert host.session.in_flight == 1
        plugin.send(Result(id=1, ok=True, usage=Usage(output_tokens=2)))
        await within(freed.wait())
        assert host.session.in_flight == 0
        assert call.usage == Usage(output_tokens=2)
        following = host.session.start_call("model.route", b"{}")
        plugin.send(Result(id=2, ok=True))
        await within(following.reply())


async def test_without_cancel_a_timed_out_call_sends_nothing_and_waits_for_its_late_answer(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        call = host.session.start_call("model.route", b"{}", timeout_ms=60_000)
        await plugin.next(Call)
        call.time_is_up()
        with pytest.raises(PluginTimeout):
            await within(call.reply())
        freed = asyncio.Event()
        call.on_closed(freed.set)
        plugin.send(Result(id=1, ok=True))
        await within(freed.wait())
        assert plugin.arrived() == []


async def test_a_deadline_ends_with_the_result_that_opens_a_stream(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        opened = host.session.start_call("executor.execute_stream", b"{}", stream=True, timeout_ms=60_000)
        plugin.send(Result(id=1, ok=True, stream=True))
        items = (await within(opened.reply())).items
        assert items is not None
        opened.time_is_up()
        plugin.send(Item(id=1, event="still open"))
        assert (await within(anext(items))).event == "still open"


async def test_a_callee_sees_the_time_it_has(full_pair: Pair) -> None:
    seen = asyncio.get_running_loop().create_future()

    async def route(call: IncomingCall) -> None:
        seen.set_result((call.timeout_ms, call.deadline))
        call.respond()

    full_pair.plugin.methods["model.route"] = route
    await within(full_pair.host.session.start_call("model.route", b"{}", timeout_ms=50_000).reply())
    timeout_ms, deadline = await within(seen)
    assert timeout_ms == 50_000
    remaining = deadline - asyncio.get_running_loop().time()
    assert 30 < remaining <= 50


async def test_nobody_answers_a_call_when_there_is_no_handler(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        host.session._incoming._handler = None
        plugin.send(Call(id=1, method="host.kv.get"))
        frame = await plugin.next(Result)
        assert isinstance(frame.error, ErrorBody)
        assert (frame.error.code, frame.error.http_status) == ("method_not_found", HOST_CODES["method_not_found"])


async def test_only_one_answer_is_sent(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        call.respond(ModelRouteResponse(target="first"))
        call.respond(ModelRouteResponse(target="second"))
        call.fail(ErrorBody(message="third"))

    pair.plugin.methods["model.route"] = route
    for _ in range(2):
        reply = await within(pair.host.session.start_call("model.route", b"{}").reply())
        assert decode_result("model.route", reply.result, plugin_id=PLUGIN_ID).target == "first"


async def test_a_result_of_the_wrong_shape_is_a_decode_fault_of_that_call(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=True, result=msgspec.Raw(b"[]")))
        reply = await within(call.reply())
        with pytest.raises(PluginTransportError) as caught:
            decode_result("model.route", reply.result, plugin_id=PLUGIN_ID)
        assert (caught.value.phase, caught.value.http_status) == ("decode", 502)
        assert not host.session.closed


async def test_ids_count_up_from_one_and_are_not_shared_by_the_directions(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        assert call.id == 1
        reply = await pair.plugin.session.start_call("host.kv.get", b'{"key":"k"}', parent=call.id).reply()
        assert reply.result is UNSET
        call.respond()

    async def get(call: IncomingCall) -> None:
        assert (call.id, call.parent) == (1, 1)
        call.respond()

    pair.plugin.methods["model.route"] = route
    pair.host.methods["host.kv.get"] = get
    await within(pair.host.session.start_call("model.route", b"{}").reply())
