"""One plugin class that answers in every way there is, and the carriers it is tried in."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from host.config.model import Config, PluginPolicy
from host.runtime.handle import Reply
from host.runtime.invoke import Answer
from host.runtime.scope import RequestScope
from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from pluginabi.payloads.executor import ExecutorRequest
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import Bench

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
        policy = PluginPolicy(runtime=runtime, permissions=permissions, http_hosts=("127.0.0.1",))
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
        self, what: str, *, request: RequestScope | None = None, timeout_s: float = 60.0, **fields: Any
    ) -> Any:
        """One call of `model.route`, raising what it raises."""
        params = ModelRouteRequest(requested_model=what, **fields)
        return (await self.call("model.route", params, request, timeout_s)).value

    async def call(
        self, method: str, params: Any, request: RequestScope | None = None, timeout_s: float = 60.0
    ) -> Answer:
        binding = replace(self.binding(method), on_error="fail")
        return await self.bench.invoker.call(binding, lambda _: params, request, timeout_s=timeout_s)

    async def stream(self, what: str) -> Reply:
        return await self.bench.invoker.stream(
            self.binding("executor.execute_stream"), lambda _: ExecutorRequest(model=what), None
        )


def plain(body: ErrorBody, **changes: Any) -> dict[str, Any]:
    """An error with its sequences as lists, to be compared across carriers."""
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    fields["headers"] = {name: list(values) for name, values in body.headers.items()}
    fields["body"] = body.body.value() if body.body else None
    return {**fields, "details": dict(body.details), **changes}
