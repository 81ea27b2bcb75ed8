"""The end of a session: everything pending is told at once, on both sides, whatever ended it."""

import asyncio

import pytest

from pluginabi import IncomingCall, PluginTransportError
from pluginabi.frames import Call, Result
from tests.contract.conftest import BareFactory
from tests.support.wire import PROFILES, Pair, within


async def test_when_the_peer_goes_every_pending_call_stream_and_ping_fails_at_once(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        calls = [host.session.start_call("model.route", b"{}") for _ in range(20)]
        opened = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        plugin.send(Result(id=opened.id, ok=True, stream=True))
        items = (await within(opened.reply())).items
        assert items is not None
        waiting: list[asyncio.Task[object]] = [asyncio.create_task(call.reply()) for call in calls]
        waiting.append(asyncio.create_task(anext(items)))
        ping = asyncio.create_task(host.session.ping())
        await asyncio.sleep(0)
        plugin.channel.close()
        for outcome in await within(asyncio.gather(*waiting, ping, return_exceptions=True)):
            assert isinstance(outcome, PluginTransportError)
            assert (outcome.phase, outcome.code, outcome.http_status) == ("exit", "plugin_crashed", 502)
        assert isinstance(await within(host.reader), ConnectionError)
        assert (host.session.in_flight, host.session.open_streams, host.session.closed) == (0, 0, True)


async def test_a_call_after_the_end_fails_before_anything_is_sent(pair: Pair) -> None:
    await within(pair.host.session.close())
    with pytest.raises(PluginTransportError) as caught:
        pair.host.session.start_call("model.route", b"{}")
    assert (caught.value.phase, caught.value.code) == ("unavailable", "plugin_unavailable")


async def test_closing_tells_the_pending_calls_why(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        await call.cancelled.wait()

    pair.plugin.methods["model.route"] = route
    call = pair.host.session.start_call("model.route", b"{}")
    await within(pair.host.session.close("the operator stopped it", phase="unavailable"))
    await within(pair.host.session.close())
    with pytest.raises(PluginTransportError, match="the operator stopped it") as caught:
        await within(call.reply())
    assert caught.value.phase == "unavailable"
    assert await within(pair.host.reader) is None


async def test_what_was_sent_before_a_close_still_arrives(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        for _ in range(100):
            host.session.start_call("model.route", b'{"x":"' + b"y" * 1000 + b'"}')
        closing = asyncio.create_task(host.session.close())
        for number in range(1, 101):
            assert (await plugin.next(Call)).id == number
        await within(plugin.closed)
        await within(closing)


async def test_cancelling_the_reader_ends_the_session(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        host.reader.cancel()
        with pytest.raises(PluginTransportError, match="was stopped"):
            await within(call.reply())
        await within(plugin.closed)
        host.reader = asyncio.ensure_future(asyncio.sleep(0))


async def test_a_failing_handler_closes_the_session_instead_of_hanging_it(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        boom = RuntimeError("a bug in the handler")

        def handler(call: IncomingCall) -> None:
            raise boom

        assert host.session._incoming._budget is not None
        host.session._incoming._budget._handler = handler
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
        call = host.session.start_call("model.route", b"{}")
        plugin.send(Call(id=1, method="host.kv.get"))
        with pytest.raises(PluginTransportError, match="a bug in the handler"):
            await within(call.reply())
        assert await within(host.reader) is boom


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        plugin.channel.pause_reading()
        for _ in range(3):
            host.session.start_call("model.route", b'{"x":"' + b"y" * 1_000_000 + b'"}')
        started = asyncio.get_running_loop().time()
        await within(host.session.close())
        assert asyncio.get_running_loop().time() - started < 3


async def test_on_closed_calls_back_at_once_for_a_call_that_is_closed_already(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        call.respond()

    pair.plugin.methods["model.route"] = route
    call = pair.host.session.start_call("model.route", b"{}")
    await within(call.reply())
    closed: list[bool] = []
    call.on_closed(lambda: closed.append(True))
    assert closed == [True]
