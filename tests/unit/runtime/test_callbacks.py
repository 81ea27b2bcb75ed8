"""What plugins may ask of the host, whatever carries the question."""

import asyncio
import time
from typing import Any

import pytest
from msgspec import Raw
from structlog.testing import capture_logs

from host.runtime.callback_kv import MAX_VALUE_BYTES, KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.invoke import Invoker
from host.runtime.scope import RequestScope
from host.state.memory import MemoryStore
from host.state.store import StateError
from host.tasks import TaskGroup
from pluginabi.errors import PluginError
from pluginabi.frames import Log
from pluginabi.methods import HOST_METHODS, PERMISSION_OF_CALLBACK
from pluginabi.payloads.callbacks import (
    HttpRequest,
    KvDeleteRequest,
    KvExpireRequest,
    KvGetRequest,
    KvGetResponse,
    KvIncrementRequest,
    KvSetRequest,
    ModelCallRequest,
)
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.callbacks import ALL, Models, refusal, scope
from tests.support.runtime import binding, new_callbacks, started

# -- permissions and parents


@pytest.mark.parametrize("method", sorted(PERMISSION_OF_CALLBACK))
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
