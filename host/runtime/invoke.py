"""The only door to plugin code: deadline, failure mode, callback scope, metrics and decision trace of every call."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Self, TypeAlias

import structlog
from msgspec import UNSET, Struct, UnsetType

from host.errors import to_error_body
from host.runtime.handle import ATTEMPT_METHODS, Binding, CallCopier, CallTap, Reply
from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import StreamItem
from pluginabi.errors import AbiError, ErrorBody, PluginError, PluginTimeout, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.common import Payload

log = structlog.get_logger("host.runtime.invoke")

CallObserver: TypeAlias = Callable[[str, str, str, float], None]
"""`observe(plugin_id, method, outcome, duration_s)` after every call; outcomes: `ok`, `error` (the plugin answered
one), `fault` (it broke), `timeout`, `cancelled`. A stream is observed twice: `method` until its result, and
`method + ":items"` until its end."""

TRANSPORT_FAULTS_SKIP: Final = frozenset({"scheduler.pick"})
"""Methods whose own errors count while a broken plugin is left out: the host has a strategy of its own."""
_PER_ITEM_METHODS: Final = frozenset(
    {"response.intercept_stream_chunk", "response.translate", "response.normalize_before", "response.normalize_after"}
)
"""Called once per batch of stream items: the trace holds their failures, and one line with the sum of all calls."""


class Answer(Struct, frozen=True):
    """What a call came to. With `failed_open` the plugin failed, its failure mode is `skip`, and `error` says why."""

    value: Any = None
    """The method's response struct; an empty answer is the struct with its defaults. None when failed open."""
    usage: Usage | None = None
    failed_open: bool = False
    error: ErrorBody | None = None


