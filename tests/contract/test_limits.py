"""Sizes: nobody sends more than the peer accepts, and what arrives too large fails its own call only."""

import asyncio

import msgspec
import pytest

from pluginabi import Body, ErrorBody, IncomingCall, PluginError, PluginTransportError, StreamItem
from pluginabi.codec import decode_result
from pluginabi.errors import HOST_CODES
from pluginabi.frames import Call, Cancel, Item, Log, Result
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from tests.contract.conftest import BareFactory
from tests.support.wire import PLUGIN_ID, Pair, event, within

LIMIT = 1 << 16


async def answers_an_echo(pair: Pair) -> bool:
    """Whether the session still works."""

    async def route(call: IncomingCall) -> None:
        call.respond()

    pair.plugin.methods["model.route"] = route
    return (await within(pair.host.session.start_call("model.route", b"{}").reply())).items is None


@pytest.mark.parametrize(
    "params",
    [
        ExecutorRequest(body=Body(text="x" * LIMIT)),
        ExecutorRequest(model="m" * LIMIT),
        b'{"x":"' + b"y" * LIMIT + b'"}',
    ],
    ids=["body", "other-field", "encoded"],
)
async def test_a_call_too_large_for_the_peer_is_not_sent(small_pair: Pair, params: ExecutorRequest | bytes) -> None:
    with pytest.raises(PluginTransportError) as caught:
        small_pair.host.session.start_call("executor.execute", params)
    assert (caught.value.phase, caught.value.code) == ("body_size", "plugin_body_too_large")
    assert caught.value.http_status == HOST_CODES["plugin_body_too_large"] == 413
    assert small_pair.host.session.in_flight == 0
    assert await answers_an_echo(small_pair)


