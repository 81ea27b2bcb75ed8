"""A gateway over scripted plugins: no process, no socket, the real invoker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry
from host.observe.trace import DecisionTrace
from host.pipeline.execute import Gateway
from host.pipeline.request import ClientRequest, Operation, Principal
from host.pipeline.settle import Completed
from host.pipeline.state import build_state
from host.runtime.handle import Binding, PluginSnapshot, PluginState, PluginView, Reply
from host.runtime.invoke import Invoker
from host.runtime.projection import parse_inputs
from host.runtime.scope import CallScope
from host.tasks import TaskGroup
from pluginabi.body import Body, StreamItem
from pluginabi.frames import Usage
from pluginabi.immutable import freeze_headers
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration

Handler = Callable[[Any], Awaitable[Any] | Any]
EVENT_WAIT_S = 20.0


class FakeItems:
    """An `ItemStream` over a script: items, exceptions to raise, and events to wait for."""

    def __init__(self, script: Sequence[Any], *, usage: Usage | None = None) -> None:
        self.usage: Usage | None = None
        self.closed: list[str] = []
        self.taken = 0
        self._script = list(script)
        self._usage = usage

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for step in self._script:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            self.taken += 1
            yield as_item(step)
        self.usage = self._usage

    async def aclose(self, reason: str = "client_gone") -> None:
        self.closed.append(reason)


def as_item(step: Any) -> StreamItem:
    """bytes are raw, dicts are events, items stay."""
    if isinstance(step, StreamItem):
        return step
    if isinstance(step, bytes):
        return StreamItem(raw=Body.exact(step))
    return StreamItem(event=step.get("type"), body=Body.from_value(step))


class FakeHandle:
    """A `PluginHandle` that answers from a table of functions; remembers every call."""

    def __init__(self, plugin_id: str, hooks: Mapping[str, Handler]) -> None:
        self.plugin_id = plugin_id
        self.state = PluginState.READY
        self.hooks = dict(hooks)
        self.calls: list[tuple[str, Any]] = []
        self.scopes: list[CallScope] = []

    async def call(
        self, method: str, params: Any, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        self.calls.append((method, params))
        self.scopes.append(scope)
        answer = self.hooks[method](params)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Reply):
            return answer
        if isinstance(answer, FakeItems):
            return Reply(result=ExecutorResponse(), items=answer)
        if answer is None:
            answer = PLUGIN_METHODS[method].response()
        return Reply(result=answer)

    def seen(self, method: str) -> list[Any]:
        """The requests of one method, in order."""
        return [params for name, params in self.calls if name == method]


@dataclass(kw_only=True)
class FakePlugin:
    """A plugin for the snapshot: hooks by method name, and what it registered."""

    id: str
    hooks: Mapping[str, Handler]
    priority: int = 0
    providers: Sequence[str] = ()
    models: Sequence[Any] = ()
    executor: ExecutorRegistration | None = None
    frontend_auth: Any = None
    thinking_provider: str | None = None
    auth_provider: str = ""
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on_error: Mapping[str, str] = field(default_factory=dict)
    permissions: frozenset[str] = frozenset()
    handle: FakeHandle = field(init=False)

    def __post_init__(self) -> None:
        self.handle = FakeHandle(self.id, self.hooks)

    def seen(self, method: str) -> list[Any]:
        return self.handle.seen(method)


def snapshot(*plugins: FakePlugin) -> PluginSnapshot:
    """The plugins in priority order."""
    ordered = sorted(plugins, key=lambda plugin: (-plugin.priority, plugin.id))
    bindings: dict[str, list[Binding]] = {}
    for plugin in ordered:
        for method in plugin.hooks:
            spec = PLUGIN_METHODS[method]
            bindings.setdefault(method, []).append(
                Binding(
                    plugin_id=plugin.id,
                    method=method,
                    priority=plugin.priority,
                    handle=plugin.handle,
                    on_error=plugin.on_error.get(method, spec.on_error),  # type: ignore[arg-type]
                    timeout_s=EVENT_WAIT_S,
                    inputs=parse_inputs(plugin.inputs.get(method, spec.inputs)),
                    permissions=plugin.permissions,
                )
            )
    views = {
        plugin.id: PluginView(
            plugin_id=plugin.id,
            version="1",
            priority=plugin.priority,
            handle=plugin.handle,
            capabilities=frozenset(plugin.hooks),
            providers=tuple(plugin.providers),
            executor=plugin.executor,
            frontend_auth=plugin.frontend_auth,
            thinking_provider=plugin.thinking_provider,
            auth_provider=plugin.auth_provider,
            models=tuple(plugin.models),
        )
        for plugin in ordered
    }
    return PluginSnapshot(bindings={name: tuple(found) for name, found in bindings.items()}, plugins=views)


class Clock:
    """A monotonic clock that tests turn by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A gateway, and everything around it that a test looks at."""

    gateway: Gateway
    tasks: TaskGroup
    trace: DecisionTrace
    clock: Clock
    completed: list[Completed]
    slept_s: list[float]
    """The waits between rounds; they turn the clock and take no time."""

    async def settled(self) -> None:
        """Wait until background hooks are done."""
        async with asyncio.timeout(EVENT_WAIT_S):
            await self.tasks.join()

    def decisions(self, kind: str, request_id: str = "r1") -> list[Mapping[str, Any]]:
        trace = self.trace.get(request_id)
        assert trace is not None
        return [decision.fields for decision in trace.decisions if decision.kind == kind]


def world(*plugins: FakePlugin, config: Config | None = None) -> World:
    """A gateway over `plugins`; without a config: one OpenAI-compatible provider `acme` with model `m`, one key."""
    clock, completed, trace, tasks = Clock(), [], DecisionTrace(), TaskGroup("test")
    state = build_state(config or compat_config(), snapshot(*plugins), clock=clock)
    gateway = Gateway(invoker=Invoker(), state=state, tasks=tasks, trace=trace, observe=completed.append)
    slept_s: list[float] = []

    async def sleep(wait_s: float) -> None:
        slept_s.append(wait_s)
        clock.now_s += wait_s

    state.pool.health.sleep = sleep
    return World(gateway, tasks, trace, clock, completed, slept_s)


def compat_config(*, keys: Sequence[str] = ("k1",), models: Sequence[str] = ("m",), **fields: Any) -> Config:
    """A configuration with provider `acme`."""
    provider = CompatProvider(
        name="acme",
        base_url="https://acme.test/v1",
        api_key_entries=[CompatKey(api_key=key) for key in keys],
        models=[ModelEntry(name=model) for model in models],
        responses=True,
    )
    return Config(openai_compatibility=[provider], **fields)


def executor(
    execute: Handler | None = None, stream: Handler | None = None, count: Handler | None = None, **fields: Any
) -> FakePlugin:
    """The plugin that executes every OpenAI-compatible provider."""
    hooks = {
        "executor.execute": execute,
        "executor.execute_stream": stream,
        "executor.count_tokens": count,
    }
    settings: dict[str, Any] = {"id": "upstream", "providers": ["openai-compatible-*"]} | fields
    return FakePlugin(hooks={name: hook for name, hook in hooks.items() if hook is not None}, **settings)


def answering(document: Any = None, **fields: Any) -> Handler:
    """An executor that answers a JSON document."""
    body = Body.from_value({"id": "x"} if document is None else document)
    return lambda _: ExecutorResponse(body=body, **fields)


def streaming(*script: Any, usage: Usage | None = None, headers: Mapping[str, Sequence[str]] | None = None) -> Handler:
    """An executor that streams a script."""
    return lambda _: Reply(result=ExecutorResponse(headers=headers or {}), items=FakeItems(script, usage=usage))


def client_request(
    body: Any = None, *, model: str = "m", protocol: str = "openai", stream: bool = False, **fields: Any
) -> ClientRequest:
    """A request as web makes it; `body` bytes are taken as they are."""
    if body is None:
        body = {"model": model, "messages": []}
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = fields.pop("headers", {})
    settings: dict[str, Any] = {
        "request_id": "r1",
        "endpoint": "POST /v1/chat/completions",
        "principal": Principal(name="tester", provider="config-api-key", scope="scope-of-tester"),
        "operation": Operation.EXECUTE,
    } | fields
    return ClientRequest(
        protocol=protocol,
        model=model,
        stream=stream,
        body=data,
        headers=freeze_headers((name, value) for name, value in headers.items()),
        **settings,
    )


async def read_all(stream: Any) -> list[StreamItem]:
    """Every item of a stream, closed afterwards."""
    async with asyncio.timeout(EVENT_WAIT_S):
        try:
            return [item async for item in stream]
        finally:
            await stream.aclose("finished")


def raw_bytes(items: Sequence[StreamItem]) -> bytes:
    """Raw items joined."""
    return b"".join(item.raw.to_bytes() for item in items)  # type: ignore[union-attr]
