"""The boundary between streams and an author's code."""

import msgspec
import pytest

from pluginapi import (
    Body,
    Dispatcher,
    ExecutorRequest,
    ExecutorResponse,
    HttpStream,
    PluginError,
    Stream,
    StreamItem,
    Usage,
)
from tests.support.dispatch import LONG, logged, plugin_with, stream


async def test_a_generator_opens_a_stream_and_every_short_spelling_becomes_an_item(within):
    class Point(msgspec.Struct):
        x: int

    whole = StreamItem(event="whole", body=Body(text="t"))

    async def hook(self):
        yield {"a": 1}
        yield ("named", {"b": 2})
        yield [1, 2]
        yield Point(3)
        yield Body(text="plain")
        yield None
        yield whole

    reply = await within(stream(hook))
    items = [item async for item in reply.items]
    assert reply.result == ExecutorResponse()
    assert [(item.event, item.body.to_bytes()) for item in items if not item.is_progress] == [
        (None, b'{"a":1}'),
        ("named", b'{"b":2}'),
        (None, b"[1,2]"),
        (None, b'{"x":3}'),
        (None, b"plain"),
        ("whole", b"t"),
    ]
    assert items[5].is_progress
    assert items[6] is whole


async def test_bytes_and_text_are_raw_data(within):
    async def hook(self):
        yield b"data: \xc3"
        yield "text\n\n"

    reply = await within(stream(hook))
    assert [item.raw.to_bytes() async for item in reply.items] == [b"data: \xc3", b"text\n\n"]


async def test_a_stream_answer_carries_status_headers_and_usage(within):
    async def items():
        yield {"a": 1}

    async def hook(self):
        return Stream(items(), status=201, headers={"X-One": "1", "x-two": ["a", "b"]}, usage=Usage(total_tokens=9))

    reply = await within(stream(hook))
    assert (reply.result.status, dict(reply.result.headers)) == (201, {"x-one": ("1",), "x-two": ("a", "b")})
    assert len([item async for item in reply.items]) == 1
    assert reply.usage_of() == Usage(total_tokens=9)


class Upstream:
    """The items of `ctx.http.stream`, as a port gives them."""

    usage = None

    def __init__(self) -> None:
        self.closed = ""
        self.left = [StreamItem(raw=Body.exact(piece)) for piece in (b"data: 1\n\n", b"data: 2\n\n")]

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise PluginError(LONG)
        return self.left.pop(0)

    async def aclose(self, reason="client_gone"):
        self.closed = reason


async def test_an_upstreams_stream_passed_on_keeps_its_items_and_its_error_and_is_closed_with_the_answer(within):
    upstream = Upstream()
    items = list(upstream.left)

    async def hook(self):
        return Stream(HttpStream(200, {}, upstream), usage=Usage(total_tokens=9))

    reply = await within(stream(hook))
    passed = [await within(anext(reply.items)) for _ in items]
    assert [before is after for before, after in zip(items, passed, strict=True)] == [True, True]
    with pytest.raises(PluginError) as caught:
        await within(anext(reply.items))
    assert caught.value.body is LONG
    await within(reply.items.aclose("deadline"))
    assert (upstream.closed, reply.usage_of()) == ("deadline", Usage(total_tokens=9))


async def test_a_yielded_usage_is_the_usage_of_the_end_and_no_item(within):
    async def hook(self):
        yield Usage(input_tokens=1)
        yield {"a": 1}
        yield Usage(input_tokens=1, output_tokens=2)

    reply = await within(stream(hook))
    assert len([item async for item in reply.items]) == 1
    assert reply.usage_of() == Usage(input_tokens=1, output_tokens=2)


async def test_an_error_before_the_first_item_of_a_generator_is_an_ordinary_answer(within):
    async def hook(self):
        raise PluginError(LONG)
        yield

    with pytest.raises(PluginError) as caught:
        await within(stream(hook))
    assert caught.value.body is LONG


async def test_an_error_after_items_keeps_every_field_and_the_usage_so_far(within):
    async def hook(self):
        yield {"a": 1}
        yield Usage(input_tokens=1)
        raise PluginError(LONG)

    reply = await within(stream(hook))
    assert (await within(anext(reply.items))).body.to_bytes() == b'{"a":1}'
    with pytest.raises(PluginError) as caught:
        await within(anext(reply.items))
    assert (caught.value.body, reply.usage_of()) == (LONG, Usage(input_tokens=1))


async def test_a_foreign_exception_in_a_stream_is_a_500_with_its_class_name(within):
    async def hook(self):
        yield {"a": 1}
        raise ValueError("secret")

    reply = await within(stream(hook))
    await within(anext(reply.items))
    with pytest.raises(PluginError, match=r"ValueError in executor.execute_stream"):
        await within(anext(reply.items))


async def test_an_empty_generator_is_an_empty_stream(within):
    async def hook(self):
        return
        yield

    reply = await within(stream(hook))
    assert [item async for item in reply.items] == []


async def test_events_and_raw_data_in_one_stream_are_an_error(within):
    async def hook(self):
        yield {"a": 1}
        yield None
        yield b"raw"

    reply = await within(stream(hook))
    with pytest.raises(PluginError, match="all events or all raw"):
        [item async for item in reply.items]


async def test_a_value_that_is_no_item_is_an_error(within):
    async def hook(self):
        yield {"a": 1}
        yield ("one", "two", "three")

    reply = await within(stream(hook))
    with pytest.raises(PluginError, match=r"TypeError in executor.execute_stream"):
        [item async for item in reply.items]


async def test_closing_runs_the_authors_cleanup_once(within):
    closed = []

    async def hook(self):
        try:
            yield {"a": 1}
            yield {"a": 2}
        finally:
            closed.append("closed")

    reply = await within(stream(hook))
    await within(anext(reply.items))
    await within(reply.items.aclose("client_gone"))
    await within(reply.items.aclose())
    assert closed == ["closed"]
    assert [item async for item in reply.items] == []


async def test_closing_a_stream_whose_items_never_started_keeps_them_from_starting(within):
    async def items():
        pytest.fail("started")
        yield

    async def hook(self):
        return Stream(items())

    reply = await within(stream(hook))
    await within(reply.items.aclose())
    assert [item async for item in reply.items] == []


async def test_an_exception_in_the_cleanup_of_a_closed_stream_is_logged_and_dropped(within):
    lines = []

    async def hook(self):
        try:
            yield {"a": 1}
        finally:
            raise ValueError("in cleanup")

    dispatcher = Dispatcher(plugin_with(executor_execute_stream=hook))
    reply = await within(dispatcher.dispatch("executor.execute_stream", ExecutorRequest(), logged(lines)))
    await within(anext(reply.items))
    await within(reply.items.aclose())
    assert [fields["error"] for _, _, fields in lines] == ["ValueError"]


@pytest.mark.parametrize("status", [199, 300, 429])
async def test_a_stream_with_another_status_than_success_is_an_error(status):
    async def hook(self):
        return Stream(items=None, status=status)

    with pytest.raises(PluginError, match="200 to 299"):
        await stream(hook)


async def test_a_streaming_hook_that_opens_no_stream_is_an_error():
    async def hook(self):
        return ExecutorResponse()

    with pytest.raises(PluginError, match=r"answered ExecutorResponse; it answers Stream"):
        await stream(hook)