async def test_an_answer_too_large_becomes_the_error_that_says_so(small_pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        call.respond(ExecutorResponse(body=Body(text="x" * LIMIT)))

    small_pair.plugin.methods["executor.execute"] = execute
    with pytest.raises(PluginError) as caught:
        await within(small_pair.host.session.start_call("executor.execute", b"{}").reply())
    assert (caught.value.code, caught.value.http_status) == ("plugin_body_too_large", 413)
    assert await answers_an_echo(small_pair)


@pytest.mark.parametrize("where", ["result", "end"])
async def test_an_error_too_large_keeps_status_code_and_message(small_pair: Pair, where: str) -> None:
    error = ErrorBody(
        message="upstream said no " + "x" * 2000,
        code="nope",
        http_status=451,
        retryable=False,
        retry_after_ms=7,
        scope="model",
        body=Body(text="x" * LIMIT),
    )

    async def execute(call: IncomingCall) -> None:
        if where == "end":
            await call.open_stream()
        call.fail(error)

    small_pair.plugin.methods["executor.execute_stream"] = execute
    call = small_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    with pytest.raises(PluginError) as caught:
        reply = await within(call.reply())
        assert reply.items is not None
        await within(anext(reply.items))
    got = caught.value.body
    assert (got.http_status, got.code, got.retryable, got.retry_after_ms) == (451, "nope", False, 7)
    assert got.scope == "model"
    assert got.message.startswith("upstream said no ")


async def test_an_item_too_large_is_told_to_its_producer_and_not_sent(small_pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        stream = await call.open_stream()
        await stream.send(event(0))
        try:
            await stream.send(StreamItem(body=Body(text="x" * LIMIT)))
        except PluginTransportError as error:
            stream.end(error.to_error_body())

    small_pair.plugin.methods["executor.execute_stream"] = execute
    call = small_pair.host.session.start_call("executor.execute_stream", b"{}", stream=True)
    items = (await within(call.reply())).items
    assert items is not None
    await within(anext(items))
    with pytest.raises(PluginError) as caught:
        await within(anext(items))
    assert caught.value.http_status == 413


async def test_a_body_is_inlined_up_to_64_kib_below_the_peers_limit(bare: BareFactory) -> None:
    accepts = 1 << 20
    async with bare(peer_accepts=accepts) as (host, plugin):
        fits = Body(text="x" * (accepts - 64 * 1024))
        host.session.start_call("executor.execute", ExecutorRequest(body=fits))
        assert len(bytes((await plugin.next(Call)).params)) > accepts - 64 * 1024
        with pytest.raises(PluginTransportError, match="body"):
            host.session.start_call(
                "executor.execute", ExecutorRequest(body=Body(text="x" * (accepts - 64 * 1024 + 1)))
            )
        with pytest.raises(PluginTransportError, match="body"):
            host.session.start_call("executor.execute", ExecutorRequest(body=Body.exact(b"x" * (accepts * 3 // 4))))


async def test_a_frame_of_exactly_the_limit_is_accepted(bare: BareFactory) -> None:
    async with bare(accepts=LIMIT) as (host, plugin):
        call = host.session.start_call("executor.execute", b"{}")
        plugin.channel.send_limit = LIMIT
        filler = LIMIT - plugin.channel.send(Result(id=1, ok=True, result=msgspec.Raw(b'{"a":""}')))
        await within(call.reply())
        call = host.session.start_call("executor.execute", b"{}")
        # A few bytes less where the carrier writes longer length prefixes for longer messages.
        for spare in range(8):
            try:
                result = msgspec.Raw(b'{"a":"' + b"x" * (filler - spare) + b'"}')
                assert plugin.channel.send(Result(id=2, ok=True, result=result)) >= LIMIT - 8
                break
            except Exception:
                continue
        assert (await within(call.reply())).items is None


@pytest.mark.parametrize("kind", ["result", "item"])
async def test_an_oversize_frame_fails_only_its_own_call(bare: BareFactory, kind: str) -> None:
    async with bare(accepts=LIMIT) as (host, plugin):
        call = host.session.start_call("executor.execute_stream", b"{}", stream=True)
        other = host.session.start_call("model.route", b"{}")
        for _ in range(2):
            await plugin.next(Call)
        big = msgspec.Raw(b'{"x":"' + b"y" * 3 * LIMIT + b'"}')
        if kind == "result":
            plugin.send(Result(id=1, ok=True, result=big))
            with pytest.raises(PluginTransportError) as caught:
                await within(call.reply())
        else:
            plugin.send(Result(id=1, ok=True, stream=True))
            items = (await within(call.reply())).items
            assert items is not None
            plugin.send(Item(id=1, body=Body(json=big)))
            with pytest.raises(PluginTransportError) as caught:
                await within(anext(items))
            assert (await plugin.next(Cancel)).id == 1
        assert caught.value.phase == "body_size"
        plugin.send(Result(id=2, ok=True, result=msgspec.Raw(b'{"target":"t"}')))
        reply = await within(other.reply())
        assert decode_result("model.route", reply.result, plugin_id=PLUGIN_ID).target == "t"
        assert not host.session.closed


async def test_an_oversize_callback_is_answered(bare: BareFactory) -> None:
    async with bare(accepts=LIMIT) as (host, plugin):

        async def get(call: IncomingCall) -> None:
            call.respond()

        host.methods["host.kv.get"] = get
        plugin.send(Call(id=1, method="host.kv.set", params=msgspec.Raw(b'{"x":"' + b"y" * LIMIT + b'"}')))
        answer = await plugin.next(Result)
        assert isinstance(answer.error, ErrorBody)
        assert (answer.id, answer.error.code) == (1, "plugin_body_too_large")
        plugin.send(Call(id=2, method="host.kv.get"))
        assert (await plugin.next(Result)).ok


async def test_an_oversize_log_line_is_skipped(bare: BareFactory) -> None:
    async with bare(accepts=LIMIT) as (host, plugin):
        plugin.send(Log(level="info", event="x" * LIMIT))
        plugin.send(Log(level="info", event="small"))
        call = host.session.start_call("model.route", b"{}")
        await plugin.next(Call)
        plugin.send(Result(id=1, ok=True))
        await within(call.reply())
        assert [log.event for log in host.logs] == ["small"]
        assert len(host.strays) == 1


async def test_many_large_frames_for_a_peer_that_does_not_read_are_refused_not_hoarded(bare: BareFactory) -> None:
    async with bare() as (host, plugin):
        plugin.channel.pause_reading()
        params = b'{"x":"' + b"y" * 8_000_000 + b'"}'
        with pytest.raises(PluginTransportError) as caught:
            for _ in range(20):
                host.session.start_call("executor.execute", params)
                await asyncio.sleep(0)
        assert (caught.value.code, caught.value.http_status) == ("plugin_overloaded", 503)
        assert vars(host.session._channel)["_queue"].size <= 40_000_000
