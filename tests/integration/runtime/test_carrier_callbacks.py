"""Callbacks of the same plugin class in every carrier."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.callbacks import ModelCallRequest, ModelCallResponse
from tests.support.carriers import FULL, Stage, Within, plain
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answering
from tests.support.upstream_servers import answer as http_answer


async def test_the_store_works(plugin: Stage):
    assert (await plugin.do("kv")).reason == "[null, true, false, true, true, true, false, 2, 3]"


async def test_a_callback_without_permission_is_refused_with_its_code(plugin: Stage):
    await plugin.apply(permissions=())
    with pytest.raises(PluginError) as caught:
        await plugin.do("forbidden")
    assert (caught.value.http_status, caught.value.code) == (500, "permission_denied")


async def test_a_callback_that_nothing_in_this_host_serves_says_so(plugin: Stage):
    with pytest.raises(PluginError) as caught:
        await plugin.do("auth")
    assert (caught.value.http_status, caught.value.code) == (503, "auth_unavailable")
    assert "unavailable" in caught.value.body.message


async def test_H122_log_lines_carry_plugin_and_request(plugin: Stage, within: Within):
    with capture_logs() as logs:
        await plugin.do("log", request=RequestScope(request_id="r9"))
        async with asyncio.timeout(60):
            while not any(line["event"] == "hello" for line in logs):
                await plugin.do("nothing")
    (line,) = [line for line in logs if line["event"] == "hello"]
    assert (line["plugin_id"], line["log_level"], line["a"]) == ("p", "warning", 1)
    assert line["request_id"] == "r9"


async def test_H121_http_whole_and_streamed(plugin: Stage):
    async with ScriptedServer(answering(http_answer(b"pong", headers="Y: 2\r\n"))) as server:
        found = await plugin.do("http", metadata={"url": server.url})
    assert found.reason == '[200, "pong", ["2"]]'
    chunks = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n3\r\n:1}\r\n1\r\n\n\r\n0\r\n\r\n'
    async with ScriptedServer(answering(chunks)) as server:
        found = await plugin.do("http_stream", metadata={"url": server.url})
    assert found.reason == '{"a":1}\n'


async def test_a_failed_transfer_keeps_its_status_through_the_plugin(plugin: Stage):
    async with ScriptedServer(answering()) as server:
        url = server.url
    with pytest.raises(PluginError) as caught:
        await plugin.do("http", metadata={"url": url})
    assert (caught.value.http_status, caught.value.code) == (502, "upstream_unreachable")


async def test_the_deadline_of_the_call_ends_its_callbacks(plugin: Stage, within: Within):
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        arrived.set()
        await connection.closed_by_peer()
        left.set()

    async with ScriptedServer(script) as server:
        for timeout_s in (0.2, 0.6, 2.0, 6.0, 20.0):  # more where it takes longer to get there
            with pytest.raises(PluginTransportError) as caught:
                await within(plugin.do("http_hang", metadata={"url": server.url}, timeout_s=timeout_s))
            assert caught.value.code == "plugin_timeout"
            if arrived.is_set():
                break
        await within(left.wait())


class Models:
    """A pipeline that answers with the scope it was asked under."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.scopes: list[CallScope] = []

    async def execute(self, params: ModelCallRequest, scope: CallScope) -> ModelCallResponse:
        self.scopes.append(scope)
        if self.error is not None:
            raise self.error
        return ModelCallResponse(status=200, body=params.body)

    async def execute_stream(self, params: ModelCallRequest, scope: CallScope) -> Any:
        result = await self.execute(params, scope)
        return ModelCallResponse(status=result.status), NestedItems(self.error)


class NestedItems:
    def __init__(self, error: Exception | None) -> None:
        self.usage: Usage | None = None

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for number in range(3):
            yield StreamItem(body=Body.from_value(number))
        self.usage = Usage(output_tokens=3)

    async def aclose(self, reason: str = "client_gone") -> None: ...


async def test_a_nested_model_call_runs_under_the_requests_scope(plugin: Stage):
    models = plugin.bench.callbacks.models = Models()
    root = RequestScope(request_id="r1")
    assert (await plugin.do("model", request=root)).reason == '{"x":1}'
    assert models.scopes[0].request is root
    assert models.scopes[0].plugin_id == "p"


async def test_a_nested_stream_arrives_with_its_usage(plugin: Stage):
    plugin.bench.callbacks.models = Models()
    assert (await plugin.do("model_stream", request=RequestScope(request_id="r1"))).reason == '[["0", "1", "2"], 3]'


@pytest.mark.parametrize("what", ["model", "model_stream"])
async def test_the_error_of_a_nested_call_survives_both_ways(plugin: Stage, what: str):
    plugin.bench.callbacks.models = Models(PluginError(FULL))
    with pytest.raises(PluginError) as caught:
        await plugin.do(what, request=RequestScope(request_id="r1"))
    assert plain(caught.value.body) == plain(FULL)
