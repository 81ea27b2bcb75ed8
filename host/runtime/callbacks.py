"""What plugins may ask of the host, for both carriers: permissions, the parent's life, deadlines and budgets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeAlias

from host.errors import RequestError, to_error_body
from host.runtime.callback_auth import AuthCallbacks
from host.runtime.callback_http import HttpCallbacks
from host.runtime.callback_kv import KvCallbacks
from host.runtime.handle import ItemStream
from host.runtime.loopwatch import LoopWatch
from host.runtime.plugin_log import PluginLogs, write_plugin_log
from host.runtime.refusals import Refusals
from host.runtime.scope import CallScope, RequestScope
from host.tasks import TaskGroup
from pluginabi.body import StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, host_error
from pluginabi.frames import Log, Usage
from pluginabi.limits import CALLBACK_MAX_INFLIGHT, MAX_NESTING_DEPTH
from pluginabi.methods import HOST_METHODS, PERMISSION_OF_CALLBACK
from pluginabi.payloads.callbacks import ModelCallRequest, ModelCallResponse
from pluginabi.payloads.common import Payload
from pluginapi import Context

_NEEDS_PARENT: Final = frozenset({"host.model.execute", "host.model.execute_stream"})

Unary: TypeAlias = Callable[[CallScope, Any], Awaitable[Payload]]
Opening: TypeAlias = Callable[[CallScope, Any], Awaitable[tuple[Payload, ItemStream]]]


class CallbackServer(Protocol):
    """What a carrier needs to serve callbacks; errors are PluginError, with the status of whatever failed inside."""

    async def call(
        self, scope: CallScope, method: str, params: Payload, *, timeout_s: float | None = None
    ) -> Payload: ...

    async def open_stream(
        self, scope: CallScope, method: str, params: Payload, *, timeout_s: float | None = None
    ) -> tuple[Payload, ItemStream]: ...

    def log(self, plugin_id: str, frame: Log, scope: CallScope | None) -> None: ...


class ModelRunner(Protocol):
    """Runs a model for a plugin, through the whole pipeline. `scope.nested()` makes the request's own scope."""

    async def execute(self, params: ModelCallRequest, scope: CallScope) -> ModelCallResponse: ...

    async def execute_stream(
        self, params: ModelCallRequest, scope: CallScope
    ) -> tuple[ModelCallResponse, ItemStream]: ...


class CallbackTap(Protocol):
    """Listens to callbacks while somebody records the calls they belong to; see `host.recording`."""

    def unary(self, scope: CallScope, method: str, serve: Unary) -> Unary:
        """What to serve a callback with instead."""

    def opening(self, scope: CallScope, method: str, serve: Opening) -> Opening:
        """The same for a callback that opens a stream."""


