"""Rules of the conversation: handshake, stray output, protocol errors, ping, goaway, log."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from pluginabi import (
    ErrorBody,
    Goaway,
    HandshakeError,
    HandshakeRefused,
    Hello,
    HostInfo,
    IncomingCall,
    Limits,
    Log,
    PluginTransportError,
    Pong,
    ProtocolError,
    StreamChannel,
    host_handshake,
    plugin_handshake,
    plugin_hello,
)
from pluginabi.frames import Call, Credit, End, Frame, Item, Ping, Result
from pluginabi.version import FEATURES
from tests.contract.conftest import BareFactory
from tests.support.wire import PLUGIN_ID, PROFILES, BarePeer, Pair, channels, within

HOST = HostInfo(version="9.9.9")
HELLO = plugin_hello(PLUGIN_ID, "1.0.0", ("model.route",))


async def test_both_sides_learn_the_others_hello_and_agree_on_features(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, plugin):
        hello = replace(
            HELLO,
            features=("cancel", "credit", "from_the_future"),
            inputs={"model.route": ["body:/tools"]},
            limits=Limits(max_inflight=8, max_frame_bytes=1 << 20),
        )
        ours, theirs = await within(
            asyncio.gather(
                host_handshake(host, plugin_id=PLUGIN_ID, host=HOST, limits=Limits(max_frame_bytes=2 << 20)),
                plugin_handshake(plugin, hello),
            )
        )
        assert ours.features == theirs.features == {"cancel", "credit"}
        assert (ours.peer.plugin, ours.peer.version, list(ours.peer.capabilities)) == (
            PLUGIN_ID,
            "1.0.0",
            ["model.route"],
        )
        assert {method: list(words) for method, words in ours.peer.inputs.items()} == {"model.route": ["body:/tools"]}
        assert (ours.max_inflight, ours.max_streams, ours.peer.limits.max_frame_bytes) == (8, 1000, 1 << 20)
        assert theirs.peer.host == HOST
        assert theirs.peer.limits.max_frame_bytes == 2 << 20


async def test_a_plugin_without_features_gets_one_call_at_a_time(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, plugin):
        ours, _ = await within(
            asyncio.gather(
                host_handshake(host, plugin_id=PLUGIN_ID, host=HOST),
                plugin_handshake(plugin, replace(HELLO, features=())),
            )
        )
        assert (ours.features, ours.max_inflight) == (frozenset(), 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"abi": (2, 3)}, "upgrade Jackfield"),
        ({"abi": (0,)}, "upgrade the plugin"),
        ({"abi": ()}, "no version"),
        ({"schema": 99}, "needs payload schema 99"),
        ({"plugin": "somebody-else"}, "'somebody-else'"),
        ({"plugin": None}, "names no plugin"),
        ({"capabilities": ()}, "no capabilities"),
    ],
)
async def test_two_that_cannot_talk_say_so_with_both_names(
    carrier: str, folder: Path, changes: dict[str, object], said: str
) -> None:
    async with channels(carrier, folder) as (host, plugin):
        peer = BarePeer(plugin)
        waiting = asyncio.create_task(host_handshake(host, plugin_id=PLUGIN_ID, host=HOST))
        assert (await peer.next(Hello)).host == HOST
        peer.send(replace(HELLO, **changes))
        with pytest.raises(HandshakeRefused) as caught:
            await within(waiting)
        assert said in str(caught.value)
        assert PLUGIN_ID in str(caught.value)
        assert (caught.value.phase, caught.value.code) == ("hello", "plugin_unavailable")


async def test_a_frame_before_the_hello_is_no_handshake(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, plugin):
        plugin.send(Result(id=1, ok=True))
        plugin.send(HELLO)
        with pytest.raises(HandshakeError, match="a result frame before its hello"):
            await within(host_handshake(host, plugin_id=PLUGIN_ID, host=HOST))


async def test_no_hello_in_time_is_no_handshake(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, _):
        with pytest.raises(HandshakeError, match=r"no hello within 0\.01 s"):
            await within(host_handshake(host, plugin_id=PLUGIN_ID, host=HOST, timeout_s=0.01))


async def test_an_end_before_the_hello_is_no_handshake(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, plugin):
        plugin.close()
        with pytest.raises(HandshakeError, match="ended before its hello"):
            await within(host_handshake(host, plugin_id=PLUGIN_ID, host=HOST))


@pytest.mark.parametrize("token", ["wrong", None])
async def test_a_wrong_token_is_not_answered(carrier: str, folder: Path, token: str | None) -> None:
    async with channels(carrier, folder) as (host, plugin):
        peer = BarePeer(host)
        peer.send(Hello(abi=[1], schema=1, features=FEATURES, host=HOST, token=token))
        with pytest.raises(HandshakeError, match="wrong token"):
            await within(plugin_handshake(plugin, HELLO, token="right"))
        assert peer.arrived() == []


async def test_the_right_token_is_answered(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, plugin):
        ours, theirs = await within(
            asyncio.gather(
                host_handshake(host, plugin_id=PLUGIN_ID, host=HOST, endpoint="/run/x", token="right"),
                plugin_handshake(plugin, HELLO, token="right"),
            )
        )
        assert (theirs.peer.endpoint, theirs.peer.token) == ("/run/x", "right")
        assert ours.peer.token is None


async def test_who_is_at_the_other_end_of_a_unix_socket_is_known(folder: Path) -> None:
    async with channels("unix", folder) as pair:
        for channel in pair:
            assert isinstance(channel, StreamChannel)
            assert channel.peer_uid() == os.getuid()
    async with channels("pipes", folder) as pair:
        assert isinstance(pair[0], StreamChannel)
        assert pair[0].peer_uid() is None


async def test_frames_right_behind_the_hello_wait_for_the_session(carrier: str, folder: Path) -> None:
    async with channels(carrier, folder) as (host, plugin):
        plugin.send(HELLO)
        for number in range(1, 4):
            plugin.send(Log(level="info", event=f"early {number}"))
        await within(host_handshake(host, plugin_id=PLUGIN_ID, host=HOST))
        peer = BarePeer(host)
        assert [(await peer.next(Log)).event for _ in range(3)] == ["early 1", "early 2", "early 3"]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (Result(id=7, ok=True), "call 7, which was never made"),
        (Item(id=7), "call 7, which was never made"),
        (End(id=7, ok=True), "call 7, which was never made"),
        (Item(id=1), "before its opening result"),
        (End(id=1, ok=True), "before its opening result"),
        (Credit(id=9, items=1, bytes=1), "call 9, which was never made"),
        (Pong(id=9), "ping 9, which was never sent"),
        (Call(id=0, method="host.kv.get"), "ids only grow"),
        (Call(id=1, method="host.kv.get", parent=5), "call 5, which was never made"),
        (HELLO, "a second hello"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else None,
)
async def test_a_protocol_error_ends_the_session(bare: BareFactory, frame: Frame, said: str) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        await plugin.next(Call)
        plugin.send(frame)
        with pytest.raises(PluginTransportError, match=said) as caught:
            await within(call.reply())
        assert (caught.value.phase, caught.value.code) == ("decode", "plugin_protocol_error")
        assert caught.value.http_status == 502
        assert isinstance(await within(host.reader), ProtocolError)
        await within(plugin.closed)


async def test_an_id_that_was_used_before_is_a_protocol_error(bare: BareFactory) -> None:
    async with bare() as (host, plugin):

        async def get(call: IncomingCall) -> None:
            call.respond()

        host.methods["host.kv.get"] = get
        plugin.send(Call(id=3, method="host.kv.get"))
        await plugin.next(Result)
        plugin.send(Call(id=3, method="host.kv.get"))
        assert isinstance(await within(host.reader), ProtocolError)


async def test_H119_frames_for_a_forgotten_id_are_dropped(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("model.route", b"{}")
        plugin.send(Result(id=1, ok=True))
        await within(call.reply())
        for frame in (Result(id=1, ok=True), Item(id=1), End(id=1, ok=True), Result(id=1, ok=True, stream=True)):
            plugin.send(frame)
        following = host.session.start_call("model.route", b"{}")
        plugin.send(Result(id=2, ok=True))
        await within(following.reply())


async def test_a_second_result_for_an_open_stream_fails_that_stream(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        plugin.send(Result(id=1, ok=True, stream=True))
        items = (await within(call.reply())).items
        assert items is not None
        plugin.send(Result(id=1, ok=True))
        with pytest.raises(PluginTransportError, match="second result") as caught:
            await within(anext(items))
        assert caught.value.phase == "decode"


async def test_the_plugin_answers_a_ping_while_its_work_goes_on(full_pair: Pair) -> None:
    running = asyncio.Event()

    async def route(call: IncomingCall) -> None:
        running.set()
        await call.cancelled.wait()
        call.respond()

    full_pair.plugin.methods["model.route"] = route
    call = full_pair.host.session.start_call("model.route", b"{}")
    await within(running.wait())
    before = full_pair.host.session.last_received_s
    pongs = await within(asyncio.gather(*(full_pair.host.session.ping() for _ in range(3))))
    assert len({pong.id for pong in pongs}) == 3
    assert all(pong.loop_lag_ms is not None and pong.loop_lag_ms >= 0 for pong in pongs)
    assert full_pair.host.session.last_received_s >= before
    call.cancel()


async def test_pings_go_only_to_a_plugin_that_offered_them(bare: BareFactory) -> None:
    async with bare(features=PROFILES["full"] - {"ping"}) as (host, plugin):
        with pytest.raises(ValueError, match="did not offer"):
            await host.session.ping()
        assert plugin.arrived() == []


async def test_a_ping_given_up_is_forgotten_and_its_late_pong_harmless(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        waiting = asyncio.create_task(host.session.ping())
        assert (await plugin.next(Ping)).id == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        again = asyncio.create_task(host.session.ping())
        assert (await plugin.next(Ping)).id == 2
        plugin.send(Pong(id=1))
        plugin.send(Pong(id=2, loop_lag_ms=1.5))
        assert await within(again) == Pong(id=2, loop_lag_ms=1.5)


async def test_after_goaway_the_host_makes_no_call_but_shutdown(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        running = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        host.session.goaway("upgrade", 15_000)
        assert await plugin.next(Goaway) == Goaway(reason="upgrade", drain_ms=15_000)
        with pytest.raises(PluginTransportError, match="going away: upgrade") as caught:
            host.session.start_call("model.route", b"{}")
        assert caught.value.phase == "unavailable"
        shutdown = host.session.start_call("plugin.shutdown", b"{}")
        assert (await plugin.next(Call)).method == "plugin.shutdown"

        async def get(call: IncomingCall) -> None:
            call.respond()

        host.methods["host.kv.get"] = get
        plugin.send(Call(id=1, method="host.kv.get", parent=1))
        assert (await plugin.next(Result)).ok
        plugin.send(Result(id=1, ok=True))
        plugin.send(Result(id=2, ok=True))
        await within(running.reply())
        await within(shutdown.reply())


async def test_a_goaway_of_the_plugin_says_replace_me_and_lets_its_work_go_on(full_pair: Pair) -> None:
    go_on = asyncio.Event()

    async def route(call: IncomingCall) -> None:
        full_pair.plugin.session.goaway("my model file changed", 0)
        await go_on.wait()
        assert (await full_pair.plugin.session.start_call("host.kv.get", b"{}", parent=call.id).reply()).items is None
        call.respond()

    async def get(call: IncomingCall) -> None:
        call.respond()

    full_pair.plugin.methods["model.route"] = route
    full_pair.host.methods["host.kv.get"] = get
    call = full_pair.host.session.start_call("model.route", b"{}")
    assert (await within(full_pair.host.goaways.get())).reason == "my model file changed"
    with pytest.raises(PluginTransportError, match="my model file changed"):
        full_pair.host.session.start_call("model.route", b"{}")
    go_on.set()
    await within(call.reply())
    assert not full_pair.host.session.closed


async def test_a_plugin_of_the_minimal_profile_gets_nothing_but_calls(bare: BareFactory) -> None:
    async with bare(features=PROFILES["minimal"]) as (host, plugin):
        call = host.session.start_call("model.route", b"{}", timeout_ms=60_000)
        assert (await plugin.next(Call)).id == 1
        call.time_is_up()
        with pytest.raises(PluginTransportError):
            await within(call.reply())
        host.session.goaway("bye", 0)
        shutdown = host.session.start_call("plugin.shutdown", b"{}")
        assert (await plugin.next(Call)).id == shutdown.id
        assert plugin.arrived() == []


async def test_log_lines_arrive_with_their_fields(pair: Pair) -> None:
    async def route(call: IncomingCall) -> None:
        line = Log(level="warning", event="cache.miss", fields={"key": "k", "n": 1, "deep": {"a": [None]}})
        pair.plugin.session.log(replace(line, parent=call.id))
        pair.plugin.session.log(line)
        call.respond()

    pair.plugin.methods["model.route"] = route
    await within(pair.host.session.start_call("model.route", b"{}").reply())
    fields = {"key": "k", "n": 1, "deep": {"a": [None]}}
    assert [(line.level, line.event, dict(line.fields), line.parent) for line in pair.host.logs] == [
        ("warning", "cache.miss", fields, 1),
        ("warning", "cache.miss", fields, None),
    ]


async def test_a_broken_answer_fails_only_its_own_call(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        broken = host.session.start_call("model.route", b"{}")
        other = host.session.start_call("model.route", b"{}")
        for _ in range(2):
            await plugin.next(Call)
        send_broken_result(plugin, call_id=1)
        with pytest.raises(PluginTransportError) as caught:
            await within(broken.reply())
        assert caught.value.phase == "decode"
        plugin.send(Result(id=2, ok=True))
        await within(other.reply())


async def test_a_broken_callback_is_answered(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        plugin.send(Call(id=1, method="host.kv.get", params=msgspec.Raw(b"{nonsense")))
        answer = await plugin.next(Result)
        assert isinstance(answer.error, ErrorBody)
        assert (answer.id, answer.error.code) == (1, "plugin_protocol_error")
        assert not host.session.closed


def send_broken_result(peer: BarePeer, *, call_id: int) -> None:
    """A `result` whose embedded result is no JSON."""
    peer.send(Result(id=call_id, ok=True, result=msgspec.Raw(b"{nonsense")))
