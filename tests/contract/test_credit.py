"""Credit and back-pressure: nobody holds more than a window, and a slow consumer harms nobody else."""

import asyncio

import msgspec
import pytest

from pluginabi import Body, IncomingCall, IncomingStream, PluginTransportError, StreamItem
from pluginabi.frames import Call, Cancel, Credit, End, Item, Result
from pluginabi.limits import STREAM_OVERFLOW_BYTES, STREAM_WINDOW_BYTES, STREAM_WINDOW_ITEMS
from tests.contract.conftest import BareFactory
from tests.support.wire import PROFILES, BarePeer, Pair, Side, event, settled, within

WITHOUT_CREDIT = PROFILES["full"] - {"credit"}


async def opened(host: Side, plugin: BarePeer) -> IncomingStream:
    """A stream of a scripted producer."""
    call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
    frame = await plugin.next(Call)
    plugin.send(Result(id=frame.id, ok=True, stream=True))
    items = (await within(call.reply())).items
    assert items is not None
    return items


async def produced(host: Side, plugin: BarePeer) -> tuple[int, "asyncio.Queue[StreamItem]"]:
    """A stream that `host` produces for a scripted consumer; what is put in the queue gets sent."""
    queue: asyncio.Queue[StreamItem] = asyncio.Queue()

    async def do_stream(call: IncomingCall) -> None:
        stream = await call.open_stream()
        while True:
            await stream.send(await queue.get())

    host.methods["host.http.do_stream"] = do_stream
    plugin.send(Call(id=1, method="host.http.do_stream", stream=True))
    assert (await plugin.next(Result)).stream
    return 1, queue