class Invoker:
    """Calls plugins, one binding at a time."""

    __slots__ = ("_observe", "copier", "tap")

    def __init__(self, *, observe: CallObserver | None = None) -> None:
        self.tap: CallTap | None = None
        """Set while calls are recorded."""
        self.copier: CallCopier | None = None
        """Set while some plugin has a shadow."""
        self._observe = observe

    async def call(
        self,
        binding: Binding,
        build: Callable[[Binding], Payload],
        request: RequestScope | None,
        *,
        timeout_s: float | UnsetType | None = UNSET,
    ) -> Answer:
        """Call `binding` with what `build` makes for it, within `timeout_s` (default: the binding's).

        With failure mode `skip` a failed call is an Answer with `failed_open`; with `fail` it raises PluginError or
        PluginTransportError. Cancelling it cancels the call in the plugin.
        """
        limit_s = binding.timeout_s if timeout_s is UNSET else timeout_s
        started_s = time.monotonic()
        scope = CallScope(
            plugin_id=binding.plugin_id,
            method=binding.method,
            permissions=binding.permissions,
            request=request,
            deadline_s=None if limit_s is None else started_s + limit_s,
        )
        handle = binding.handle if self.tap is None else self.tap.handle(binding)
        copied = None if self.copier is None else self.copier.take(binding, build, request)
        try:
            reply = await handle.call(binding.method, build(binding), scope=scope, timeout_s=limit_s)
        except Exception as error:
            failure = _as_failure(error, binding)
            self._failed(binding, request, started_s, failure)
            if copied is not None:
                copied.failed(failure)
            if self._skips(binding, failure):
                return Answer(failed_open=True, error=to_error_body(failure))
            raise failure from (error if failure is not error else None)
        except asyncio.CancelledError:
            self._note(binding, "cancelled", started_s)
            raise
        finally:
            scope.close()
            if request is not None and request.times_s is not None:
                _add_time(request.times_s, binding.plugin_id, started_s)
        self._succeeded(binding, request, started_s)
        if copied is not None:
            copied.answered(reply.result)
        return Answer(reply.result, reply.usage)

    async def stream(
        self,
        binding: Binding,
        build: Callable[[Binding], Payload],
        request: RequestScope | None,
        *,
        timeout_s: float | UnsetType | None = UNSET,
    ) -> Reply:
        """Call `binding` for a stream: the answer's `items` end by themselves, fail with one error, or are closed.

        `timeout_s` (default: the binding's) runs until the result, the binding's idle timeout between two items. Both
        raise PluginTimeout. `items` is None when the plugin answered without a stream. Raises whatever the failure
        mode: there is nothing to fall back on.
        """
        limit_s = binding.timeout_s if timeout_s is UNSET else timeout_s
        started_s = time.monotonic()
        scope = _open_scope(binding, request, limit_s, started_s)
        handle = binding.handle if self.tap is None else self.tap.handle(binding)
        try:
            params = build(binding)
            reply = await handle.call(binding.method, params, scope=scope, timeout_s=limit_s, stream=True)
        except Exception as error:
            scope.close()
            failure = _as_failure(error, binding)
            self._failed(binding, request, started_s, failure)
            raise failure from (error if failure is not error else None)
        except asyncio.CancelledError:
            scope.close()
            self._note(binding, "cancelled", started_s)
            raise
        finally:
            if request is not None and request.times_s is not None:
                _add_time(request.times_s, binding.plugin_id, started_s)
        self._succeeded(binding, request, started_s)
        if reply.items is None:
            scope.close()
            return reply
        scope.deadline_s = None
        items = _WatchedItems(reply.items, binding, scope, note=self._note)
        return Reply(result=reply.result, usage=reply.usage, items=items)

    def _skips(self, binding: Binding, failure: AbiError) -> bool:
        if binding.on_error == "skip":
            return True
        return binding.method in TRANSPORT_FAULTS_SKIP and isinstance(failure, PluginTransportError)

    def _succeeded(self, binding: Binding, request: RequestScope | None, started_s: float) -> None:
        """Count the call and write it down."""
        duration_s = time.monotonic() - started_s
        if self._observe is not None:
            self._observe(binding.plugin_id, binding.method, "ok", duration_s)
        if request is None or request.record is None:
            return
        if binding.method in _PER_ITEM_METHODS:
            tally = request.tally(binding.plugin_id, binding.method)
            tally.calls += 1
            tally.duration_s += duration_s
        else:
            request.record(
                "call",
                plugin_id=binding.plugin_id,
                method=binding.method,
                outcome="ok",
                duration_ms=duration_s * 1000,
            )

    def _failed(self, binding: Binding, request: RequestScope | None, started_s: float, failure: AbiError) -> None:
        outcome = _outcome(failure)
        duration_s = self._note(binding, outcome, started_s)
        if request is not None and request.mask is not None and isinstance(failure, PluginError):
            failure = request.mask(failure)
        if request is None or binding.method not in ATTEMPT_METHODS:
            self._log_failure(binding, request, failure)
        if request is not None and request.record is not None:
            body = to_error_body(failure)
            skipped = self._skips(binding, failure)
            request.record(
                "call",
                plugin_id=binding.plugin_id,
                method=binding.method,
                # Never to be taken for a hook that had nothing against the request.
                outcome="failed_open" if skipped else outcome,
                cause=outcome,
                duration_ms=duration_s * 1000,
                code=body.code,
                status=body.http_status,
                message=body.message,
                failed_open=skipped,
            )

    def _note(self, binding: Binding, outcome: str, started_s: float, suffix: str = "") -> float:
        duration_s = time.monotonic() - started_s
        if self._observe is not None:
            self._observe(binding.plugin_id, binding.method + suffix, outcome, duration_s)
        return duration_s

    def _log_failure(self, binding: Binding, request: RequestScope | None, failure: AbiError) -> None:
        log.warning(
            "plugin.call_failed",
            plugin_id=binding.plugin_id,
            method=binding.method,
            request_id=request.request_id if request is not None else None,
            failed_open=self._skips(binding, failure),
            error=str(failure),
        )


