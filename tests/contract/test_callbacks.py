"""Callbacks: nested, with a budget of their own, and never longer than the call they belong to."""

import asyncio

import msgspec
import pytest

from pluginabi import ErrorBody, IncomingCall, PluginError
from pluginabi.frames import Call, Cancel, Result
from pluginabi.limits import CALLBACK_MAX_INFLIGHT, QUEUE_MAX_CALLS
from tests.contract.conftest import BareFactory
from tests.support.wire import Pair, plain, raw, settled, within


async def test_nested_callbacks_of_depth_three_work_with_one_call_at_a_time(pair: Pair) -> None:
    """Host -> plugin -> host -> plugin -> host -> plugin; no step lets go of its own before the next one is done."""
    host, plugin = pair.host, pair.plugin
    depth_reached: list[int] = []

    async def execute(call: IncomingCall) -> None:
        depth = msgspec.json.decode(call.params)["depth"]
        depth_reached.append(depth)
        if depth < 3:
            params = msgspec.json.encode({"depth": depth})
            nested = plugin.session.start_call("host.model.execute", params, parent=call.id)
            call.respond(raw(await nested.reply()))
        else:
            call.respond(b'{"deep":true}')

    async def model_execute(call: IncomingCall) -> None:
        depth = msgspec.json.decode(call.params)["depth"] + 1
        nested = host.session.start_call("executor.execute", msgspec.json.encode({"depth": depth}))
        call.respond(raw(await nested.reply()))

    plugin.methods["executor.execute"] = execute
    host.methods["host.model.execute"] = model_execute
    reply = await within(host.session.start_call("executor.execute", b'{"depth":0}').reply())
    assert msgspec.json.decode(raw(reply)) == {"deep": True}
    assert depth_reached == [0, 1, 2, 3]


async def test_both_sides_may_write_much_at_once_without_blocking_each_other(pair: Pair) -> None:
    """More than any pipe holds, in both directions, before either side has read an answer."""
    large = b'{"x":"' + b"y" * 200_000 + b'"}'

    async def echo(call: IncomingCall) -> None:
        call.respond(bytes(call.params))

    pair.plugin.methods["executor.execute"] = echo
    pair.host.methods["host.http.do"] = echo
    calls = [pair.host.session.start_call("executor.execute", large) for _ in range(40)]
    callbacks = [pair.plugin.session.start_call("host.http.do", large) for _ in range(40)]
    for call in (*calls, *callbacks):
        assert raw(await within(call.reply())) == large


async def test_an_error_of_a_nested_call_keeps_every_field_through_both_boundaries(pair: Pair) -> None:
    error = ErrorBody(
        message="quota",
        code="insufficient_quota",
        http_status=402,
        retryable=False,
        retry_after_ms=9,
        scope="credential",
        headers={"x": ["y"]},
        origin="upstream",
        details={"a": [1]},
    )

    async def execute(call: IncomingCall) -> None:
        reply = await pair.plugin.session.start_call("host.http.do", b"{}", parent=call.id).reply()
        call.respond(raw(reply))

    async def http_do(call: IncomingCall) -> None:
        call.fail(error)

    pair.plugin.methods["executor.execute"] = execute
    pair.host.methods["host.http.do"] = http_do
    with pytest.raises(PluginError) as caught:
        await within(pair.host.session.start_call("executor.execute", b"{}").reply())
    assert plain(caught.value.body) == plain(error)