class HostCallbacks:
    """The `CallbackServer`. A scope whose `method` is empty stands for a callback without a parent.

    `models` may be set later: the pipeline is built on top of this.
    """

    def __init__(
        self,
        *,
        http: HttpCallbacks,
        kv: KvCallbacks,
        tasks: TaskGroup,
        models: ModelRunner | None = None,
        auth: AuthCallbacks | None = None,
    ) -> None:
        self.models = models
        self.tap: CallbackTap | None = None
        """Set while calls are recorded."""
        self.grants: Mapping[str, frozenset[str]] = {}
        """Permissions by plugin, replaced when configuration is applied: they bind callbacks without a parent."""
        self.refusals: Final = Refusals()
        """What every plugin was refused, by the kernel and here."""
        http.refused = self.refusals.note
        http.may_call = lambda plugin_id: "http" in self.grants.get(plugin_id, ())
        self._tasks: Final = tasks
        self.http: Final = http
        self.logs: Final = PluginLogs()
        """What plugins said last."""
        self.auth: Final = auth if auth is not None else AuthCallbacks()
        self.auth.granted_to = self._granted_to
        self._models_in_flight: dict[str, int] = {}
        self._unary: Final[Mapping[str, Unary]] = {
            "host.http.do": http.do,
            "host.model.execute": self._model_execute,
            "host.auth.list": self.auth.list,
            "host.auth.get": self.auth.get,
            "host.auth.get_runtime": self.auth.get_runtime,
            "host.auth.save": self.auth.save,
            "host.kv.get": kv.get,
            "host.kv.set": kv.set,
            "host.kv.delete": kv.delete,
            "host.kv.expire": kv.expire,
            "host.kv.increment": kv.increment,
        }
        self._streams: Final[Mapping[str, Opening]] = {
            "host.http.do_stream": http.do_stream,
            "host.model.execute_stream": self._model_stream,
        }

    async def call(self, scope: CallScope, method: str, params: Payload, *, timeout_s: float | None = None) -> Payload:
        """Serve one callback of another task or process.

        It ends with the parent: at the parent's deadline (until its result), when the parent closes, and after
        `timeout_s`. Raises PluginError only.
        """
        serve = self.unary(scope, method)
        async with _bounded(scope, method, timeout_s):
            return await serve(scope, params)

    async def open_stream(
        self, scope: CallScope, method: str, params: Payload, *, timeout_s: float | None = None
    ) -> tuple[Payload, ItemStream]:
        """The same for a callback that opens a stream: `timeout_s` until the result, items until the parent's end."""
        serve = self.opening(scope, method)
        async with _bounded(scope, method, timeout_s):
            return await serve(scope, params)

    def log(self, plugin_id: str, frame: Log, scope: CallScope | None) -> None:
        """Write a plugin's log line, attributed to it and to its request."""
        request = scope.request if scope is not None else None
        self.write_log(plugin_id, frame.level, frame.event, frame.fields, request)

    def write_log(
        self, plugin_id: str, level: str, event: str, fields: Mapping[str, Any], request: RequestScope | None
    ) -> None:
        """Write and remember a line of a plugin."""
        self.logs.keep(plugin_id, level, event, fields, request=request)
        write_plugin_log(plugin_id, level, event, fields, request=request)

    def unary(self, scope: CallScope, method: str) -> Unary:
        """The function that serves `method` under `scope`. Raises PluginError when it may not be called."""
        serve = self._unary.get(method)
        if serve is None:
            raise _unserved(method, self._streams)
        self._admit(scope, method)
        return serve if self.tap is None else self.tap.unary(scope, method, serve)

    def opening(self, scope: CallScope, method: str) -> Opening:
        """As `unary`, for methods that open a stream."""
        serve = self._streams.get(method)
        if serve is None:
            raise _unserved(method, self._unary)
        self._admit(scope, method)
        return serve if self.tap is None else self.tap.opening(scope, method, serve)

    def _admit(self, scope: CallScope, method: str) -> None:
        """Whether this call may be made at all. Raises PluginError."""
        if scope.closed:
            raise host_error("parent_closed", f"{method}: the call it belongs to has ended")
        if not scope.method and method in _NEEDS_PARENT:
            raise host_error("parent_closed", f"{method} needs a parent: the call of the host it belongs to")
        permission = PERMISSION_OF_CALLBACK[method]
        if permission not in self._granted_to(scope):
            self.refusals.note(scope.plugin_id, f"{method} without permission")
            raise host_error(
                "permission_denied",
                f"plugin {scope.plugin_id!r} has no permission {permission!r} for {method}; it needs"
                f" permissions = [{permission!r}] in plugin.toml and plugins.policy.{scope.plugin_id}.permissions",
            )

    def _granted_to(self, scope: CallScope) -> frozenset[str]:
        """The permissions of a call; without a parent, those that the plugin has now."""
        return scope.permissions if scope.method else self.grants.get(scope.plugin_id, scope.permissions)

    async def _model_execute(self, scope: CallScope, params: ModelCallRequest) -> Payload:
        runner = self._enter_model(scope)
        try:
            return await runner.execute(params, scope)
        except (RequestError, PluginTransportError) as error:
            raise PluginError(to_error_body(error)) from error
        finally:
            self._leave_model(scope.plugin_id)

    async def _model_stream(self, scope: CallScope, params: ModelCallRequest) -> tuple[Payload, ItemStream]:
        runner = self._enter_model(scope)
        try:
            result, items = await runner.execute_stream(params, scope)
        except BaseException as error:
            self._leave_model(scope.plugin_id)
            if isinstance(error, RequestError | PluginTransportError):
                raise PluginError(to_error_body(error)) from error
            raise
        nested = _NestedItems(items, scope, tasks=self._tasks, ended=lambda: self._leave_model(scope.plugin_id))
        return result, nested

    def _enter_model(self, scope: CallScope) -> ModelRunner:
        """Count a nested call against depth, request and plugin. Raises PluginError when one of them is used up."""
        if self.models is None:
            raise host_error("method_not_found", "this host runs no models for plugins")
        request = scope.request
        if request is not None:
            if request.depth >= MAX_NESTING_DEPTH:
                raise host_error("depth_exceeded", f"nested model calls are {MAX_NESTING_DEPTH} deep already")
            if request.budget.remaining <= 0:
                raise host_error("depth_exceeded", "this client request has used up its nested model calls")
        in_flight = self._models_in_flight.get(scope.plugin_id, 0)
        if in_flight >= CALLBACK_MAX_INFLIGHT:
            message = f"plugin {scope.plugin_id!r} has {in_flight} model calls in flight already"
            raise host_error("plugin_overloaded", message, retry_after_ms=1000)
        if request is not None:
            request.budget.remaining -= 1
        self._models_in_flight[scope.plugin_id] = in_flight + 1
        return self.models

    def _leave_model(self, plugin_id: str) -> None:
        left = self._models_in_flight[plugin_id] - 1
        if left:
            self._models_in_flight[plugin_id] = left
        else:
            del self._models_in_flight[plugin_id]