class _WatchedItems:
    """The items of a stream with an idle timeout; the callback scope of the call ends with them."""

    def __init__(
        self, items: Any, binding: Binding, scope: CallScope, *, note: Callable[[Binding, str, float, str], float]
    ) -> None:
        self.usage: Usage | None = None
        self._items = items
        self._iterator: AsyncIterator[StreamItem] = aiter(items)
        self._binding = binding
        self._scope = scope
        self._times_s = scope.request.times_s if scope.request is not None else None
        self._note = note
        self._opened_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._idle_s = binding.idle_timeout_s
        self._waits_until_s: float | None = None
        self._waiting_task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._cancelling_before = 0
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        """The next item, progress included. Raises PluginError, PluginTransportError, or PluginTimeout when idle."""
        if self._idle_s is not None:
            self._watch(self._idle_s)
        asked_s = time.monotonic() if self._times_s is not None else 0.0
        try:
            return await self._iterator.__anext__()
        except StopAsyncIteration:
            self._finish("ok")
            raise
        except Exception as error:
            failure = _as_failure(error, self._binding)
            self._finish(_outcome(failure))
            raise failure from (error if failure is not error else None)
        except asyncio.CancelledError:
            if not self._is_idle_timeout():
                raise
            timeout = PluginTimeout(
                self._binding.plugin_id, self._binding.method, timeout_ms=round((self._idle_s or 0.0) * 1000)
            )
            await self._close("deadline", _outcome(timeout))
            raise timeout from None
        finally:
            self._waits_until_s = None
            if self._times_s is not None:
                _add_time(self._times_s, self._binding.plugin_id, asked_s)

    async def aclose(self, reason: str = "client_gone") -> None:
        """Stop the plugin's work on the stream; idempotent."""
        await self._close(reason, "cancelled")

    async def _close(self, reason: str, outcome: str) -> None:
        if self._ended:
            return
        self._finish(outcome)
        await self._items.aclose(reason)

    def _finish(self, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        self.usage = self._items.usage
        if self._timer is not None:
            self._timer.cancel()
        self._scope.close()
        self._note(self._binding, outcome, self._opened_s, ":items")

    def _watch(self, idle_s: float) -> None:
        """Note until when the consumer waits; one timer serves the whole stream."""
        self._waits_until_s = self._loop.time() + idle_s
        self._waiting_task = asyncio.current_task(self._loop)
        if self._timer is None and not self._ended:
            self._timer = self._loop.call_later(idle_s, self._check)

    def _check(self) -> None:
        idle_s = self._idle_s or 0.0
        now_s = self._loop.time()
        until_s = self._waits_until_s if self._waits_until_s is not None else now_s + idle_s
        # Time in which nobody asked for an item is the consumer's, not the plugin's.
        if now_s < until_s:
            self._timer = self._loop.call_at(until_s, self._check)
            return
        assert self._waiting_task is not None
        self._expired = True
        self._cancelling_before = self._waiting_task.cancelling()
        self._waiting_task.cancel()

    def _is_idle_timeout(self) -> bool:
        if not self._expired or self._waiting_task is None:
            return False
        self._expired = False
        return self._waiting_task.uncancel() <= self._cancelling_before


def _add_time(times_s: dict[str, float], plugin_id: str, since_s: float) -> None:
    times_s[plugin_id] = times_s.get(plugin_id, 0.0) + time.monotonic() - since_s


def _open_scope(binding: Binding, request: RequestScope | None, limit_s: float | None, started_s: float) -> CallScope:
    return CallScope(
        plugin_id=binding.plugin_id,
        method=binding.method,
        permissions=binding.permissions,
        request=request,
        deadline_s=None if limit_s is None else started_s + limit_s,
    )


def _as_failure(error: Exception, binding: Binding) -> AbiError:
    """What a call raised, as one of the two classes; anything else is a fault of plugin code close to us."""
    if isinstance(error, PluginError | PluginTransportError):
        return error
    log.error("plugin.unexpected_exception", plugin_id=binding.plugin_id, method=binding.method, exc_info=error)
    return PluginError(ErrorBody(message=f"{type(error).__name__} in {binding.method}", origin="plugin"))


def _outcome(failure: AbiError | None) -> str:
    if failure is None:
        return "ok"
    if isinstance(failure, PluginTimeout):
        return "timeout"
    return "error" if isinstance(failure, PluginError) else "fault"
