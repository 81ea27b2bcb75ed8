"""Serves what a plugin process asks of the host: one task per callback, under the scope of the call it belongs to."""

import asyncio
from collections.abc import Mapping
from functools import partial

from host.errors import RequestError, to_error_body
from host.runtime.callbacks import CallbackServer
from host.runtime.scope import CallScope
from host.tasks import TaskGroup
from pluginabi.call import IncomingCall
from pluginabi.codec import decode_params
from pluginabi.errors import AbiError, host_error
from pluginabi.frames import CancelReason
from pluginabi.methods import HOST_METHODS
from pluginabi.payloads.common import Payload


class CallbackDesk:
    """The `CallHandler` of one session.

    `scopes` maps the ids of the host's open calls to their scopes: a callback can only name a call that is open in
    the process it came from. The session has already refused parents that are closed, and keeps the budget.
    """

    def __init__(
        self,
        callbacks: CallbackServer,
        *,
        plugin_id: str,
        scopes: Mapping[int, CallScope],
        permissions: frozenset[str],
        tasks: TaskGroup,
    ) -> None:
        self._callbacks = callbacks
        self._plugin_id = plugin_id
        self._scopes = scopes
        self._permissions = permissions
        self._tasks = tasks

    def handle(self, call: IncomingCall) -> None:
        """Start the task that answers `call`."""
        scope: CallScope | None
        if call.parent is None:
            scope = CallScope(plugin_id=self._plugin_id, method="", permissions=self._permissions)
        else:
            scope = self._scopes.get(call.parent)
        if scope is None or scope.closed:
            call.fail(host_error("parent_closed", f"call {call.parent} has finished").body)
            return
        task = self._tasks.start(
            self._serve(call, scope), name=f"callback:{call.method}:{call.id}", on_done=partial(self._served, call)
        )
        call.on_cancel(partial(_cancel, task))

    async def _serve(self, call: IncomingCall, scope: CallScope) -> None:
        try:
            if call.method not in HOST_METHODS:
                raise host_error("method_not_found", f"the host has no method {call.method}")
            params = decode_params(call.method, call.params)
            if HOST_METHODS[call.method].stream:
                await self._answer_stream(call, scope, params)
            else:
                call.respond(await self._callbacks.call(scope, call.method, params, timeout_s=_timeout_s(call)))
        except (AbiError, RequestError) as error:
            call.fail(to_error_body(error))

    async def _answer_stream(self, call: IncomingCall, scope: CallScope, params: Payload) -> None:
        if not call.stream:
            raise host_error("plugin_protocol_error", f"{call.method} answers a stream: its call must say so")
        result, items = await self._callbacks.open_stream(scope, call.method, params, timeout_s=_timeout_s(call))
        reason = "client_gone"
        try:
            stream = await call.open_stream(result)
            async for item in items:
                await stream.send(item)
            stream.end(usage=items.usage)
        except asyncio.CancelledError:
            reason = call.cancel_reason or "shutdown"
            raise
        finally:
            await items.aclose(reason)

    def _served(self, call: IncomingCall, task: "asyncio.Task[None]") -> None:
        """Close the call whatever happened: a plugin must never wait for a task that is gone."""
        if task.cancelled():
            call.fail(host_error("cancelled", f"the call was cancelled: {call.cancel_reason or 'shutdown'}").body)
        elif (error := task.exception()) is not None:
            call.fail(to_error_body(error))


def _cancel(task: "asyncio.Task[None]", reason: CancelReason) -> None:
    task.cancel(reason)


def _timeout_s(call: IncomingCall) -> float | None:
    """What is left of the callback's own deadline; it may have waited for its turn."""
    return None if call.deadline is None else max(0.0, call.deadline - asyncio.get_running_loop().time())
