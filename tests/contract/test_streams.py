"""Streams: order, ends, usage, progress, both directions."""

import asyncio

import pytest
from msgspec import UNSET

from pluginabi import (
    Body,
    ErrorBody,
    IncomingCall,
    IncomingStream,
    OutgoingStream,
    PluginError,
    PluginTransportError,
    StreamItem,
    Usage,
)
from pluginabi.codec import decode_result
from pluginabi.frames import Call, Cancel, End, Item, Result
from pluginabi.limits import STREAM_WINDOW_ITEMS
from pluginabi.payloads.callbacks import HttpResponse
from pluginabi.payloads.executor import ExecutorResponse
from tests.contract.conftest import BareFactory
from tests.support.wire import PLUGIN_ID, Pair, event, number_of, plain, within


async def open_stream(pair: Pair) -> IncomingStream:
    call = pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    items = (await within(call.reply())).items
    assert items is not None
    return items


async def test_items_arrive_in_order_and_the_end_brings_usage(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream(ExecutorResponse(status=200, headers={"x": ["1"]}))
        for number in range(500):
            await stream.send(event(number))
        stream.end(usage=Usage(output_tokens=500))

    pair.plugin.methods["executor.execute_stream"] = execute
    call = pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    reply = await within(call.reply())
    answer = decode_result("executor.execute_stream", reply.result, plugin_id=PLUGIN_ID)
    assert (answer.status, plain(answer.headers)) == (200, {"x": ["1"]})
    assert reply.items is not None
    assert [number_of(item) async for item in reply.items] == [*range(500)]
    assert reply.items.usage == call.usage == Usage(output_tokens=500)
    assert pair.host.session.open_streams == 0


@pytest.mark.parametrize(
    "item",
    [
        StreamItem(event="message_start", body=Body.from_value({"a": [1]})),
        StreamItem(body=Body(text="[not json")),
        StreamItem(body=Body.exact(b"\xff\x00")),
        StreamItem(raw=Body(text="data: half an ev")),
        StreamItem(event="ping"),
        StreamItem(),
    ],
    ids=["event", "text", "binary", "raw", "event-only", "progress"],
)
async def test_an_item_keeps_its_kind(pair: Pair, item: StreamItem) -> None:
    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        await stream.send(item)
        stream.end()

    pair.plugin.methods["executor.execute_stream"] = execute
    got = [got async for got in await open_stream(pair)]
    assert plain(got) == plain([item])
    assert got[0].is_progress == item.is_progress


async def test_an_empty_stream_is_a_stream(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        (await call.open_stream()).end()

    pair.plugin.methods["executor.execute_stream"] = execute
    assert [item async for item in await open_stream(pair)] == []


async def test_an_error_at_the_end_keeps_its_status_and_comes_after_the_items(pair: Pair) -> None:
    error = ErrorBody(message="overloaded", code="busy", http_status=529, retry_after_ms=20, headers={"a": ["b"]})

    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        await stream.send(event(0))
        stream.end(error, Usage(input_tokens=1))

    pair.plugin.methods["executor.execute_stream"] = execute
    items = await open_stream(pair)
    assert number_of(await within(anext(items))) == 0
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            await within(anext(items))
        assert (caught.value.http_status, caught.value.code) == (529, "busy")
        assert caught.value.body.retry_after_ms == 20
        assert plain(caught.value.body.headers) == {"a": ["b"]}
    assert items.usage == Usage(input_tokens=1)


async def test_failing_a_call_with_an_open_stream_ends_the_stream(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        await call.open_stream()
        call.fail(ErrorBody(message="no", http_status=418))

    pair.plugin.methods["executor.execute_stream"] = execute
    with pytest.raises(PluginError) as caught:
        await within(anext(await open_stream(pair)))
    assert caught.value.http_status == 418


async def test_a_call_that_can_take_a_stream_may_be_answered_without_one(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        call.respond(ExecutorResponse(status=202))

    pair.plugin.methods["executor.execute_stream"] = execute
    reply = await within(pair.host.session.start_call("executor.execute_stream", b"{}", stream=True).reply())
    assert reply.items is None
    assert decode_result("executor.execute_stream", reply.result, plugin_id=PLUGIN_ID).status == 202


async def test_a_callee_cannot_open_a_stream_that_its_caller_does_not_take(pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        with pytest.raises(ValueError, match="cannot take a stream"):
            await call.open_stream()
        call.respond()

    pair.plugin.methods["executor.execute"] = execute
    await within(pair.host.session.start_call("executor.execute", b"{}").reply())


async def test_a_stream_that_was_not_asked_for_fails_its_call(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute", b"{}")
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=True, stream=True))
        with pytest.raises(PluginTransportError) as caught:
            await within(call.reply())
        assert caught.value.phase == "decode"
        assert (await plugin.next(Cancel)).id == 1


async def test_parallel_streams_do_not_mix(full_pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        for number in range(100):
            await stream.send(event(call.id * 1000 + number))
        stream.end()

    full_pair.plugin.methods["executor.execute_stream"] = execute

    async def collect() -> list[int]:
        return [number_of(item) async for item in await open_stream(full_pair)]

    for numbers in await within(asyncio.gather(*(collect() for _ in range(8)))):
        assert numbers == [numbers[0] + offset for offset in range(100)]


async def test_a_callback_may_be_answered_with_a_stream(full_pair: Pair) -> None:
    async def do_stream(call: IncomingCall) -> None:
        assert call.stream
        stream = await call.open_stream(HttpResponse(status=404))
        for number in range(100):
            await stream.send(StreamItem(raw=Body(text=f"chunk {number}")))
        stream.end()

    async def execute(call: IncomingCall) -> None:
        nested = full_pair.plugin.session.start_call("host.http.do_stream", b"{}", parent=call.id, stream=True)
        reply = await nested.reply()
        assert reply.items is not None
        outgoing: OutgoingStream = await call.open_stream()
        async for item in reply.items:
            await outgoing.send(item)
        outgoing.end()

    full_pair.host.methods["host.http.do_stream"] = do_stream
    full_pair.plugin.methods["executor.execute_stream"] = execute
    texts = [item.raw.text for item in [item async for item in await open_stream(full_pair)] if item.raw is not UNSET]
    assert texts == [f"chunk {number}" for number in range(100)]


async def test_without_callback_streams_a_callback_cannot_take_one(bare: BareFactory) -> None:
    async with bare(features=frozenset(("cancel", "credit"))) as (host, plugin):
        streamed: list[bool] = []

        async def do_stream(call: IncomingCall) -> None:
            streamed.append(call.stream)
            call.respond()

        host.methods["host.http.do_stream"] = do_stream
        plugin.send(Call(id=1, method="host.http.do_stream", stream=True))
        assert (await plugin.next(Result)).stream is False
        assert streamed == [False]


async def test_X83_sending_after_the_end_is_a_mistake_that_is_told(full_pair: Pair) -> None:
    told = asyncio.get_running_loop().create_future()

    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        stream.end()
        stream.end()
        try:
            await stream.send(event(0))
        except ValueError as error:
            told.set_result(str(error))

    full_pair.plugin.methods["executor.execute_stream"] = execute
    assert [item async for item in await open_stream(full_pair)] == []
    assert "has ended" in await within(told)


async def test_items_that_came_before_a_broken_connection_are_delivered_first(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        plugin.send(Result(id=1, ok=True, stream=True))
        items = (await within(call.reply())).items
        assert items is not None
        assert (host.session.open_streams, host.session.in_flight) == (1, 0)
        for number in range(3):
            plugin.send(Item(id=1, body=event(number).body))
        plugin.channel.close()
        await within(host.reader)
        assert [number_of(await within(anext(items))) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(PluginTransportError) as caught:
            await within(anext(items))
        assert caught.value.phase == "exit"


async def test_an_end_that_says_ok_false_without_an_error_is_an_error(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        plugin.send(Result(id=1, ok=True, stream=True))
        plugin.send(End(id=1, ok=False))
        items = (await within(call.reply())).items
        assert items is not None
        with pytest.raises(PluginError, match="plugin call failed"):
            await within(anext(items))


async def test_the_window_is_worth_as_many_items_as_the_contract_says(full_pair: Pair) -> None:
    sent = 0
    blocked = asyncio.Event()

    async def execute(call: IncomingCall) -> None:
        nonlocal sent
        stream = await call.open_stream()
        while True:
            if sent == STREAM_WINDOW_ITEMS:
                blocked.set()
            await stream.send(event(sent))
            sent += 1

    full_pair.plugin.methods["executor.execute_stream"] = execute
    items = await open_stream(full_pair)
    await within(blocked.wait())
    assert sent == STREAM_WINDOW_ITEMS
    await items.aclose()
