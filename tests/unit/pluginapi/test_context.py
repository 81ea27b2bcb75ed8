"""What a hook can ask of its context, against a port that records what the host would see."""

import asyncio
import time

import msgspec
import pytest
from msgspec import Raw

from pluginapi import (
    Body,
    Context,
    CredentialHandle,
    Dispatcher,
    HttpResponse,
    KvGetResponse,
    KvIncrementResponse,
    KvSetResponse,
    ModelCallResponse,
    ModelRouteRequest,
    Plugin,
    PluginError,
    StreamItem,
    Usage,
    blocking,
)


class Items:
    """A stream of a callback."""

    def __init__(self, items, usage=None):
        self.items = items
        self.usage = usage
        self.closed = 0

    async def __aiter__(self):
        for item in self.items:
            yield item

    async def aclose(self, reason="client_gone"):
        self.closed += 1


class Port:
    """Answers every callback with what the test put there."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    async def call(self, method, params, *, timeout_ms=None):
        self.calls.append((method, params, timeout_ms))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    stream = call


async def test_http_do_sends_lower_cased_header_lists_the_body_and_the_handle_of_the_credential():
    port = Port(HttpResponse(status=404, body=Body(text="no")))
    credential = CredentialHandle(handle="c1", provider="openai")
    response = await Context(port=port).http.do(
        "POST", "https://up/x", headers={"X-One": "1"}, body={"a": 1}, credential=credential, timeout_ms=50
    )
    ((method, request, timeout_ms),) = port.calls
    assert (method, timeout_ms, request.method, request.url) == ("host.http.do", 50, "POST", "https://up/x")
    assert (dict(request.headers), request.body.to_bytes(), request.credential) == ({"x-one": ("1",)}, b'{"a":1}', "c1")
    assert (response.status, response.body.to_bytes()) == (404, b"no")


async def test_http_stream_yields_the_bytes_and_is_closed_by_its_context_manager():
    raw = [
        StreamItem(raw=Body(text="one")),
        StreamItem(),
        StreamItem(raw=Body(text="")),
        StreamItem(raw=Body(text="2")),
    ]
    items = Items(raw)
    async with Context(port=Port((HttpResponse(status=503), items))).http.stream("GET", "https://up") as response:
        parts = [part async for part in response]
    assert (response.status, parts, items.closed) == (503, [b"one", b"2"], 1)


async def test_an_awaited_http_stream_can_be_read_whole():
    items = Items([StreamItem(raw=Body(text="a")), StreamItem(raw=Body.exact(b"\xff"))])
    response = await Context(port=Port((HttpResponse(status=200), items))).http.stream("GET", "https://up")
    assert await response.read() == b"a\xff"
    await response.aclose()
    assert items.closed == 1


async def test_an_error_of_a_callback_keeps_its_status():
    port = Port(PluginError("denied", code="permission_denied", http_status=500))
    with pytest.raises(PluginError) as caught:
        async with Context(port=port).http.stream("GET", "https://up"):
            pytest.fail("opened")
    assert caught.value.code == "permission_denied"


async def test_model_execute_and_stream_pass_the_protocols_on_and_hide_progress():
    items = Items([StreamItem(), StreamItem(body=Body.from_value({"a": 1}))], usage=Usage(total_tokens=3))
    port = Port(ModelCallResponse(status=200), (ModelCallResponse(), items))
    ctx = Context(port=port)
    await ctx.model.execute("m", {"x": 1}, entry_protocol="claude", query={"q": "1"}, alt="sse")
    async with ctx.model.stream("m", b'{"x":1}') as stream:
        seen = [item.body.to_bytes() async for item in stream]
    first, second = (call[1] for call in port.calls)
    assert (first.entry_protocol, dict(first.query), first.alt) == ("claude", {"q": ("1",)}, "sse")
    assert (second.entry_protocol, second.body.to_bytes()) == ("openai", b'{"x":1}')
    assert (seen, stream.usage, items.closed) == ([b'{"a":1}'], Usage(total_tokens=3), 1)


async def test_kv_never_confuses_a_miss_with_a_stored_null():
    port = Port(
        KvGetResponse(), KvGetResponse(found=True, value=Raw(b"null")), KvGetResponse(found=True, value=Raw(b"7"))
    )
    kv = Context(port=port).kv
    assert [await kv.get("k", "none") for _ in range(3)] == ["none", None, 7]


async def test_kv_set_and_increment_carry_their_conditions():
    port = Port(KvSetResponse(stored=True), KvIncrementResponse(value=4))
    kv = Context(port=port).kv
    assert await kv.set("k", {"a": [1]}, ttl_ms=10, only_if_absent=True) is True
    assert await kv.increment("n", 2, ttl_ms=5) == 4
    (_, stored, _), (_, added, _) = port.calls
    assert (msgspec.json.decode(stored.value), stored.ttl_ms, stored.only_if_absent) == ({"a": [1]}, 10, True)
    assert (added.key, added.by, added.ttl_ms) == ("n", 2, 5)


async def test_a_context_without_a_host_refuses_callbacks():
    with pytest.raises(PluginError) as caught:
        await Context().kv.get("k")
    assert caught.value.code == "permission_denied"


def test_remaining_time_is_none_without_a_deadline_and_never_negative():
    assert Context().remaining_s() is None
    assert Context(deadline_s=time.monotonic() - 5).remaining_s() == 0.0
    assert 0 < Context(deadline_s=time.monotonic() + 60).remaining_s() <= 60


def test_log_lines_have_level_event_and_fields():
    lines = []
    ctx = Context(log=lambda level, event, fields: lines.append((level, event, fields)))
    ctx.log.debug("a")
    ctx.log.info("b", key=1)
    ctx.log.warning("c")
    ctx.log.error("d")
    assert lines == [("debug", "a", {}), ("info", "b", {"key": 1}), ("warning", "c", {}), ("error", "d", {})]


async def test_a_blocking_hook_reaches_the_host_through_run_sync(within):
    class Router(Plugin):
        @blocking
        def model_route(self, request, ctx):
            assert ctx.run_sync(ctx.kv.get("k")) == 7

    port = Port(KvGetResponse(found=True, value=Raw(b"7")))
    dispatcher = Dispatcher(Router())
    await within(dispatcher.dispatch("model.route", ModelRouteRequest(), Context(port=port)))
    dispatcher.close()


async def test_run_sync_in_an_async_hook_says_to_await_instead():
    ctx = Context(port=Port())
    with pytest.raises(RuntimeError, match="await the callback instead"):
        ctx.run_sync(asyncio.sleep(0))