async def test_a_producer_stops_at_32_items_and_goes_on_with_credit(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call_id, queue = await produced(host, plugin)
        for number in range(STREAM_WINDOW_ITEMS + 5):
            queue.put_nowait(event(number))
        for _ in range(STREAM_WINDOW_ITEMS):
            await plugin.next(Item)
        await settled()
        assert plugin.arrived() == []
        plugin.send(Credit(id=call_id, items=2, bytes=100))
        for _ in range(2):
            await plugin.next(Item)
        await settled()
        assert plugin.arrived() == []


async def test_a_producer_stops_when_the_bytes_are_spent_and_one_item_may_overshoot(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call_id, queue = await produced(host, plugin)
        for _ in range(3):
            queue.put_nowait(StreamItem(raw=Body(text="x" * (STREAM_WINDOW_BYTES - 100_000))))
        await plugin.next(Item)  # leaves about 100 kB
        await plugin.next(Item)  # overshoots
        await settled()
        assert plugin.arrived() == []
        plugin.send(Credit(id=call_id, items=1, bytes=STREAM_WINDOW_BYTES - 200_000))
        await settled()
        assert plugin.arrived() == []
        plugin.send(Credit(id=call_id, items=1, bytes=200_000))
        await plugin.next(Item)


async def test_the_end_and_the_result_cost_nothing(bare: BareFactory) -> None:
    async with bare() as (host, plugin):

        async def do_stream(call: IncomingCall) -> None:
            stream = await call.open_stream()
            for number in range(STREAM_WINDOW_ITEMS):
                await stream.send(event(number))
            stream.end()

        host.methods["host.http.do_stream"] = do_stream
        plugin.send(Call(id=1, method="host.http.do_stream", stream=True))
        await plugin.next(Result)
        for _ in range(STREAM_WINDOW_ITEMS):
            await plugin.next(Item)
        assert (await plugin.next(End)).ok


async def test_credit_comes_back_as_items_are_consumed_not_as_they_arrive(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        items = await opened(host, plugin)
        for number in range(STREAM_WINDOW_ITEMS):
            plugin.send(Item(id=1, body=event(number).body))
        # The first item shows that they arrive; it is not consumed before the next one is asked for.
        await within(anext(items))
        await settled()
        assert plugin.arrived() == []
        for _ in range(STREAM_WINDOW_ITEMS // 2):
            await within(anext(items))
        credit = await plugin.next(Credit)
        assert (credit.id, credit.items) == (1, STREAM_WINDOW_ITEMS // 2)


async def test_the_credit_returned_is_what_the_items_cost(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        items = await opened(host, plugin)
        costs = []
        for number in range(STREAM_WINDOW_ITEMS // 2):
            item = Item(id=1, event=f"event {number}", body=Body(text="ü" * number))
            costs.append(plugin.channel.send(item))
        for _ in range(STREAM_WINDOW_ITEMS // 2):
            await within(anext(items))
        waiting = asyncio.create_task(anext(items))
        assert (await plugin.next(Credit)).bytes == sum(costs)
        plugin.send(End(id=1, ok=True))
        with pytest.raises(StopAsyncIteration):
            await within(waiting)


async def test_a_slow_consumer_does_not_hold_up_other_calls(full_pair: Pair) -> None:
    started = asyncio.Event()

    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        started.set()
        while True:
            await stream.send(StreamItem(raw=Body(text="x" * 10_000)))

    async def route(call: IncomingCall) -> None:
        call.respond()

    full_pair.plugin.methods.update({"executor.execute_stream": execute, "model.route": route})
    call = full_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    items = (await within(call.reply())).items
    assert items is not None
    await within(started.wait())
    for _ in range(20):
        await within(full_pair.host.session.start_call("model.route", b"{}").reply())
    assert items.buffered_bytes <= STREAM_WINDOW_BYTES + 11_000
    await items.aclose()


async def test_a_producer_that_ignores_its_credit_loses_its_stream_only(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        items = await opened(host, plugin)
        other = await opened(host, plugin)
        for number in range(STREAM_WINDOW_ITEMS + 1):
            plugin.send(Item(id=1, body=event(number).body))
        cancel = await plugin.next(Cancel)
        assert cancel.id == 1
        with pytest.raises(PluginTransportError) as caught:
            await within(anext(items))
        assert (caught.value.code, caught.value.http_status) == ("stream_overflow", 503)
        plugin.send(Item(id=2, event="fine"))
        assert (await within(anext(other))).event == "fine"


async def test_without_credit_and_with_other_calls_4_mib_are_held_then_only_that_stream_fails(
    bare: BareFactory,
) -> None:
    async with bare(features=WITHOUT_CREDIT) as (host, plugin):
        items = await opened(host, plugin)
        other = await opened(host, plugin)
        chunk = Item(id=1, raw=Body(text="x" * 100_000))
        sent = 0
        while sent + 100_100 < STREAM_OVERFLOW_BYTES:
            sent += plugin.channel.send(chunk)
            await within(plugin.channel.drain())
        plugin.send(Item(id=2, event="marker"))
        assert (await within(anext(other))).event == "marker"
        await within(anext(items))
        for _ in range(3):
            plugin.send(chunk)
        assert (await plugin.next(Cancel)).id == 1
        with pytest.raises(PluginTransportError) as caught:
            await within(anext(items))
        assert caught.value.code == "stream_overflow"
        plugin.send(End(id=2, ok=True))
        with pytest.raises(StopAsyncIteration):
            await within(anext(other))


async def test_without_credit_and_with_one_call_the_carrier_pushes_back(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        items = await opened(host, plugin)
        chunk = Item(id=1, raw=Body(text="x" * 100_000))
        total = 120  # 12 MB: far more than may be held, or fits into a pipe

        async def produce() -> None:
            for _ in range(total):
                await plugin.channel.drain()
                plugin.channel.send(chunk)
            await plugin.channel.drain()
            plugin.send(End(id=1, ok=True))

        producer = asyncio.create_task(produce())
        received = most_held = 0
        async for _ in items:
            received += 1
            most_held = max(most_held, items.buffered_bytes)
        await within(producer)
        assert received == total
        assert most_held < STREAM_WINDOW_BYTES + 1_000_000


async def test_while_reading_is_held_back_silence_does_not_count(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        items = await opened(host, plugin)
        while not host.session._outgoing.reading_paused:
            plugin.channel.send(Item(id=1, raw=Body(text="x" * 100_000)))
            await settled()
        now_s = asyncio.get_running_loop().time()
        assert host.session.last_received_s >= now_s
        await items.aclose()
        assert not host.session._outgoing.reading_paused


async def test_another_call_ends_the_push_back(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        await opened(host, plugin)
        while not host.session._outgoing.reading_paused:
            plugin.channel.send(Item(id=1, raw=Body(text="x" * 100_000)))
            await settled()
        other = host.session.start_call("model.route", b"{}")
        plugin.send(Result(id=2, ok=True, result=msgspec.Raw(b"{}")))
        await within(other.reply())


async def test_without_credit_a_producer_waits_for_the_carrier(bare: BareFactory) -> None:
    async with bare(features=WITHOUT_CREDIT) as (host, plugin):
        sent = 0
        waiting = asyncio.Event()

        async def do_stream(call: IncomingCall) -> None:
            nonlocal sent
            stream = await call.open_stream()
            while sent < 2_000:
                if not host.session._link.writable:
                    waiting.set()
                await stream.send(StreamItem(raw=Body(text="x" * 10_000)))
                sent += 1
            stream.end()

        plugin.channel.pause_reading()
        plugin.send(Call(id=1, method="host.http.do_stream", stream=True))
        host.methods["host.http.do_stream"] = do_stream
        await within(waiting.wait())
        assert sent < 2_000
        plugin.channel.resume_reading()
        await plugin.next(Result)
        for _ in range(2_000):
            await plugin.next(Item)
        await plugin.next(End)
