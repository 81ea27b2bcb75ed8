"""What plugins may ask of the host, whatever carries the question."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Raw
from structlog.testing import capture_logs

from host.errors import RequestError
from host.runtime.callback_kv import MAX_VALUE_BYTES, KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.invoke import Invoker
from host.runtime.scope import CallScope, NestedBudget, RequestScope
from host.state.memory import MemoryStore
from host.state.store import StateError
from host.tasks import TaskGroup
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.frames import Log, Usage
from pluginabi.limits import CALLBACK_MAX_INFLIGHT, MAX_NESTED_CALLS_PER_REQUEST, MAX_NESTING_DEPTH
from pluginabi.methods import HOST_METHODS, PERMISSION_OF_CALLBACK, PERMISSIONS
from pluginabi.payloads.callbacks import (
    AuthListRequest,
    HttpRequest,
    KvDeleteRequest,
    KvExpireRequest,
    KvGetRequest,
    KvGetResponse,
    KvIncrementRequest,
    KvSetRequest,
    ModelCallRequest,
    ModelCallResponse,
)
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import binding, new_callbacks, started

ALL = frozenset(PERMISSIONS)


class Items:
    """An `ItemStream` over a list; waits at its end when told to."""

    def __init__(self, *items: StreamItem, ends: Exception | None = None, hangs: bool = False) -> None:
        self.usage: Usage | None = None
        self.closed: list[str] = []
        self.done = asyncio.Event()
        self._items, self._ends, self._hangs = items, ends, hangs

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for item in self._items:
            yield item
        if self._hangs:
            await self.done.wait()
        if self._ends is not None:
            raise self._ends
        self.usage = Usage(output_tokens=3)

    async def aclose(self, reason: str = "client_gone") -> None:
        self.closed.append(reason)
        self.done.set()


class Models:
    """A `ModelRunner` that notes its calls."""

    def __init__(self, answer: Any = None, items: Items | None = None) -> None:
        self.answer = answer or ModelCallResponse(status=200)
        self.items = items
        self.scopes: list[CallScope] = []
        self.running = asyncio.Event()
        self.hold: asyncio.Event | None = None

    async def execute(self, params: ModelCallRequest, scope: CallScope) -> ModelCallResponse:
        self.scopes.append(scope)
        self.running.set()
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def execute_stream(self, params: ModelCallRequest, scope: CallScope) -> tuple[ModelCallResponse, Any]:
        return await self.execute(params, scope), self.items


@pytest.fixture
async def tasks():
    group = TaskGroup("test")
    yield group
    await group.stop()


@pytest.fixture
def callbacks(tasks: TaskGroup) -> HostCallbacks:
    return new_callbacks(tasks)


def scope(**fields: Any) -> CallScope:
    return CallScope(**{"plugin_id": "p", "method": "model.route", "permissions": ALL, **fields})


def refusal(caught: Any) -> tuple[str, int]:
    return caught.value.code, caught.value.http_status


# -- permissions and parents


@pytest.mark.parametrize("method", sorted(name for name in PERMISSION_OF_CALLBACK if ".auth." not in name))
async def test_every_callback_needs_its_permission_and_only_that(callbacks: HostCallbacks, method: str):
    needed = PERMISSION_OF_CALLBACK[method]
    opens = HOST_METHODS[method].stream
    refused = scope(permissions=ALL - {needed})
    look_up = callbacks.opening if opens else callbacks.unary
    with pytest.raises(PluginError) as caught:
        look_up(refused, method)
    assert refusal(caught) == ("permission_denied", 500)
    assert needed in caught.value.body.message
    assert callable(look_up(scope(permissions=frozenset({needed})), method))


@pytest.mark.parametrize("method", ["host.auth.list", "host.auth.get", "host.auth.get_runtime", "host.auth.save"])
async def test_H123_H124_auth_callbacks_say_honestly_that_they_are_not_available(callbacks: HostCallbacks, method: str):
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(), method, AuthListRequest())
    assert refusal(caught) == ("method_not_found", 500)
    assert "not available" in caught.value.body.message


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("host.nothing", "no method of the host"),
        ("host.http.do_stream", "opens a stream"),
        ("model.route", "no method of the host"),
    ],
)
async def test_a_method_that_cannot_be_called_this_way_is_refused_by_name(
    callbacks: HostCallbacks, method: str, words: str
):
    with pytest.raises(PluginError, match=words) as caught:
        await callbacks.call(scope(), method, KvGetRequest(key="k"))
    assert refusal(caught) == ("method_not_found", 500)


async def test_a_stream_of_a_method_without_streams_is_refused(callbacks: HostCallbacks):
    with pytest.raises(PluginError, match="without a stream"):
        await callbacks.open_stream(scope(), "host.http.do", HttpRequest())


async def test_a_finished_parent_gives_parent_closed(callbacks: HostCallbacks):
    parent = scope()
    parent.close()
    with pytest.raises(PluginError) as caught:
        await callbacks.call(parent, "host.kv.get", KvGetRequest(key="k"))
    assert refusal(caught) == ("parent_closed", 500)


async def test_without_a_parent_models_are_refused_and_the_store_is_not(callbacks: HostCallbacks):
    callbacks.models = Models()
    alone = scope(method="")
    with pytest.raises(PluginError) as caught:
        await callbacks.call(alone, "host.model.execute", ModelCallRequest())
    assert refusal(caught) == ("parent_closed", 500)
    assert await callbacks.call(alone, "host.kv.get", KvGetRequest(key="k")) == KvGetResponse()


async def test_a_permission_taken_back_binds_callbacks_without_a_parent_at_once(callbacks: HostCallbacks):
    callbacks.grants = {"p": frozenset({"http"})}
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(method=""), "host.kv.get", KvGetRequest(key="k"))
    assert caught.value.code == "permission_denied"


# -- deadlines and cancellation


class SlowStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.running = asyncio.Event()
        self.cancelled = False

    async def get(self, namespace: str, key: str) -> bytes | None:
        self.running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return None


@pytest.mark.parametrize(
    ("own_s", "parents_s"),
    [(0.02, None), (0.02, 60.0), (60.0, 0.02), (None, 0.02)],
    ids=["own", "own<", "parent<", "parent"],
)
async def test_a_callback_ends_at_the_smaller_of_its_own_and_its_parents_deadline(
    tasks: TaskGroup, within: Any, own_s: float | None, parents_s: float | None
):
    store = SlowStore()
    callbacks = new_callbacks(tasks, kv=KvCallbacks(store))
    parent = scope(deadline_s=None if parents_s is None else time.monotonic() + parents_s)
    with pytest.raises(PluginError) as caught:
        await within(callbacks.call(parent, "host.kv.get", KvGetRequest(key="k"), timeout_s=own_s))
    assert refusal(caught) == ("plugin_timeout", 504)
    assert store.cancelled


async def test_a_parent_that_closes_cancels_its_open_callbacks(tasks: TaskGroup, within: Any):
    store = SlowStore()
    callbacks = new_callbacks(tasks, kv=KvCallbacks(store))
    parent = scope()
    running = asyncio.ensure_future(callbacks.call(parent, "host.kv.get", KvGetRequest(key="k")))
    await within(store.running.wait())
    parent.close()
    with pytest.raises(PluginError) as caught:
        await within(running)
    assert caught.value.code == "parent_closed"
    assert store.cancelled


async def test_a_finished_callback_leaves_nothing_in_its_parent(callbacks: HostCallbacks):
    parent = scope()
    await callbacks.call(parent, "host.kv.get", KvGetRequest(key="k"))
    assert parent.on_close == []


async def test_cancelling_a_callback_is_no_error_of_it(tasks: TaskGroup, within: Any):
    store = SlowStore()
    running = asyncio.ensure_future(
        new_callbacks(tasks, kv=KvCallbacks(store)).call(scope(), "host.kv.get", KvGetRequest(key="k"))
    )
    await within(store.running.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)


# -- models


async def test_a_nested_call_is_one_deeper_without_its_caller_and_shares_the_budget():
    state, principal = object(), object()
    root = RequestScope(request_id="r1", state=state, principal=principal, skip=frozenset({"a"}))
    nested = scope(request=root).nested("r2")
    assert (nested.request_id, nested.parent_request_id, nested.depth) == ("r2", "r1", 1)
    assert nested.skip == {"a", "p"}
    assert nested.budget is root.budget
    assert (nested.state, nested.principal) == (state, principal)


async def test_a_nested_call_outside_of_a_request_begins_one_of_its_own():
    nested = scope(method="management.handle").nested("r2")
    assert (nested.parent_request_id, nested.depth, nested.skip) == (None, 1, {"p"})


async def test_a_model_is_run_under_the_calling_scope(callbacks: HostCallbacks):
    models = callbacks.models = Models(ModelCallResponse(status=201))
    parent = scope(request=RequestScope(request_id="r1"))
    assert await callbacks.call(parent, "host.model.execute", ModelCallRequest()) == ModelCallResponse(status=201)
    assert models.scopes == [parent]


async def test_nested_calls_stop_at_the_depth_limit(callbacks: HostCallbacks):
    callbacks.models = Models()
    for depth, allowed in ((MAX_NESTING_DEPTH - 1, True), (MAX_NESTING_DEPTH, False)):
        parent = scope(request=RequestScope(request_id="r1", depth=depth))
        if allowed:
            await callbacks.call(parent, "host.model.execute", ModelCallRequest())
        else:
            with pytest.raises(PluginError) as caught:
                await callbacks.call(parent, "host.model.execute", ModelCallRequest())
            assert refusal(caught) == ("depth_exceeded", 500)


async def test_one_client_request_has_64_nested_calls_at_all_depths_together(callbacks: HostCallbacks):
    callbacks.models = Models()
    root = RequestScope(request_id="r1")
    deeper = scope(request=root).nested("r2")
    for number in range(MAX_NESTED_CALLS_PER_REQUEST):
        parent = scope(request=root if number % 2 else deeper)
        await callbacks.call(parent, "host.model.execute", ModelCallRequest())
    assert root.budget == NestedBudget(remaining=0)
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(request=deeper), "host.model.execute", ModelCallRequest())
    assert caught.value.code == "depth_exceeded"


async def test_F8_a_plugin_has_its_own_budget_of_nested_calls_in_flight(callbacks: HostCallbacks, within: Any):
    models = callbacks.models = Models()
    models.hold = asyncio.Event()
    running = [
        asyncio.ensure_future(callbacks.call(scope(), "host.model.execute", ModelCallRequest()))
        for _ in range(CALLBACK_MAX_INFLIGHT)
    ]
    await asyncio.sleep(0)
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(), "host.model.execute", ModelCallRequest())
    assert refusal(caught) == ("plugin_overloaded", 503)
    assert caught.value.body.retry_after_ms is not None
    other = asyncio.ensure_future(callbacks.call(scope(plugin_id="q"), "host.model.execute", ModelCallRequest()))
    models.hold.set()
    await within(asyncio.gather(*running, other))
    await callbacks.call(scope(), "host.model.execute", ModelCallRequest())


FULL = ErrorBody(
    message="m",
    code="c",
    http_status=429,
    retryable=False,
    retry_after_ms=7,
    scope="credential",
    headers={"a": ["b"]},
    body=Body(text="t"),
    body_protocol="claude",
    origin="upstream",
    details={"k": 1},
)


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (PluginError(FULL), 429, "c"),
        (PluginTransportError("q", "executor.execute", phase="exit", cause="x"), 502, "plugin_crashed"),
        (RequestError(400, "unknown_model", "no such model"), 400, "unknown_model"),
    ],
)
async def test_the_error_of_a_nested_call_keeps_its_status(
    callbacks: HostCallbacks, raised: Exception, status: int, code: str
):
    callbacks.models = Models(raised)
    for serve in (callbacks.call, callbacks.open_stream):
        method = "host.model.execute" if serve == callbacks.call else "host.model.execute_stream"
        with pytest.raises(PluginError) as caught:
            await serve(scope(), method, ModelCallRequest())  # type: ignore[operator]
        assert (caught.value.http_status, caught.value.code) == (status, code)
        if raised is not None and isinstance(raised, PluginError):
            assert caught.value.body == FULL


async def test_H118_a_nested_stream_that_fails_to_open_leaves_nothing_behind(callbacks: HostCallbacks):
    callbacks.models = Models(PluginError("no", http_status=503))
    parent = scope()
    with pytest.raises(PluginError):
        await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
    assert parent.on_close == []
    assert callbacks._models_in_flight == {}


async def test_a_nested_stream_delivers_its_items_and_usage(callbacks: HostCallbacks):
    items = (StreamItem(body=Body(text="a")), StreamItem(body=Body(text="b")))
    callbacks.models = Models(items=Items(*items))
    parent = scope()
    result, stream = await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
    assert result == ModelCallResponse(status=200)
    assert [item async for item in stream] == list(items)
    assert stream.usage == Usage(output_tokens=3)
    assert parent.on_close == []
    assert callbacks._models_in_flight == {}


async def test_an_error_in_the_middle_of_a_nested_stream_keeps_its_status(callbacks: HostCallbacks):
    fault = PluginTransportError("q", "executor.execute_stream", phase="exit", cause="gone")
    callbacks.models = Models(items=Items(StreamItem(), ends=fault))
    _, stream = await callbacks.open_stream(scope(), "host.model.execute_stream", ModelCallRequest())
    with pytest.raises(PluginError) as caught:
        _ = [item async for item in stream]
    assert (caught.value.http_status, caught.value.code, caught.value.body.origin) == (502, "plugin_crashed", "host")


async def test_H116_a_parent_that_closes_closes_its_nested_stream(
    callbacks: HostCallbacks, tasks: TaskGroup, within: Any
):
    inner = Items(StreamItem(), hangs=True)
    callbacks.models = Models(items=inner)
    parent = scope()
    _, stream = await callbacks.open_stream(parent, "host.model.execute_stream", ModelCallRequest())
    iterator = aiter(stream)
    await anext(iterator)
    waiting = asyncio.ensure_future(anext(iterator))
    await asyncio.sleep(0)
    parent.close()
    with pytest.raises(PluginError) as caught:
        await within(waiting)
    assert caught.value.code == "parent_closed"
    assert inner.closed == ["parent_closed"]
    assert callbacks._models_in_flight == {}


# -- the store


async def test_values_are_scoped_to_the_plugin(callbacks: HostCallbacks):
    await callbacks.call(scope(), "host.kv.set", KvSetRequest(key="k", value=Raw(b'{"a": 1}')))
    mine: Any = await callbacks.call(scope(), "host.kv.get", KvGetRequest(key="k"))
    other: Any = await callbacks.call(scope(plugin_id="q"), "host.kv.get", KvGetRequest(key="k"))
    assert (mine.found, bytes(mine.value)) == (True, b'{"a": 1}')
    assert other == KvGetResponse()


async def test_the_store_answers_every_method(callbacks: HostCallbacks):
    async def ask(method: str, params: Any) -> Any:
        return await callbacks.call(scope(), method, params)

    assert (await ask("host.kv.increment", KvIncrementRequest(key="n", by=5))).value == 5
    stored = KvSetRequest(key="n", value=Raw(b"1"), only_if_absent=True)
    assert (await ask("host.kv.set", stored)).stored is False
    assert (await ask("host.kv.expire", KvExpireRequest(key="n", ttl_ms=60_000))).found is True
    assert (await ask("host.kv.expire", KvExpireRequest(key="x", ttl_ms=60_000))).found is False
    assert (await ask("host.kv.delete", KvDeleteRequest(key="n"))).deleted is True
    assert (await ask("host.kv.delete", KvDeleteRequest(key="n"))).deleted is False


async def test_a_value_with_line_breaks_fits_into_a_frame(callbacks: HostCallbacks):
    await callbacks.call(scope(), "host.kv.set", KvSetRequest(key="k", value=Raw(b'{\r\n"a": 1\n}')))
    found: Any = await callbacks.call(scope(), "host.kv.get", KvGetRequest(key="k"))
    assert b"\n" not in bytes(found.value) and b"\r" not in bytes(found.value)


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("host.kv.get", KvGetRequest(key=""), "kv_key_invalid"),
        ("host.kv.get", KvGetRequest(key="x" * 513), "kv_key_invalid"),
        ("host.kv.set", KvSetRequest(key="k", ttl_ms=0), "kv_ttl_invalid"),
        ("host.kv.set", KvSetRequest(key="k", value=Raw(b" " * (MAX_VALUE_BYTES + 1))), "kv_value_too_large"),
        ("host.kv.increment", KvIncrementRequest(key="text"), "kv_not_an_integer"),
    ],
)
async def test_a_refused_operation_is_an_error_and_never_a_miss(
    callbacks: HostCallbacks, method: str, params: Any, code: str
):
    await callbacks.call(scope(), "host.kv.set", KvSetRequest(key="text", value=Raw(b'"a"')))
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(), method, params)
    assert caught.value.code == code


async def test_a_failing_store_is_an_error_and_never_a_miss(tasks: TaskGroup):
    class Broken(MemoryStore):
        async def get(self, namespace: str, key: str) -> bytes | None:
            raise StateError("the server is away")

    with pytest.raises(PluginError) as caught:
        await new_callbacks(tasks, kv=KvCallbacks(Broken())).call(scope(), "host.kv.get", KvGetRequest(key="k"))
    assert refusal(caught) == ("kv_unavailable", 503)


# -- log


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("trace", "debug"),
        ("debug", "debug"),
        ("info", "info"),
        ("warn", "warning"),
        ("WARNING ", "warning"),
        ("error", "error"),
        ("fatal", "debug"),
    ],
)
async def test_H122_levels_are_understood(callbacks: HostCallbacks, level: str, logged: str):
    with capture_logs() as logs:
        callbacks.log("p", Log(level=level, event="x"), None)
    assert [line["log_level"] for line in logs] == [logged]


async def test_H122_a_log_line_belongs_to_its_plugin_and_request(callbacks: HostCallbacks):
    parent = scope(request=RequestScope(request_id="r1"))
    fields = {" a ": 1, "": 2, "request_id": "forged", "plugin_id": "forged", "event": "e", "exc_info": True, "_x": 1}
    with capture_logs() as logs:
        callbacks.log("p", Log(level="info", event=" ", fields=fields), parent)
    (line,) = logs
    assert (line["event"], line["plugin_id"], line["request_id"], line["a"]) == ("plugin log", "p", "r1", 1)
    assert line["plugin_request_id"] == "forged"
    assert "exc_info" not in line and "_x" not in line and "" not in line


async def test_a_log_line_is_bounded(callbacks: HostCallbacks):
    fields: dict[str, Any] = {f"f{number}": "x" * 100_000 for number in range(1000)}
    with capture_logs() as logs:
        callbacks.log("p", Log(level="info", event="y" * 100_000, fields=fields), None)
    assert sum(len(str(value)) for value in logs[0].values()) < 1_000_000


# -- the in-process way


CALLER = """
class P(Plugin):
    async def model_route(self, request, ctx):
        return await getattr(self, self.config["do"])(ctx)
    async def kv(self, ctx):
        return ModelRouteResponse(reason=str(await ctx.kv.increment("n")))
    async def late(self, ctx):
        self.ctx = ctx
    async def spawned(self, ctx):
        self.task = asyncio.ensure_future(ctx.kv.get("n"))
        await asyncio.sleep(0)
    async def log(self, ctx):
        ctx.log.warning("hello", a=1)