async def test_a_callback_without_origin_gets_the_hosts(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        with pytest.raises(PluginError) as caught:
            await pair.plugin.session.start_call("host.kv.get", b"{}", parent=call.id).reply()
        call.respond(msgspec.json.encode({"origin": caught.value.body.origin}))

    async def get(call: IncomingCall) -> None:
        call.fail(ErrorBody(message="no"))

    pair.plugin.methods["executor.execute"] = execute
    pair.host.methods["host.kv.get"] = get
    reply = await within(pair.host.session.start_call("executor.execute", b"{}").reply())
    assert msgspec.json.decode(raw(reply)) == {"origin": "host"}


async def test_a_callback_ends_with_the_call_it_belongs_to(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def http_do(call: IncomingCall) -> None:
            call.on_cancel(reason.set_result)
            await call.cancelled.wait()
            call.fail(ErrorBody(message="gone", code="parent_closed"))

        host.methods["host.http.do"] = http_do
        call = host.session.start_call("executor.execute", b"{}")
        await plugin.next(Call)
        plugin.send(Call(id=1, method="host.http.do", parent=1))
        plugin.send(Result(id=1, ok=True))
        await within(call.reply())
        assert await within(reason) == "parent_closed"
        closing = await plugin.next(Result)
        assert (closing.id, closing.ok) == (1, False)


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_a_callback_ends_when_its_call_is_given_up(bare: BareFactory, how: str) -> None:
    async with bare() as (host, plugin):
        reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        running = asyncio.Event()

        async def http_do(call: IncomingCall) -> None:
            call.on_cancel(reason.set_result)
            running.set()

        host.methods["host.http.do"] = http_do
        call = host.session.start_call("executor.execute", b"{}", timeout_ms=60_000)
        await plugin.next(Call)
        plugin.send(Call(id=1, method="host.http.do", parent=1))
        await within(running.wait())
        if how == "cancelled":
            call.cancel()
        else:
            call.time_is_up()
        assert await within(reason) == "parent_closed"
        assert (await plugin.next(Cancel)).id == 1
        plugin.send(Call(id=2, method="host.http.do", parent=1))
        late = await plugin.next(Result)
        assert isinstance(late.error, ErrorBody)
        assert (late.id, late.error.code, late.error.http_status) == (2, "parent_closed", 500)


async def test_a_callback_of_an_open_stream_goes_on_until_the_stream_ends(full_pair: Pair) -> None:
    reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.Event()

    async def http_do(call: IncomingCall) -> None:
        call.on_cancel(reason.set_result)
        waiting.set()

    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        full_pair.plugin.session.start_call("host.http.do", b"{}", parent=call.id)
        await waiting.wait()
        assert not reason.done()
        stream.end()

    full_pair.host.methods["host.http.do"] = http_do
    full_pair.plugin.methods["executor.execute_stream"] = execute
    call = full_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    items = (await within(call.reply())).items
    assert items is not None
    assert [item async for item in items] == []
    assert await within(reason) == "parent_closed"


async def test_a_callback_for_a_finished_call_is_told_parent_closed(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute", b"{}")
        plugin.send(Result(id=1, ok=True))
        await within(call.reply())
        plugin.send(Call(id=1, method="host.kv.get", parent=1))
        await plugin.next(Call)
        answer = await plugin.next(Result)
        assert isinstance(answer.error, ErrorBody)
        assert (answer.error.code, answer.error.origin) == ("parent_closed", "host")


async def test_finished_callbacks_are_not_remembered_by_their_call(bare: BareFactory) -> None:
    async with bare() as (host, plugin):

        async def get(call: IncomingCall) -> None:
            call.respond()

        host.methods["host.kv.get"] = get
        call = host.session.start_call("executor.execute", b"{}")
        await plugin.next(Call)
        for number in range(1, 50):
            plugin.send(Call(id=number, method="host.kv.get", parent=1))
            await plugin.next(Result)
        assert not call.children


async def test_a_callback_without_parent_is_served(bare: BareFactory) -> None:
    async with bare() as (host, plugin):

        async def get(call: IncomingCall) -> None:
            assert call.parent is None
            call.respond(b'{"found":true}')

        host.methods["host.kv.get"] = get
        plugin.send(Call(id=1, method="host.kv.get"))
        assert msgspec.json.decode(raw(await plugin.next(Result))) == {"found": True}


async def test_callbacks_have_a_budget_of_their_own_and_more_wait_for_their_turn(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        running: list[IncomingCall] = []

        async def get(call: IncomingCall) -> None:
            running.append(call)

        host.methods["host.kv.get"] = get
        for number in range(1, CALLBACK_MAX_INFLIGHT + 3):
            plugin.send(Call(id=number, method="host.kv.get"))
        plugin.send(Call(id=1000, method="host.kv.get"))
        plugin.send(Cancel(id=1000))  # answered although it never ran: by then everything before it has arrived
        waited = await plugin.next(Result)
        assert isinstance(waited.error, ErrorBody)
        assert (waited.id, waited.error.code) == (1000, "cancelled")
        await settled()
        assert [call.id for call in running] == [*range(1, CALLBACK_MAX_INFLIGHT + 1)]
        running[0].respond()
        assert (await plugin.next(Result)).id == 1
        await settled()
        assert running[-1].id == CALLBACK_MAX_INFLIGHT + 1
        # Calls of the host do not share the budget.
        call = host.session.start_call("model.route", b"{}")
        assert (await plugin.next(Call)).id == 1
        plugin.send(Result(id=1, ok=True))
        await within(call.reply())


async def test_callbacks_that_find_no_place_are_told_overloaded(
    bare: BareFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bare() as (host, plugin):

        async def get(call: IncomingCall) -> None:
            await call.cancelled.wait()

        host.methods["host.kv.get"] = get
        last = CALLBACK_MAX_INFLIGHT + QUEUE_MAX_CALLS + 1
        for number in range(1, last + 1):
            plugin.send(Call(id=number, method="host.kv.get"))
            await within(plugin.channel.drain())
        refused = await plugin.next(Result)
        assert isinstance(refused.error, ErrorBody)
        assert (refused.id, refused.error.code, refused.error.http_status) == (last, "plugin_overloaded", 503)
        assert refused.error.retry_after_ms == 1000


async def test_a_callback_that_waited_too_long_is_told_overloaded(
    bare: BareFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluginabi.budget.QUEUE_MAX_WAIT_S", 0.0)
    async with bare() as (host, plugin):

        async def get(call: IncomingCall) -> None:
            await call.cancelled.wait()

        host.methods["host.kv.get"] = get
        for number in range(1, CALLBACK_MAX_INFLIGHT + 2):
            plugin.send(Call(id=number, method="host.kv.get"))
        refused = await plugin.next(Result)
        assert isinstance(refused.error, ErrorBody)
        assert (refused.id, refused.error.code) == (CALLBACK_MAX_INFLIGHT + 1, "plugin_overloaded")


async def test_a_callback_that_opened_a_stream_leaves_the_budget(bare: BareFactory) -> None:
    async with bare() as (host, plugin):

        async def do_stream(call: IncomingCall) -> None:
            await call.open_stream()
            await call.cancelled.wait()

        host.methods["host.http.do_stream"] = do_stream
        for number in range(1, 2 * CALLBACK_MAX_INFLIGHT + 1):
            plugin.send(Call(id=number, method="host.http.do_stream", stream=True))
        for _ in range(2 * CALLBACK_MAX_INFLIGHT):
            assert (await plugin.next(Result)).stream
