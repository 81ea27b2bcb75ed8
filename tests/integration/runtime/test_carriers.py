"""The same plugin class in every carrier: nobody above the runtime can tell them apart."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from host.config.model import Config, PluginPolicy
from host.runtime.handle import PluginState, Reply
from host.runtime.invoke import Answer
from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTimeout, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.callbacks import ModelCallRequest, ModelCallResponse
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptRequest
from pluginabi.payloads.routing import ModelRouteRequest
from pluginabi.payloads.thinking import ThinkingApplyRequest
from tests.support.runtime import Bench
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answering
from tests.support.upstream_servers import answer as http_answer

CODE = """
import json
import helpers

def full_error(origin=None):
    return PluginError(ErrorBody(
        message="quota", code="rate_limited", http_status=429, retryable=True, retry_after_ms=1500, scope="model",
        headers={"x-quota": ["0"]}, body=Body.from_bytes(b'{"a":1}'), body_protocol="openai", origin=origin,
        details={"k": [1]}))


class P(Plugin):
    async def plugin_register(self, request):
        return RegisterResponse(providers=[helpers.PROVIDER])

    async def plugin_reconfigure(self, request):
        if request.config.get("refuse"):
            raise PluginError("not this", http_status=400)
        return RegisterResponse(providers=[request.config.get("provider", "changed")])

    async def model_route(self, request, ctx):
        return await getattr(self, "do_" + request.requested_model)(request, ctx)

    async def do_config(self, request, ctx):
        return ModelRouteResponse(reason=json.dumps(dict(self.config)))

    async def do_context(self, request, ctx):
        facts = [ctx.plugin_id, ctx.request_id, sorted(ctx.permissions), ctx.remaining_s() is not None]
        return ModelRouteResponse(reason=json.dumps(facts))

    async def do_nothing(self, request, ctx):
        return None

    async def do_fail(self, request, ctx):
        raise full_error()

    async def do_fail_upstream(self, request, ctx):
        raise full_error("upstream")

    async def do_bug(self, request, ctx):
        raise ZeroDivisionError("secret")

    async def do_hang(self, request, ctx):
        await asyncio.Event().wait()

    async def do_hang_noting_cancel(self, request, ctx):
        try:
            await ctx.kv.set("started", True)
            await asyncio.Event().wait()
        finally:
            self.cancelled = True

    async def do_was_cancelled(self, request, ctx):
        return ModelRouteResponse(reason=str(getattr(self, "cancelled", False)))

    async def do_count(self, request, ctx):
        return ModelRouteResponse(reason=str(await ctx.kv.increment("n")))

    async def do_kv(self, request, ctx):
        value = {"a": [1, "ä", None]}
        facts = [
            await ctx.kv.get("k"), await ctx.kv.set("k", value), await ctx.kv.set("k", 1, only_if_absent=True),
            await ctx.kv.get("k") == value, await ctx.kv.expire("k", 60000), await ctx.kv.delete("k"),
            await ctx.kv.delete("k"), await ctx.kv.increment("i", 2), await ctx.kv.increment("i"),
        ]
        return ModelRouteResponse(reason=json.dumps(facts))

    async def do_forbidden(self, request, ctx):
        await ctx.kv.get("k")

    async def do_auth(self, request, ctx):
        await ctx.auth.list()

    async def do_log(self, request, ctx):
        ctx.log.warning("hello", a=1)

    async def do_http(self, request, ctx):
        found = await ctx.http.do("POST", request.metadata["url"], headers={"x": "1"}, body=b"ping")
        return ModelRouteResponse(reason=json.dumps([found.status, found.body.to_bytes().decode(), found.headers["y"]]))

    async def do_http_stream(self, request, ctx):
        async with ctx.http.stream("GET", request.metadata["url"]) as found:
            parts = [part async for part in found]
        return ModelRouteResponse(reason=b"".join(parts).decode())

    async def do_http_hang(self, request, ctx):
        await ctx.http.do("GET", request.metadata["url"])

    async def do_model(self, request, ctx):
        found = await ctx.model.execute("m", {"x": 1})
        return ModelRouteResponse(reason=found.body.to_bytes().decode())

    async def do_model_stream(self, request, ctx):
        async with ctx.model.stream("m", {"x": 1}) as found:
            parts = [item.body.to_bytes().decode() async for item in found]
            return ModelRouteResponse(reason=json.dumps([parts, found.usage.output_tokens]))

    async def request_intercept_before(self, request, ctx):
        seen = request.body.value()
        return RequestInterceptResponse(headers={"x-seen": [json.dumps(seen)]}, body=Body.from_value({"seen": seen}))

    async def executor_execute(self, request, ctx):
        return Reply(ExecutorResponse(headers={"a": ["b"]}, body=request.body), usage=Usage(input_tokens=7))

    async def executor_execute_stream(self, request, ctx):
        what = request.model
        if what == "refused":
            raise full_error()
        yield {"n": 1}
        yield ("named", {"n": 2})
        yield None
        if what == "broken":
            yield Usage(output_tokens=1)
            raise full_error()
        if what == "silent":
            await asyncio.Event().wait()
        if what == "many":
            for number in range(2000):
                yield {"n": number, "pad": "x" * 100}
        yield Usage(output_tokens=5)
