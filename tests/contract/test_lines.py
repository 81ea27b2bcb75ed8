"""What only a carrier of lines can do wrong: strays, broken lines, cut lines, nonsense."""

from collections.abc import Callable
from typing import cast

import pytest

from pluginabi import IncomingCall, PluginTransportError, StreamChannel
from pluginabi.frames import Call, Result
from tests.contract.conftest import BareFactory
from tests.support.wire import BarePeer, Side, within

pytestmark = pytest.mark.parametrize("carrier", ["memory", "pipes", "unix"], indirect=True)

GOOD = b'{"kind":"result","id":1,"ok":true,"result":{"target":"fine"}}\n'


def writer(peer: BarePeer) -> Callable[[bytes], None]:
    """Writes bytes as they are."""
    transport = cast(StreamChannel, peer.channel)._writer
    assert transport is not None
    return transport.write


async def good_answer_after(host: Side, peer: BarePeer, *pieces: bytes) -> bytes:
    """The plugin writes these pieces in answer to a call, which must succeed."""
    call = host.session.start_call("model.route", b"{}")
    await peer.next(Call)
    for piece in pieces:
        writer(peer)(piece)
    result = (await within(call.reply())).result
    return bytes(cast(bytes, result))


@pytest.mark.parametrize(
    "stray",
    [
        b"Loading model weights...",
        b"Traceback (most recent call last):",
        b"{'kind': 'result'}",
        b'{"level":"info","msg":"I log JSON"}',
        b'{"kind":"telemetry","id":1}',
        b"[1,2]",
        b"\xff\xfe not even text",
        b'{"kind":"log","event":5}',
        b'{"kind":"cancel"}',
        b'{"kind":"credit","id":"x"}',
    ],
)
async def test_a_line_that_is_no_frame_is_the_plugins_output_and_skipped(bare: BareFactory, stray: bytes) -> None:
    async with bare() as (host, plugin):
        assert await good_answer_after(host, plugin, stray + b"\n", GOOD) == b'{"target":"fine"}'
        assert len(host.strays) == 1
        assert host.strays[0] == stray or host.strays[0].startswith(b"unusable ")


@pytest.mark.parametrize(
    "pieces",
    [
        [GOOD[:-1] + b"\r\n"],
        [b"\n\r\n\n", GOOD],
        [b"   \t \n", GOOD],
        [bytes([byte]) for byte in GOOD],
        [GOOD + b'{"kind":"log","level":"info","event":"two in one read"}\n'],
        [b'{"id":1,"result":{"target":"fine"},"new_field":{},"ok":true,"kind":"result"}\n'],
    ],
    ids=["crlf", "empty-lines", "blank-lines", "byte-by-byte", "two-in-one", "any-order"],
)
async def test_a_good_answer_may_be_spelled_and_cut_in_many_ways(bare: BareFactory, pieces: list[bytes]) -> None:
    async with bare() as (host, plugin):
        assert await good_answer_after(host, plugin, *pieces) == b'{"target":"fine"}'
        assert host.strays == []


async def test_a_character_that_is_cut_between_two_reads_arrives_whole(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        line = '{"kind":"result","id":1,"ok":true,"result":{"target":"€"}}\n'.encode()
        middle = line.index("€".encode()) + 1
        assert await good_answer_after(host, plugin, line[:middle], line[middle:]) == '{"target":"€"}'.encode()


async def test_a_last_line_without_newline_counts(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        writer(plugin)(GOOD[:-1])
        plugin.channel.close()
        assert bytes(cast(bytes, (await within(call.reply())).result)) == b'{"target":"fine"}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"kind":"result","id":1,"ok":tru', "truncated"),
        (b'{"kind":"result","id":1,"ok":true,"result":{"a":"\xff"}}', "utf-8"),
        (b'{"kind":"result","id":1,"ok":true,"result":{"body":{"json":{"a":"\xed\xa0\x80"}}}}', "utf-8"),
        (b'{"kind":"result","id":1}', "`ok`"),
        (b'{"kind":"result","id":1,"ok":"yes"}', "bool"),
        (b'{"kind":"result","id":1,"ok":false,"error":{"http_status":"429"}}', "int"),
        (b'{"kind":"result","id":1,"ok":false,"error":{"body":{"json":1,"text":"a"}}}', "exactly one"),
        (b'{"kind":"result","id":1,"ok":true,"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "recursion"),
        (b'{"kind":"end","id":1,"ok":true', "truncated"),
    ],
    ids=["cut", "utf8", "surrogate", "missing", "type", "error-type", "two-forms", "nesting", "end"],
)
async def test_an_answer_that_cannot_be_decoded_fails_its_own_call_only(
    bare: BareFactory, line: bytes, said: str
) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        other = host.session.start_call("model.route", b"{}")
        for _ in range(2):
            await plugin.next(Call)
        writer(plugin)(line + b"\n" + GOOD.replace(b'"id":1', b'"id":2'))
        with pytest.raises(PluginTransportError, match=said) as caught:
            await within(call.reply())
        assert (caught.value.phase, caught.value.http_status) == ("decode", 502)
        assert (await within(other.reply())).items is None


@pytest.mark.parametrize(
    "line",
    [b'{"kind":"result","ok":true}', b'{"kind":"item","event":"x"}', b'{"kind":"call","method":"host.kv.get"}'],
)
async def test_an_answer_of_nobody_ends_the_session(bare: BareFactory, line: bytes) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        writer(plugin)(line + b"\n")
        with pytest.raises(PluginTransportError) as caught:
            await within(call.reply())
        assert caught.value.code == "plugin_protocol_error"


async def test_an_oversize_answer_is_known_by_the_id_in_its_first_bytes(bare: BareFactory) -> None:
    async with bare(accepts=100_000) as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        other = host.session.start_call("model.route", b"{}")
        for _ in range(2):
            await plugin.next(Call)
        write = writer(plugin)
        write(b'{"kind":"result","id":1,"ok":true,"result":{"x":"')
        for _ in range(30):
            write(b"y" * 10_000)
        write(b'"}}\n' + GOOD.replace(b'"id":1', b'"id":2'))
        with pytest.raises(PluginTransportError) as caught:
            await within(call.reply())
        assert caught.value.phase == "body_size"
        assert (await within(other.reply())).items is None


async def test_oversize_output_that_is_no_frame_is_stray(bare: BareFactory) -> None:
    async with bare(accepts=10_000) as (host, plugin):
        assert await good_answer_after(host, plugin, b"x" * 50_000 + b"\n", GOOD) == b'{"target":"fine"}'
        assert host.strays == [b"x" * 4096]


async def test_the_plugin_skips_kinds_it_does_not_know(bare: BareFactory) -> None:
    async with bare(role="plugin") as (plugin, host):

        async def route(call: IncomingCall) -> None:
            call.respond(b'{"target":"t"}')

        plugin.methods["model.route"] = route
        write = writer(host)
        write(b'{"kind":"input_credit","id":1,"bytes":5}\n{"kind":"call","id":1,"method":"model.route","params":{}}\n')
        assert (await host.next(Result)).ok
