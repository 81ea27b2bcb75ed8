"""Launch specs of the fault plugin, and doubles of what a plugin process talks to."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from host.runtime.diagnostics import CrashReport
from host.runtime.handle import PluginHandle, PluginState, Reply
from host.runtime.launch import LaunchSpec
from host.runtime.process import PluginEvents, ProcessPlugin
from host.runtime.scope import CallScope
from host.runtime.timings import ProcessTimings
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, host_error
from pluginabi.frames import Log, Usage
from pluginabi.payloads.callbacks import HttpRequest, HttpResponse, KvGetRequest, KvGetResponse
from pluginabi.payloads.common import Payload
from pluginabi.payloads.executor import ExecutorRequest
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginabi.payloads.routing import ModelRouteRequest

FAULT_PLUGIN = Path(__file__).resolve().parents[1] / "process" / "fault_plugin.py"


def fault_spec(directory: Path, mode: str = "healthy", *options: str, **fields: Any) -> LaunchSpec:
    """A spec that runs the fault plugin in `mode`, working in `directory/data`.

    Confined like any plugin; one that shows signs of life is not, because it connects to a socket for that.
    """
    shows_life = "TEST_LIFE" in fields.get("environment", {})
    defaults: dict[str, Any] = {
        "plugin_id": "faulty",
        "directory": directory,
        "data_dir": directory / "data",
        "register": RegisterRequest,
        "command": (sys.executable, "-S", str(FAULT_PLUGIN), mode, *options),
        "runtime_dir": directory,
        "confinement": "off" if shows_life else "auto",
        "read_paths": (FAULT_PLUGIN.parent,),
    }
    return LaunchSpec(**{**defaults, **fields})


class HostDouble:
    """Serves callbacks from memory and keeps what it was asked, with the scope it was asked under."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.logs: list[Log] = []
        self.log_scopes: list[Any] = []
        self.hold: asyncio.Event | None = None
        """When set, callbacks wait for it."""
        self.held = asyncio.Event()
        self.abandoned = asyncio.Event()
        self._waiters: list[asyncio.Event] = []

    async def call(self, scope: Any, method: str, params: Payload, *, timeout_s: float | None = None) -> Payload:
        self.asked.append((method, scope))
        await self._wait()
        if method != "host.kv.get":
            raise host_error("method_not_found", method)
        assert isinstance(params, KvGetRequest)
        if params.key == "forbidden":
            raise host_error("permission_denied", "no")
        if params.key == "quota":
            raise PluginError("no quota", http_status=429, code="rate_limited", retry_after_ms=1500, scope="model")
        return KvGetResponse(found=True)

    async def open_stream(
        self, scope: Any, method: str, params: Payload, *, timeout_s: float | None = None
    ) -> tuple[Payload, Any]:
        self.asked.append((method, scope))
        assert isinstance(params, HttpRequest)
        return HttpResponse(status=200), ItemsDouble(self)

    async def _wait(self) -> None:
        if self.hold is None:
            return
        self.held.set()
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise

    def log(self, plugin_id: str, frame: Log, scope: Any) -> None:
        self.logs.append(frame)
        self.log_scopes.append(scope)
        for waiter in self._waiters:
            waiter.set()

    async def logged(self, text: str, *, times: int = 1) -> Log:
        """The log line whose event contains `text` for the `times`-th time; waits for it."""
        event = asyncio.Event()
        self._waiters.append(event)
        while True:
            found = [log for log in self.logs if text in log.event]
            if len(found) >= times:
                return found[times - 1]
            event.clear()
            await event.wait()


class ItemsDouble:
    """An `ItemStream` of three raw items; with `hold` set the third never comes."""

    def __init__(self, host: HostDouble) -> None:
        self.usage: Usage | None = None
        self._host = host
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for text in ("a", "b"):
            yield StreamItem(raw=Body(text=text))
        await self._host._wait()
        yield StreamItem(raw=Body(text="c"))

    async def aclose(self, reason: str = "client_gone") -> None:
        self.closed = True
        self._host.abandoned.set()


FAST = ProcessTimings(
    hello_s=30.0,
    connect_s=30.0,
    register_s=30.0,
    backoff_min_s=0.01,
    backoff_max_s=0.05,
    ping_unresponsive_s=30.0,
    ping_kill_s=60.0,
    shutdown_drain_s=30.0,
    plugin_shutdown_s=30.0,
    queue_wait_s=30.0,
    eof_grace_s=0.2,
    term_grace_s=0.2,
    last_words_s=0.3,
)
"""Short where a test waits for the end of it, long where that would only make a slow machine fail."""


def call_scope(method: str = "model.route") -> CallScope:
    return CallScope(plugin_id="faulty", method=method, permissions=frozenset({"kv"}))


async def route(plugin: PluginHandle, command: str, *, timeout_s: float | None = 30.0) -> Reply:
    """Give the fault plugin a command as a `model.route` call."""
    scope = call_scope()
    try:
        return await plugin.call(
            "model.route", ModelRouteRequest(requested_model=command), scope=scope, timeout_s=timeout_s
        )
    finally:
        scope.close()


async def execute_stream(plugin: PluginHandle, command: str, *, timeout_s: float | None = 30.0) -> Reply:
    """Give the fault plugin a command as an `executor.execute_stream` call; the scope stays open with the stream."""
    method = "executor.execute_stream"
    params = ExecutorRequest(model=command)
    return await plugin.call(method, params, scope=call_scope(method), timeout_s=timeout_s, stream=True)


class Watcher(PluginEvents):
    """Keeps what happens to a plugin, and waits for states."""

    def __init__(self) -> None:
        self.seen: list[tuple[PluginState, str]] = []
        self.reports: list[CrashReport] = []
        self._changed = asyncio.Event()

    def state_changed(self, plugin: ProcessPlugin, old: PluginState, new: PluginState, reason: str) -> None:
        self.seen.append((new, reason))
        self._changed.set()

    def died(self, plugin: ProcessPlugin, report: CrashReport) -> None:
        self.reports.append(report)

    async def reached(self, state: PluginState, *, times: int = 1) -> None:
        """Wait until the plugin has entered `state` that often."""
        while [new for new, _ in self.seen].count(state) < times:
            self._changed.clear()
            await self._changed.wait()

    async def changed(self) -> None:
        """Wait for the next change, or for `wake`."""
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """End all waits for a change."""
        self._changed.set()
