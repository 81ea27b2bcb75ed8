"""Cancellation: one frame, one closing frame, nothing left behind."""

import asyncio

import pytest

from pluginabi import ErrorBody, IncomingCall, PluginError, PluginTransportError, Usage
from pluginabi.frames import Call, Cancel, CancelReason, End, Item, Result
from tests.contract.conftest import BareFactory
from tests.support.wire import PROFILES, Pair, event, settled, within

CANCELLED = ErrorBody(message="stopped", code="cancelled", http_status=499)


async def test_cancelling_the_waiting_task_sends_one_cancel_and_ignores_the_late_answer(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        task = asyncio.create_task(call.reply())
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        call.cancel("shutdown")
        assert await plugin.next(Cancel) == Cancel(id=1, reason="client_gone")
        closed = asyncio.Event()
        call.on_closed(closed.set)
        plugin.send(Result(id=1, ok=False, error=CANCELLED, usage=Usage(output_tokens=4)))
        await within(closed.wait())
        assert call.usage == Usage(output_tokens=4)
        assert plugin.arrived() == []
        assert (host.session.in_flight, host.session.stuck) == (0, 0)


@pytest.mark.parametrize("reason", ["client_gone", "deadline", "parent_closed", "shutdown"])
async def test_a_cancelled_call_tells_the_callee_why_and_the_waiter_at_once(
    full_pair: Pair, reason: CancelReason
) -> None:
    told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    running = asyncio.Event()

    async def route(call: IncomingCall) -> None:
        call.on_cancel(told.set_result)
        running.set()
        await call.cancelled.wait()
        call.fail(CANCELLED, Usage(total_tokens=1))

    full_pair.plugin.methods["model.route"] = route
    call = full_pair.host.session.start_call("model.route", b"{}")
    waiter = asyncio.create_task(call.reply())
    await within(running.wait())
    call.cancel(reason)
    with pytest.raises(PluginError) as caught:
        await within(waiter)
    assert (caught.value.code, caught.value.http_status) == ("cancelled", 499)
    assert await within(told) == reason
    closed = asyncio.Event()
    call.on_closed(closed.set)
    await within(closed.wait())
    assert call.usage == Usage(total_tokens=1)


async def test_a_callee_learns_of_a_cancellation_that_came_before_it_asked(full_pair: Pair) -> None:
    reasons: list[str] = []
    entered, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def route(call: IncomingCall) -> None:
        entered.set()
        await go_on.wait()
        await call.cancelled.wait()
        call.on_cancel(reasons.append)
        call.fail(CANCELLED)
        done.set()

    full_pair.plugin.methods["model.route"] = route
    call = full_pair.host.session.start_call("model.route", b"{}")
    await within(entered.wait())
    call.cancel()
    go_on.set()
    await within(done.wait())
    assert reasons == ["client_gone"]


async def test_X84_closing_a_stream_early_cancels_it_and_items_on_the_way_are_dropped(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=True, stream=True))
        items = (await within(call.reply())).items
        assert items is not None
        plugin.send(Item(id=1, body=event(0).body))
        await within(anext(items))
        await items.aclose()
        await items.aclose()
        assert await plugin.next(Cancel) == Cancel(id=1, reason="client_gone")
        plugin.send(Item(id=1, body=event(1).body))
        plugin.send(End(id=1, ok=False, error=CANCELLED, usage=Usage(output_tokens=9)))
        assert await within(items.wait_usage()) == Usage(output_tokens=9)
        assert items.usage == Usage(output_tokens=9)
        with pytest.raises(StopAsyncIteration):
            await within(anext(items))
        assert plugin.arrived() == []
        assert (host.session.open_streams, host.session.in_flight) == (0, 0)


async def test_a_producer_that_waits_for_credit_is_woken_by_the_cancellation(full_pair: Pair) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        try:
            while True:
                await stream.send(event(0))
        except PluginError as error:
            ended.set_result(error.code)
            stream.end(error.body, Usage(output_tokens=3))

    full_pair.plugin.methods["executor.execute_stream"] = execute
    call = full_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    items = (await within(call.reply())).items
    assert items is not None
    await within(anext(items))
    await items.aclose("deadline")
    assert await within(ended) == "cancelled"
    assert await within(items.wait_usage()) == Usage(output_tokens=3)


