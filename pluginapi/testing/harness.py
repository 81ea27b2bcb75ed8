"""Runs a plugin against a fake host over real frames in memory: what passes here passes over a pipe."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from pluginabi.body import StreamItem
from pluginabi.call import CallReply, IncomingCall, IncomingStream
from pluginabi.codec import decode_result
from pluginabi.frames import Hello, HostInfo, Log, Usage
from pluginabi.handshake import Greeting, host_handshake, plugin_handshake
from pluginabi.limits import Limits
from pluginabi.memory_channel import memory_pair
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse
from pluginabi.session import Session
from pluginapi.dispatch import Dispatcher
from pluginapi.hello import hello_of
from pluginapi.plugin import Plugin
from pluginapi.service import PluginService
from pluginapi.testing.fake_host import FakeHost


@dataclass(frozen=True, slots=True)
class LogLine:
    """One `ctx.log` line."""

    level: str
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamRun:
    """A stream that was read to its clean end."""

    result: Any
    items: list[StreamItem]
    """Progress included."""
    usage: Usage | None

    def values(self) -> list[Any]:
        """The decoded bodies of the events."""
        return [item.body.value() for item in self.items if item.body]

    def raw(self) -> bytes:
        """The raw data, joined."""
        return b"".join(item.raw.to_bytes() for item in self.items if item.raw)


class OpenStream:
    """A stream that the test reads piece by piece; leaving its context manager cancels it."""

    def __init__(self, result: Any, items: IncomingStream, *, timeout_s: float) -> None:
        self.result: Final = result
        self._items: Final = items
        self._timeout_s: Final = timeout_s

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        async with asyncio.timeout(self._timeout_s):
            return await self._items.__anext__()

    @property
    def usage(self) -> Usage | None:
        """Set once the stream has ended."""
        return self._items.usage


class PluginHarness:
    """`async with PluginHarness(MyPlugin, config={…}) as plugin: await plugin.call("model.route", request)`.

    Entering starts the plugin, shakes hands and registers it; leaving shuts it down. Errors of the plugin are raised
    as `PluginError`, exactly as the host would get them. Every wait is bounded by `timeout_s`.
    """

    def __init__(
        self,
        plugin: type[Plugin],
        *,
        host: FakeHost | None = None,
        config: Mapping[str, Any] | None = None,
        permissions: Iterable[str] = (),
        timeout_s: float = 5.0,
    ) -> None:
        self.host: Final = host or FakeHost()
        self.logs: Final[list[LogLine]] = []
        """What the plugin logged, exceptions of its hooks included (event `plugin.exception`)."""
        self.registration: RegisterResponse = RegisterResponse()
        self._class: Final = plugin
        self._register: Final = RegisterRequest(config=config or {}, permissions=tuple(permissions), host=HostInfo())
        self._timeout_s: Final = timeout_s
        self._tasks: Final[set[asyncio.Task[Any]]] = set()
        self._plugin: Plugin | None = None
        self._session: Session | None = None
        self._service: PluginService | None = None
        self._dispatcher: Dispatcher | None = None
        self._hello: Hello | None = None

    @property
    def plugin(self) -> Plugin:
        """The running instance, to look at its state."""
        assert self._plugin is not None, "use `async with PluginHarness(…)`"
        return self._plugin

    @property
    def hello(self) -> Hello:
        """What the plugin says about itself."""
        assert self._hello is not None, "use `async with PluginHarness(…)`"
        return self._hello

    async def call(self, method: str, params: Payload | None = None, *, timeout_ms: int | None = None) -> Any:
        """The answer as the method's response struct (its defaults when the plugin had no opinion)."""
        result, _ = await self.reply(method, params, timeout_ms=timeout_ms)
        return result

    async def reply(
        self, method: str, params: Payload | None = None, *, timeout_ms: int | None = None
    ) -> tuple[Any, Usage | None]:
        """The answer and the usage of its closing frame."""
        reply = await self._ask(method, params, timeout_ms, stream=False)
        return decode_result(method, reply.result, plugin_id=self.hello.plugin or ""), reply.usage

    async def stream(self, method: str, params: Payload | None = None) -> StreamRun:
        """Read a whole stream. Raises the error that ended it."""
        async with self.open_stream(method, params) as opened:
            items = [item async for item in opened]
            return StreamRun(opened.result, items, opened.usage)

    @asynccontextmanager
    async def open_stream(self, method: str, params: Payload | None = None) -> AsyncIterator[OpenStream]:
        """Read a stream piece by piece; leaving early is a client that goes away."""
        reply = await self._ask(method, params, None, stream=True)
        assert reply.items is not None, f"{method} answered without a stream"
        result = decode_result(method, reply.result, plugin_id=self.hello.plugin or "")
        try:
            yield OpenStream(result, reply.items, timeout_s=self._timeout_s)
        finally:
            await reply.items.aclose()

    async def reconfigure(self, config: Mapping[str, Any], permissions: Iterable[str] = ()) -> RegisterResponse:
        """Send a changed configuration, as the host does to a plugin that overrides `plugin_reconfigure`."""
        request = RegisterRequest(config=config, permissions=tuple(permissions), host=HostInfo())
        self.registration = await self.call("plugin.reconfigure", request)
        self.host.permissions = frozenset(permissions)
        return self.registration

    async def __aenter__(self) -> Self:
        self._plugin = self._class()
        self._dispatcher = Dispatcher(self._plugin)
        self._hello = hello_of(self._class)
        here, there = memory_pair()
        async with asyncio.timeout(self._timeout_s):
            # Both sides of the handshake wait for each other.
            greeting, theirs = await asyncio.gather(
                host_handshake(here, plugin_id=self._hello.plugin or "", host=HostInfo()),
                plugin_handshake(there, self._hello),
            )
        self._start_plugin(there, theirs)
        self._session = Session(
            here,
            role="host",
            features=greeting.features,
            peer=self._hello.plugin or "",
            peer_limits=greeting.peer.limits,
            handler=self._on_callback,
            on_log=self._on_log,
        )
        self._start(self._session.run())
        self.host.permissions = frozenset(self._register.permissions)
        try:
            self.registration = await self.call("plugin.register", self._register)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.call("plugin.shutdown")
        finally:
            await self._stop()

    def _start_plugin(self, channel: Any, greeting: Greeting) -> None:
        assert self._dispatcher is not None and self._hello is not None
        self._service = PluginService(self._dispatcher, plugin_id=self._hello.plugin or "")
        session = Session(
            channel,
            role="plugin",
            features=greeting.features,
            peer=self._hello.plugin or "",
            peer_limits=greeting.peer.limits or Limits(),
            handler=self._service.handle,
        )
        self._service.attach(session)
        self._start(session.run())

    async def _ask(self, method: str, params: Payload | None, timeout_ms: int | None, *, stream: bool) -> CallReply:
        assert self._session is not None, "use `async with PluginHarness(…)`"
        spec = PLUGIN_METHODS[method]
        assert spec.stream is stream, f"use {'stream or open_stream' if spec.stream else 'call'} for {method}"
        call = self._session.start_call(method, params or spec.request(), timeout_ms=timeout_ms, stream=stream)
        async with asyncio.timeout(self._timeout_s):
            return await call.reply()

    async def _stop(self) -> None:
        assert self._session is not None and self._service is not None and self._dispatcher is not None
        async with asyncio.timeout(self._timeout_s):
            await self._service.stop()
            await self._session.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
        self._dispatcher.close()

    def _on_callback(self, call: IncomingCall) -> None:
        task = self._start(self.host.serve(call))
        call.on_cancel(lambda reason: _cancel(task))

    def _on_log(self, frame: Log) -> None:
        self.logs.append(LogLine(frame.level, frame.event, frame.fields))

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