class InlinePort:
    """The way to the host of one in-process call: the callback runs in the plugin's own task, nothing is encoded.

    The parent's deadline needs no timer here, it ends the plugin's code and with it the callback.
    """

    __slots__ = ("_alone", "_callbacks", "_context", "_watch", "scope")

    def __init__(self, callbacks: HostCallbacks, scope: CallScope, watch: LoopWatch, alone: CallScope) -> None:
        """`alone`: what the plugin does on its own is served under it."""
        self.scope: Final = scope
        self._alone: Final = alone
        self._callbacks: Final = callbacks
        self._watch: Final = watch
        self._context: Context | None = None

    def open_context(self) -> Context:
        """What the author's code gets; `forget_context` when the call is over."""
        scope, request = self.scope, self.scope.request
        self._context = Context(
            plugin_id=scope.plugin_id,
            request_id=request.request_id if request is not None else "",
            port=self,
            log=self._log,
            permissions=scope.permissions,
            deadline_s=scope.deadline_s,
        )
        return self._context

    def detached(self) -> Context:
        """As `pluginapi.CallbackPort.detached`."""
        port = InlinePort(self._callbacks, self._alone, self._watch, self._alone)
        context = port.open_context()
        port.forget_context()
        return context

    def forget_context(self) -> None:
        """The two know each other: without this every call would leave work for the garbage collector."""
        self._context = None

    @property
    def plugin_id(self) -> str:
        return self.scope.plugin_id

    @property
    def method(self) -> str:
        return self.scope.method

    async def call(self, method: str, params: Payload, *, timeout_ms: int | None = None) -> Payload:
        """As `pluginapi.CallbackPort.call`."""
        if timeout_ms is None and self._watch.current is self:
            return await self._callbacks.unary(self.scope, method)(self.scope, params)
        # A task that the plugin started itself has no deadline over it, so it is treated like a process.
        timeout_s = None if timeout_ms is None else timeout_ms / 1000
        return await self._callbacks.call(self.scope, method, params, timeout_s=timeout_s)

    async def stream(
        self, method: str, params: Payload, *, timeout_ms: int | None = None
    ) -> tuple[Payload, ItemStream]:
        """As `pluginapi.CallbackPort.stream`."""
        if timeout_ms is None and self._watch.current is self:
            return await self._callbacks.opening(self.scope, method)(self.scope, params)
        timeout_s = None if timeout_ms is None else timeout_ms / 1000
        return await self._callbacks.open_stream(self.scope, method, params, timeout_s=timeout_s)

    def cancel(self) -> None:
        """Nobody wants the answer of this call any more."""
        if self._context is not None:
            self._context.cancelled.set()

    def _log(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        self._callbacks.write_log(self.scope.plugin_id, level, event, fields, self.scope.request)


class _NestedItems:
    """The items of a nested model call. Errors keep their status on the way out; the call ends with its parent."""

    def __init__(self, items: ItemStream, scope: CallScope, *, tasks: TaskGroup, ended: Callable[[], None]) -> None:
        self.usage: Usage | None = None
        self._items: Final = items
        self._scope: Final = scope
        self._tasks: Final = tasks
        self._ended: Callable[[], None] | None = ended
        scope.on_close.append(self._parent_closed)

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        try:
            async for item in self._items:
                yield item
                if self._scope.closed:
                    break
        except (RequestError, PluginTransportError) as error:
            raise PluginError(to_error_body(error)) from error
        finally:
            self._end()
        if self._scope.closed:
            raise host_error("parent_closed", "host.model.execute_stream: the call it belongs to has ended")

    async def aclose(self, reason: str = "client_gone") -> None:
        try:
            await self._items.aclose(reason)
        finally:
            self._end()

    def _parent_closed(self) -> None:
        self._tasks.start(self.aclose("parent_closed"), name=f"nested-stream:{self._scope.plugin_id}")

    def _end(self) -> None:
        if self._ended is None:
            return
        self.usage = self._items.usage
        self._ended()
        self._ended = None
        if self._parent_closed in self._scope.on_close:
            self._scope.on_close.remove(self._parent_closed)


def _unserved(method: str, others: Mapping[str, object]) -> PluginError:
    if method in others:
        kind = "opens a stream" if HOST_METHODS[method].stream else "answers without a stream"
        return host_error("method_not_found", f"{method} {kind}")
    if method in HOST_METHODS:
        return host_error("method_not_found", f"{method} is not available in this version of the host")
    return host_error("method_not_found", f"{method} is no method of the host")


@asynccontextmanager
async def _bounded(scope: CallScope, method: str, timeout_s: float | None) -> AsyncIterator[None]:
    """Ends the work inside with the parent's deadline and life, and with `timeout_s`, as the errors that belong."""
    task = asyncio.current_task()
    assert task is not None
    limit_s = timeout_s
    if scope.deadline_s is not None:
        left_s = max(0.0, scope.deadline_s - time.monotonic())
        limit_s = left_s if limit_s is None else min(limit_s, left_s)
    closed = False

    def close() -> None:
        nonlocal closed
        closed = True
        task.cancel()

    scope.on_close.append(close)
    try:
        async with asyncio.timeout(limit_s):
            yield
    except asyncio.CancelledError:
        if closed and task.uncancel() == 0:
            raise host_error("parent_closed", f"{method}: the call it belongs to has ended") from None
        raise
    except TimeoutError:
        raise PluginError(
            ErrorBody(message=f"{method}: no answer in time", code="plugin_timeout", http_status=504, origin="host")
        ) from None
    finally:
        if close in scope.on_close:
            scope.on_close.remove(close)