"""


async def ask(tmp_path: Any, do: str, tasks: TaskGroup, *, store: MemoryStore | None = None, **fields: Any) -> Any:
    callbacks = new_callbacks(tasks, kv=KvCallbacks(store or MemoryStore()))
    async with started(tmp_path, CALLER, config={"do": do}, callbacks=callbacks) as plugin:
        wanted = binding(plugin, "model.route", **{"on_error": "fail", **fields})
        request = RequestScope(request_id="r1")
        answer = await Invoker().call(wanted, lambda _: ModelRouteRequest(), request)
        assert plugin._dispatcher is not None
        return answer, plugin._dispatcher.plugin


async def test_an_in_process_plugin_calls_back_in_its_own_task(tmp_path: Any, tasks: TaskGroup):
    answer, _ = await ask(tmp_path, "kv", tasks, permissions=frozenset({"kv"}))
    assert answer.value.reason == "1"


async def test_an_in_process_plugin_needs_permissions_too(tmp_path: Any, tasks: TaskGroup):
    with pytest.raises(PluginError) as caught:
        await ask(tmp_path, "kv", tasks)
    assert (caught.value.code, caught.value.http_status) == ("permission_denied", 500)


async def test_a_context_kept_beyond_its_call_is_closed(tmp_path: Any, tasks: TaskGroup):
    _, author = await ask(tmp_path, "late", tasks, permissions=frozenset({"kv"}))
    with pytest.raises(PluginError) as caught:
        await author.ctx.kv.get("n")
    assert caught.value.code == "parent_closed"


async def test_a_callback_of_a_task_the_plugin_started_ends_with_the_call(tmp_path: Any, tasks: TaskGroup, within: Any):
    _, author = await ask(tmp_path, "spawned", tasks, store=SlowStore(), permissions=frozenset({"kv"}))
    with pytest.raises(PluginError) as caught:
        await within(author.task)
    assert caught.value.code == "parent_closed"


async def test_an_in_process_log_line_belongs_to_its_plugin_and_request(tmp_path: Any, tasks: TaskGroup):
    with capture_logs() as logs:
        await ask(tmp_path, "log", tasks)
    (line,) = [line for line in logs if line["event"] == "hello"]
    assert (line["plugin_id"], line["request_id"], line["log_level"], line["a"]) == ("p", "r1", "warning", 1)
