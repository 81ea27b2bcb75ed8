"""A plugin that sends without end what nobody asked for holds up nobody but itself."""

import asyncio
from typing import cast

import pytest

from pluginabi import StreamChannel
from pluginabi.frames import Call, Item, Log, Ping, Pong, Result
from pluginabi.patience import BURST_S, LINE_S
from tests.contract.conftest import BareFactory
from tests.support.wire import event, within

lines_only = pytest.mark.parametrize("carrier", ["memory", "pipes", "unix"], indirect=True)


@lines_only
async def test_all_of_it_is_seen_in_order_and_a_good_answer_among_it_is_found(bare: BareFactory) -> None:
    async with bare() as (host, peer):
        call = host.session.start_call("model.route", b"{}")
        await peer.next(Call)
        writer = cast(StreamChannel, peer.channel)._writer
        assert writer is not None
        noise = [b"%d bottles" % number for number in range(1000)]
        writer.write(b"\n".join(noise[:500]) + b"\n")
        peer.send(Result(id=1, ok=True))
        writer.write(b"\n".join(noise[500:]) + b"\n")
        await within(call.reply())
        assert host.strays[:500] == noise[:500]
        peer.channel.close()
        await within(host.reader)
        assert host.strays == noise


@lines_only
async def test_at_once_no_more_is_looked_at_than_a_burst_however_short_the_lines(bare: BareFactory) -> None:
    async with bare() as (host, peer):
        writer = cast(StreamChannel, peer.channel)._writer
        assert writer is not None
        writer.write(b"x\n" * 20_000)
        seen, at_once = 0, []
        async with asyncio.timeout(60):
            while seen < 1000:
                await asyncio.sleep(0)
                at_once.append(len(host.strays) - seen)
                seen = len(host.strays)
        # What time passes meanwhile fills the bucket again, once at most.
        assert max(at_once) <= 2 * BURST_S / LINE_S


@lines_only
async def test_a_peer_whose_noise_is_held_back_does_not_count_as_silent(
    bare: BareFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluginabi.patience.SHARE", 1e-6)  # so that it is still held back however late we look
    async with bare() as (host, peer):
        writer = cast(StreamChannel, peer.channel)._writer
        assert writer is not None
        writer.write(b"x" * 2_000_000 + b"\n")
        async with asyncio.timeout(60):
            while not host.strays:  # noqa: ASYNC110 - what is looked at is the moment after
                await asyncio.sleep(0)
        now_s = asyncio.get_running_loop().time()
        assert host.session.last_received_s >= now_s


async def test_log_lines_without_end_are_all_read_in_order(bare: BareFactory) -> None:
    async with bare() as (host, peer):
        lines = 5000
        for number in range(lines):
            if not peer.channel.writable:
                await within(peer.channel.drain())
            peer.send(Log(level="info", event=str(number)))
        pinging = asyncio.ensure_future(host.session.ping())
        await peer.next(Ping)
        peer.send(Pong(id=1))
        await within(pinging)
        assert [int(log.event) for log in host.logs] == list(range(lines))


async def test_items_of_a_stream_that_was_left_are_dropped_and_the_session_goes_on(bare: BareFactory) -> None:
    async with bare() as (host, peer):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        await peer.next(Call)
        peer.send(Result(id=1, ok=True, stream=True))
        reply = await within(call.reply())
        await within(reply.items.aclose())
        for number in range(3000):
            if not peer.channel.writable:
                await within(peer.channel.drain())
            peer.send(Item(id=1, body=event(number).body))
        again = host.session.start_call("model.route", b"{}")
        while (frame := await within(peer._frames.get())).__class__ is not Call:
            assert frame is not None
        peer.send(Result(id=2, ok=True))
        await within(again.reply())
        assert not host.session.closed