async def test_a_waiting_consumer_is_told_when_somebody_else_cancels(full_pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        await call.open_stream()
        await call.cancelled.wait()
        call.fail(CANCELLED)

    full_pair.plugin.methods["executor.execute_stream"] = execute
    call = full_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    items = (await within(call.reply())).items
    assert items is not None
    waiting = asyncio.create_task(anext(items))
    await settled()
    call.cancel("shutdown")
    with pytest.raises(PluginError, match="shutdown"):
        await within(waiting)


async def test_a_cancelled_call_without_closing_frame_counts_as_stuck_after_the_grace(
    bare: BareFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluginabi.outgoing.CANCEL_GRACE_S", 0.0)
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        call.cancel()
        await plugin.next(Cancel)
        await settled()
        assert (host.session.stuck, host.session.stuck_total, host.session.in_flight) == (1, 1, 0)
        closed = asyncio.Event()
        call.on_closed(closed.set)
        assert not closed.is_set()
        plugin.send(Item(id=1))
        plugin.send(Result(id=1, ok=True, stream=True))
        plugin.send(End(id=1, ok=True, usage=Usage(output_tokens=1)))
        await within(closed.wait())
        assert (host.session.stuck, host.session.stuck_total) == (0, 1)
        assert call.usage == Usage(output_tokens=1)


async def test_a_closed_call_is_not_cancelled_any_more(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=True))
        await within(call.reply())
        call.cancel()
        following = host.session.start_call("model.route", b"{}")
        assert (await plugin.next(Call)).id == following.id == 2
        assert plugin.arrived() == []


async def test_no_cancel_goes_to_a_plugin_that_did_not_offer_it(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=True, stream=True))
        items = (await within(call.reply())).items
        assert items is not None
        await items.aclose()
        plugin.send(Item(id=1))
        plugin.send(End(id=1, ok=True, usage=Usage(output_tokens=5)))
        assert await within(items.wait_usage()) == Usage(output_tokens=5)
        assert plugin.arrived() == []


async def test_cancel_of_an_unknown_or_closed_call_is_ignored(bare: BareFactory) -> None:
    async with bare() as (host, plugin):

        async def get(call: IncomingCall) -> None:
            call.respond()

        host.methods["host.kv.get"] = get
        plugin.send(Cancel(id=77))
        plugin.send(Call(id=1, method="host.kv.get"))
        await plugin.next(Result)
        plugin.send(Cancel(id=1))
        plugin.send(Call(id=2, method="host.kv.get"))
        assert (await plugin.next(Result)).id == 2


async def test_a_call_that_still_waits_to_be_written_is_withdrawn_instead(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        plugin.channel.pause_reading()
        big = b'{"x":"' + b"y" * 500_000 + b'"}'
        written = [host.session.start_call("model.route", big)]
        while host.session._link.writable:
            written.append(host.session.start_call("model.route", big))
            await settled()
        queued = host.session.start_call("model.route", b"{}")
        queued.cancel()
        closed = asyncio.Event()
        queued.on_closed(closed.set)
        assert closed.is_set()
        plugin.channel.resume_reading()
        for call in written:
            assert (await plugin.next(Call)).id == call.id
        later = host.session.start_call("model.route", b"{}")
        assert (await plugin.next(Call)).id == later.id == queued.id + 1
        assert plugin.arrived() == []


async def test_the_end_of_the_session_cancels_what_the_callee_runs(full_pair: Pair) -> None:
    running = asyncio.Event()
    reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        running.set()
        await call.cancelled.wait()
        try:
            await stream.send(event(0))
        except PluginTransportError as error:
            reason.set_result(f"{call.cancel_reason} {error.phase}")
        call.fail(CANCELLED)

    full_pair.plugin.methods["executor.execute_stream"] = execute
    full_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    await within(running.wait())
    await within(full_pair.host.session.close())
    assert await within(reason) == "shutdown unavailable"