"""

FULL = ErrorBody(
    message="quota",
    code="rate_limited",
    http_status=429,
    retryable=True,
    retry_after_ms=1500,
    scope="model",
    headers={"x-quota": ["0"]},
    body=Body.from_bytes(b'{"a":1}'),
    body_protocol="openai",
    origin="plugin",
    details={"k": [1]},
)
ALL = ("kv", "http", "model", "auth.read")
CARRIERS = {
    "inprocess": ('runtime = "inprocess"', "inprocess"),
    "json": ('runtime = "process"', "process"),
    "unix": ('runtime = "process"\ntransport = "unix"', "process"),
    "grpc": ('runtime = "process"\nprotocol = "grpc"', "process"),
}
Within = Callable[[Awaitable[Any]], Awaitable[Any]]


@dataclass
class Stage:
    """The plugin in one carrier."""

    bench: Bench
    carrier: str

    def config(self, section: Any = None, permissions: tuple[str, ...] = ALL) -> Config:
        runtime: Any = CARRIERS[self.carrier][1]
        policy = PluginPolicy(runtime=runtime, permissions=permissions)
        return self.bench.config(p=section or {}, policies={"p": policy})

    async def apply(self, section: Any = None, **fields: Any) -> None:
        await self.bench.registry.apply(self.config(section, **fields))
        status = self.bench.status("p")
        assert status.state == "ready", status

    def binding(self, method: str) -> Any:
        found = self.bench.registry.snapshot.binding("p", method)
        assert found is not None
        return found

    async def do(
        self, what: str, *, request: RequestScope | None = None, timeout_s: float = 10.0, **fields: Any
    ) -> Any:
        """One call of `model.route`, raising what it raises."""
        params = ModelRouteRequest(requested_model=what, **fields)
        return (await self.call("model.route", params, request, timeout_s)).value

    async def call(
        self, method: str, params: Any, request: RequestScope | None = None, timeout_s: float = 10.0
    ) -> Answer:
        binding = replace(self.binding(method), on_error="fail")
        return await self.bench.invoker.call(binding, lambda _: params, request, timeout_s=timeout_s)

    async def stream(self, what: str) -> Reply:
        return await self.bench.invoker.stream(
            self.binding("executor.execute_stream"), lambda _: ExecutorRequest(model=what), None
        )


@pytest.fixture(params=list(CARRIERS))
async def plugin(request: pytest.FixtureRequest, stage: Bench) -> AsyncIterator[Stage]:
    lines = CARRIERS[request.param][0]
    permissions = "permissions = [" + ", ".join(f'"{name}"' for name in ALL) + "]"
    stage.inprocess_plugin(
        "p", CODE, manifest=f'{lines}\nentry = "plugin:P"\n{permissions}\n', helpers="PROVIDER = 'from-helpers'\n"
    )
    made = Stage(stage, request.param)
    await made.apply({"a": {"b": [1, "x"]}})
    yield made


# -- registration


async def test_it_registers_with_its_config_and_its_own_files(plugin: Stage):
    view = plugin.bench.registry.snapshot.plugins["p"]
    assert view.providers == ("from-helpers",)
    assert "executor.execute_stream" in view.capabilities


async def test_a_changed_config_reaches_the_running_plugin(plugin: Stage):
    handle = plugin.binding("model.route").handle
    await plugin.apply({"provider": "two"})
    assert plugin.binding("model.route").handle is handle
    assert (await plugin.do("config")).reason == '{"provider": "two"}'
    assert plugin.bench.registry.snapshot.plugins["p"].providers == ("two",)


async def test_a_refused_config_keeps_the_last_good_one(plugin: Stage):
    before = (await plugin.do("config")).reason
    await plugin.bench.registry.apply(plugin.config({"refuse": True}))
    assert "not this" in plugin.bench.status("p").reason
    assert (await plugin.do("config")).reason == before
    assert plugin.bench.registry.snapshot.plugins["p"].providers == ("from-helpers",)


async def test_it_knows_whose_call_it_serves(plugin: Stage):
    found = await plugin.do("context", request=RequestScope(request_id="r7"), request_id="r7")
    assert found.reason == '["p", "r7", ["auth.read", "http", "kv", "model"], true]'


# -- answers and errors


async def test_nothing_is_the_empty_answer(plugin: Stage):
    assert (await plugin.do("nothing")).target_kind == ""


async def test_bodies_go_in_and_out(plugin: Stage):
    body = Body.from_bytes(b'{"a": [1, 2.50, "\\u00e4\xc3\xa4"]}')
    answer = await plugin.call("request.intercept_before", RequestInterceptRequest(body=body))
    assert answer.value.body.value() == {"seen": {"a": [1, 2.5, "ää"]}}


async def test_usage_comes_with_the_answer(plugin: Stage):
    answer = await plugin.call("executor.execute", ExecutorRequest(body=Body.from_bytes(b'{"q":1}')))
    assert answer.usage == Usage(input_tokens=7)
    assert isinstance(answer.value, ExecutorResponse)
    assert (answer.value.status, list(answer.value.headers["a"])) == (200, ["b"])
    assert isinstance(answer.value.body, Body) and answer.value.body.value() == {"q": 1}


@pytest.mark.parametrize(("what", "origin"), [("fail", "plugin"), ("fail_upstream", "upstream")])
async def test_an_error_survives_bit_by_bit(plugin: Stage, what: str, origin: str):
    with pytest.raises(PluginError) as caught:
        await plugin.do(what)
    assert plain(caught.value.body) == plain(FULL, origin=origin)


async def test_a_bug_is_a_500_without_details_and_the_plugin_goes_on(plugin: Stage):
    with pytest.raises(PluginError) as caught:
        await plugin.do("bug")
    assert (caught.value.http_status, caught.value.code, caught.value.body.origin) == (500, "plugin_error", "plugin")
    assert "secret" not in caught.value.body.message
    assert (await plugin.do("nothing")).target_kind == ""


async def test_a_deadline_is_a_504_and_the_plugin_goes_on(plugin: Stage, within: Within):
    with pytest.raises(PluginTimeout) as caught:
        await within(plugin.do("hang", timeout_s=0.05))
    assert (caught.value.http_status, caught.value.code, caught.value.timeout_ms) == (504, "plugin_timeout", 50)
    assert (await plugin.do("nothing")).target_kind == ""


async def test_a_cancelled_call_is_cancelled_in_the_plugin(plugin: Stage, within: Within):
    started = asyncio.Event()
    original = plugin.bench.store.set

    async def noting(*args: Any, **kwargs: Any) -> bool:
        started.set()
        return await original(*args, **kwargs)

    plugin.bench.store.set = noting  # type: ignore[method-assign]
    running = asyncio.ensure_future(plugin.do("hang_noting_cancel"))
    await within(started.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    async with asyncio.timeout(10):
        while (await plugin.do("was_cancelled")).reason != "True":
            pass


async def test_a_missing_hook_is_method_not_found(plugin: Stage):
    handle = plugin.binding("model.route").handle
    scope = CallScope(plugin_id="p", method="thinking.apply")
    with pytest.raises(PluginError) as caught:
        await handle.call("thinking.apply", ThinkingApplyRequest(), scope=scope, timeout_s=5.0)
    assert (caught.value.http_status, caught.value.code) == (500, "method_not_found")


# -- streams


async def test_a_stream_arrives_whole_and_in_order(plugin: Stage, within: Within):
    reply = await plugin.stream("many")
    items = await within(collect(reply))
    numbers = [item.body.value()["n"] for item in items if item.body]
    assert numbers == [1, 2, *range(2000)]
    assert [item.event for item in items[:2]] == [None, "named"]
    assert items[2].is_progress
    assert reply.items.usage == Usage(output_tokens=5)


async def test_a_stream_that_is_refused_keeps_the_error(plugin: Stage):
    with pytest.raises(PluginError) as caught:
        await plugin.stream("refused")
    assert plain(caught.value.body) == plain(FULL)


async def test_an_error_in_the_middle_of_a_stream_keeps_every_field_and_the_usage(plugin: Stage, within: Within):
    reply = await plugin.stream("broken")
    got: list[StreamItem] = []
    with pytest.raises(PluginError) as caught:
        await within(collect(reply, got))
    assert len(got) == 3
    assert plain(caught.value.body) == plain(FULL)
    assert reply.items.usage == Usage(output_tokens=1)


async def test_a_closed_stream_leaves_the_plugin_ready(plugin: Stage, within: Within):
    reply = await plugin.stream("silent")
    await within(anext(aiter(reply.items)))
    await within(reply.items.aclose())
    assert (await plugin.do("nothing")).target_kind == ""


# -- callbacks


async def test_the_store_works(plugin: Stage):
    assert (await plugin.do("kv")).reason == "[null, true, false, true, true, true, false, 2, 3]"


async def test_a_callback_without_permission_is_refused_with_its_code(plugin: Stage):
    await plugin.apply(permissions=())
    with pytest.raises(PluginError) as caught:
        await plugin.do("forbidden")
    assert (caught.value.http_status, caught.value.code) == (500, "permission_denied")


async def test_a_callback_that_does_not_exist_yet_says_so(plugin: Stage):
    with pytest.raises(PluginError) as caught:
        await plugin.do("auth")
    assert (caught.value.http_status, caught.value.code) == (500, "method_not_found")
    assert "not available" in caught.value.body.message


async def test_H122_log_lines_carry_plugin_and_request(plugin: Stage, within: Within):
    with capture_logs() as logs:
        await plugin.do("log", request=RequestScope(request_id="r9"))
        async with asyncio.timeout(10):
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
    left = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.closed_by_peer()
        left.set()

    async with ScriptedServer(script) as server:
        with pytest.raises(PluginTransportError) as caught:
            await within(plugin.do("http_hang", metadata={"url": server.url}, timeout_s=0.2))
        assert caught.value.code == "plugin_timeout"
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


# -- life


async def test_no_call_is_lost_while_the_plugin_is_reloaded_under_load(plugin: Stage, within: Within):
    stop = asyncio.Event()
    served = 0

    async def client() -> None:
        nonlocal served
        while not stop.is_set():
            await plugin.do("count")
            served += 1
            # In the host a call that never waits gives nobody else a turn.
            await asyncio.sleep(0)

    clients = [asyncio.ensure_future(client()) for _ in range(4)]
    try:
        for _ in range(2):
            before = served
            outcome = await within(plugin.bench.registry.reload("p"))
            assert "is loaded" in outcome
            async with asyncio.timeout(10):
                while served < before + 20:
                    await asyncio.wait(clients, timeout=0.01, return_when="FIRST_COMPLETED")
                    assert not any(task.done() for task in clients)
    finally:
        stop.set()
    await within(asyncio.gather(*clients))
    assert int((await plugin.do("count")).reason) == served + 1


async def test_a_stopped_plugin_is_unavailable(plugin: Stage):
    binding = plugin.binding("model.route")
    await plugin.bench.registry.stop()
    scope = CallScope(plugin_id="p", method="model.route")
    with pytest.raises(PluginTransportError) as caught:
        await binding.handle.call("model.route", ModelRouteRequest(), scope=scope, timeout_s=5.0)
    assert (caught.value.http_status, caught.value.code) == (502, "plugin_unavailable")
    assert binding.handle.state is PluginState.STOPPED


async def collect(reply: Reply, into: list[StreamItem] | None = None) -> list[StreamItem]:
    items = into if into is not None else []
    async for item in reply.items:
        items.append(item)
    return items


def plain(body: ErrorBody, **changes: Any) -> dict[str, Any]:
    """An error with its sequences as lists, to be compared across carriers."""
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    fields["headers"] = {name: list(values) for name, values in body.headers.items()}
    fields["body"] = body.body.value() if body.body else None
    return {**fields, "details": dict(body.details), **changes}
