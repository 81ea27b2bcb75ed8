"""Steps 7 and 8 for streams: open, wait for the first item, pass through or run hooks, settle at the end.

Nothing is decided for the client before its first item is known: until then a failure is an ordinary error and another
credential may be tried (spec plugin-abi 4.5, client-api 2.5, 9.3).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, Self, TypeVar

from msgspec import UNSET

from host.credentials.spoken import without_secrets
from host.errors import RequestError, to_error_body
from host.pipeline.attempt import (
    NOT_SENT,
    ExecutorFailed,
    bad_status,
    executor_request,
    mark_failed,
    mark_succeeded,
    reached_upstream,
    verdict_on,
)
from host.pipeline.execution import Attempt, Execution
from host.pipeline.handshake import MAX_HELD_BYTES, is_handshake, size_of
from host.pipeline.headers import client_headers
from host.pipeline.scan import INVALID_CODE, FrameCutter, StreamWatch, documents, is_done, watch_for
from host.pipeline.sessions import makes_state, note_made
from host.pipeline.settle import CLIENT_GONE, Settler
from host.pipeline.shown_model import ArrayCutter, ShownModel
from host.pipeline.stream_hooks import StreamHooks, event_of
from host.runtime.handle import ItemStream
from host.runtime.invoke import Invoker
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, host_error, normalised
from pluginabi.frames import Usage
from pluginabi.immutable import EMPTY_HEADERS, Headers
from pluginabi.payloads.executor import ExecutorResponse

T = TypeVar("T")

DRAIN_S: Final = 2.0
"""After the end marker the executor gets this long to end its stream by itself and report its usage."""
_UNFRAMEABLE: Final = ErrorBody(
    message="the stream could not be written in the client's protocol",
    code=INVALID_CODE,
    http_status=502,
    origin="upstream",
)
BOOTSTRAP_STATUSES: Final = frozenset({401, 402, 403, 408, 429})


async def open_stream(invoker: Invoker, settler: Settler, ex: Execution, attempt: Attempt) -> "GatewayStream":
    """Call the executor and wait for the first item. Raises ExecutorFailed when the upstream failed before it, and
    what a stream hook with failure mode `fail` raised. Cancelling it closes the upstream."""
    binding = attempt.lane.binding
    attempt.reached_upstream = True
    try:
        reply = await invoker.stream(binding, executor_request(ex, attempt), ex.scope)
        if reply.items is None:
            raise host_error("plugin_protocol_error", f"plugin executor {binding.plugin_id!r} returned no stream")
    except (PluginError, PluginTransportError) as error:
        attempt.reached_upstream = reached_upstream(error)
        raise ExecutorFailed(error) from error
    attempt.response_headers = reply.result.headers
    stream = GatewayStream(invoker, settler, ex, attempt, reply.items)
    try:
        if not 200 <= reply.result.status <= 299:
            raise _failed_opening(attempt, reply.result)
        await stream.wait_for_first_item()
    except BaseException:
        await stream.abandon()
        raise
    return stream


def _failed_opening(attempt: Attempt, opening: ExecutorResponse) -> ExecutorFailed:
    error = bad_status(attempt, opening)
    failed = ExecutorFailed(error)
    failed.__cause__ = error
    return failed


async def with_bootstrap_retries(ex: Execution, serve: Callable[[], Awaitable[T]]) -> T:
    """Serve again, up to `streaming.bootstrap-retries` times, after an upstream failure before the first item.

    When the retry cannot pick a credential any more, an original failure of 500 or above is what the client gets.
    """
    budget = ex.state.config.streaming.bootstrap_retries
    original: ExecutorFailed | None = None
    while True:
        try:
            return await serve()
        except ExecutorFailed as failed:
            if budget <= 0 or not _may_run_again(ex, failed):
                raise
            budget -= 1
            original = failed
            ex.record("bootstrap_retry", status=to_error_body(failed.error).http_status, left=budget)
        except RequestError:
            if original is not None and to_error_body(original.error).http_status >= 500:
                raise original from None
            raise


def _may_run_again(ex: Execution, failed: ExecutorFailed) -> bool:
    if ex.route is not None and ex.route.lane is not None:
        return False
    if isinstance(failed.error, PluginTransportError) and failed.error.phase not in NOT_SENT:
        return False
    body = to_error_body(failed.error)
    return body.retryable is not False and (body.http_status in BOOTSTRAP_STATUSES or body.http_status >= 500)


class GatewayStream:
    """A client's stream. Implements `ClientStream`, and `ItemStream` for nested calls."""

    def __init__(self, invoker: Invoker, settler: Settler, ex: Execution, attempt: Attempt, items: ItemStream) -> None:
        self.headers: Headers = EMPTY_HEADERS
        self._terminal_seen = False
        self.usage: Usage | None = None
        self.status = 200
        self._settler = settler
        self._ex = ex
        self._attempt = attempt
        self._items = items
        self._watch: StreamWatch = watch_for(attempt.lane.output_format)
        self._hooks = StreamHooks.for_execution(invoker, ex, attempt)
        framed, is_array = self._is_framed(), self._is_array()
        self._cutter = FrameCutter() if framed else None
        self._array = ArrayCutter() if is_array else None
        renamed = attempt.lane.answers_as if self._hooks is None and (framed or is_array) else ""
        self._shown = ShownModel.of(renamed, is_array=is_array)
        self._source = self._pass_through() if self._hooks is None else self._through_hooks(self._hooks)
        self._held: deque[StreamItem] = deque()
        """The beginning, which was taken before anything was decided for the client."""
        self._payload_seen = False
        self._committed = False
        self._ended = False

    @property
    def terminal_seen(self) -> bool:
        return self._terminal_seen and not self._held

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        """The next item. Raises the stream's one error, after which it has ended."""
        if self._held:
            return self._held.popleft()
        if self._ended:
            raise StopAsyncIteration
        try:
            return await self._source.__anext__()
        except StopAsyncIteration:
            await self._finish()
            raise
        except ExecutorFailed as failed:
            cause = failed.error
            if isinstance(cause, PluginError):
                cause = without_secrets(cause, self._attempt.lane.credential)
            self._fail(cause, upstream=True)
            raise cause from None
        except (PluginError, PluginTransportError, RequestError) as error:
            self._fail(error, upstream=False)
            raise

    async def aclose(self, reason: str = "client_gone") -> None:
        """Stop everything down to the upstream; idempotent.

        A request that had not ended by itself was canceled, unless the client already has the stream's end.
        """
        if not self._ended:
            self._ended = True
            if self.terminal_seen or reason == "finished":
                self._settle()
            elif reason == "failed":
                self._settle_failed(_UNFRAMEABLE, upstream=True)
            else:
                self._settle_canceled()
        await self._close(reason)

    async def abandon(self) -> None:
        """Close a stream that never became the client's: nothing is settled here."""
        self._ended = True
        await self._close("client_gone")

    async def wait_for_first_item(self) -> None:
        """Until this returns nothing is decided for the client. Raises ExecutorFailed, or what a hook raised."""
        try:
            await self._take_beginning()
        except StopAsyncIteration:
            if not self._payload_seen:
                empty = ErrorBody(
                    message="upstream stream closed before first payload",
                    code="empty_stream",
                    http_status=502,
                    origin="upstream",
                )
                raise ExecutorFailed(PluginError(empty)) from None
            self._commit()
            await self._finish()
            return
        self._commit()

    async def _take_beginning(self) -> None:
        """The first item; with `streaming.buffer-handshake` all up to the first one that says something."""
        left = MAX_HELD_BYTES if self._ex.state.config.streaming.buffer_handshake else 0
        while True:
            item = await self._source.__anext__()
            self._held.append(item)
            if left <= 0 or not is_handshake(item):
                return
            left -= size_of(item)

    def _commit(self) -> None:
        """The first item is known: headers are final, failures are in-band from now on."""
        self._committed = True
        attempt = self._attempt
        attempt.first_byte_ms = (time.monotonic() - attempt.started_s) * 1000
        upstream = attempt.response_headers
        final = self._hooks.headers if self._hooks is not None else upstream
        self.headers = client_headers(
            upstream, final, passthrough=self._ex.state.config.passthrough_headers, added=self._ex.response_headers
        )

    async def _pass_through(self) -> AsyncGenerator[StreamItem, None]:
        """Same protocol, no hooks: items go on as they came, raw ones cut at frame boundaries."""
        watch = self._watch
        shown, cutter, array = self._shown, self._cutter, self._array
        begun = False
        waiting = b""
        try:
            async for item in self._items:
                raw = item.raw
                if raw is UNSET:
                    if item.body is UNSET:
                        continue
                    watch.event(item.event, item.body.to_bytes())
                    if shown is not None:
                        item = shown.item(item)
                else:
                    data = raw.base64 if raw.base64 is not UNSET else raw.to_bytes()
                    out = cutter.feed(data) if cutter is not None else data
                    if not out:
                        continue
                    if array is not None:
                        begun = bool(self._elements(array, out)) or array.is_whole or begun
                    else:
                        watch.raw(out)
                    if shown is not None and not (out := shown.raw(out)):
                        continue
                    if not self._payload_seen and (cutter is not None or array is not None):
                        # Comments before the first event, and half of the first element, do not commit anything.
                        out = waiting + out
                        if not begun and (array is not None or b"data:" not in out):
                            waiting = out
                            continue
                    if out is not data or raw.base64 is UNSET:
                        item = StreamItem(raw=Body(base64=out))
                self._note_payload()
                if watch.terminal:
                    self._terminal_seen = True
                    self._note_result()
                yield item
                if watch.terminal:
                    break
            else:
                if (last := self._end_of_upstream()) is not None:
                    yield last
        except (PluginError, PluginTransportError) as error:
            raise ExecutorFailed(error) from error
        except ValueError as broken:
            raise ExecutorFailed(_invalid(broken)) from None

    def _elements(self, array: ArrayCutter, data: bytes) -> list[StreamItem]:
        """The elements that a piece of an array completes. Raises ValueError when one is above 16 MiB."""
        found = [piece for piece in array.feed(data) if piece.startswith(b"{")]
        for element in found:
            self._watch.event(None, element)
        return [StreamItem(body=Body.from_bytes(element)) for element in found]

    def _end_of_upstream(self) -> StreamItem | None:
        """The upstream ended: what it left unfinished, completed when only the blank line was missing.

        Raises PluginError when the stream may not end here.
        """
        rest = self._cutter.rest() if self._cutter is not None else b""
        last = None
        if self._array is not None and not self._array.is_whole:
            raise PluginError(self._watch.cut_off())
        if rest.strip():
            data = rest.rstrip(b"\r\n") + b"\n\n"
            if not documents(data) and not is_done(data):
                raise PluginError(self._watch.cut_off())
            self._watch.raw(data)
            self._note_payload()
            self._terminal_seen = self._watch.terminal
            last = StreamItem(raw=Body(base64=data if self._shown is None else self._shown.raw(data)))
        if self._payload_seen and (error := self._watch.end_error()) is not None:
            raise PluginError(error)
        return last

    async def _through_hooks(self, hooks: StreamHooks) -> AsyncGenerator[StreamItem, None]:
        """Events through normalisers, translators and interceptors."""
        async with aclosing(self._events(hooks)) as batches:
            async for batch in batches:
                for item in await hooks.process(batch):
                    self._note_sent(hooks, item)
                    yield item
                if hooks.ended is not None:
                    break
        for item in await hooks.flush():
            self._note_sent(hooks, item)
            yield item
        if hooks.ended is not None and hooks.ended.error is not UNSET:
            raise PluginError(normalised(hooks.ended.error, default_origin="plugin"))
        if (missing := hooks.end_error()) is not None:
            raise PluginError(missing)

    async def _events(self, hooks: StreamHooks) -> AsyncGenerator[list[StreamItem], None]:
        """The upstream's events, as many at a time as arrived together. Raises ExecutorFailed."""
        watch = self._watch
        cutter, array = self._cutter, self._array
        try:
            async for item in self._items:
                if item.raw is UNSET:
                    if item.body is UNSET:
                        continue
                    watch.event(item.event, item.body.to_bytes())
                    batch = [event_of(item)]
                elif array is not None:
                    batch = self._elements(array, item.raw.to_bytes())
                else:
                    out = item.raw.to_bytes() if cutter is None else cutter.feed(item.raw.to_bytes())
                    watch.raw(out)
                    batch = hooks.events_of(out)
                if batch:
                    self._note_payload()
                    if watch.terminal:
                        self._note_result()
                    yield batch
                if watch.terminal:
                    break
            else:
                if (left := self._end_of_upstream()) is not None and left.raw is not UNSET:
                    yield hooks.events_of(left.raw.to_bytes())
        except (PluginError, PluginTransportError) as error:
            raise ExecutorFailed(error) from error
        except ValueError as broken:
            raise ExecutorFailed(_invalid(broken)) from None

    def _note_payload(self) -> None:
        """The upstream delivered something. An in-band error as the first thing is an ordinary failure."""
        if self._watch.error is not None and not self._committed:
            raise PluginError(self._watch.error)
        self._payload_seen = True

    def _note_result(self) -> None:
        """The answer is complete and the client does not have its end yet; its next request may refer to it."""
        if self._watch.result and makes_state(self._ex, self._attempt):
            note_made(self._ex, self._attempt, self._watch.result, streamed=True)

    def _note_sent(self, hooks: StreamHooks, item: StreamItem) -> None:
        hooks.sent(item)
        self._terminal_seen = self._watch.error is not None or hooks.terminal_sent

    def _is_framed(self) -> bool:
        """Whether raw items are server-sent events, as they are with everybody but Gemini with another `alt`."""
        return self._attempt.lane.output_format != "gemini" or self._ex.request.alt in ("", "sse")

    def _is_array(self) -> bool:
        """Whether raw items are one JSON array in arbitrary pieces."""
        return self._attempt.lane.output_format == "gemini" and self._ex.request.alt.lower() == "json"

    async def _finish(self) -> None:
        """The stream ended cleanly: drain what the executor still has to say, then settle."""
        if self._ended:
            return
        self._ended = True
        try:
            await self._drain()
        finally:
            self._settle()

    def _settle(self) -> None:
        """The client has everything."""
        self.usage = self._items.usage or self._watch.usage
        if (error := self._watch.error) is not None:
            self._settle_failed(error, upstream=True, cause=PluginError(error))
            return
        mark_succeeded(self._ex, self._attempt)
        if self._settler.is_recorded:
            self._attempt.answer_tier = self._watch.service_tier
        self._settler.attempt_ended(self._ex, self._attempt, usage=self.usage)
        self._settler.request_ended(self._ex, "succeeded", status=200, usage=self.usage)

    def _settle_canceled(self) -> None:
        self.usage = self._items.usage or self._watch.usage
        self._settler.attempt_ended(self._ex, self._attempt, usage=self.usage, error=CLIENT_GONE)
        self._settler.request_ended(self._ex, "canceled", status=0, usage=self.usage)

    async def _drain(self) -> None:
        """Read to the executor's own end, for its usage; what comes after the end marker is not the client's."""
        if not self._watch.terminal:
            await self._items.aclose("client_gone")
            return
        try:
            async with asyncio.timeout(DRAIN_S):
                async for _ in self._items:
                    pass
        except (PluginError, PluginTransportError, TimeoutError):
            await self._items.aclose("client_gone")

    def _fail(self, error: Exception, *, upstream: bool) -> None:
        """The stream ended with an error."""
        if self._ended:
            return
        self._ended = True
        self.usage = self._items.usage or self._watch.usage
        cause = error if upstream and isinstance(error, (PluginError, PluginTransportError)) else None
        self._settle_failed(to_error_body(error), upstream=upstream, cause=cause)

    def _settle_failed(
        self, body: ErrorBody, *, upstream: bool, cause: PluginError | PluginTransportError | None = None
    ) -> None:
        """`cause`: the upstream broke off an answer of which the client has a part; nothing to retry, but a failure."""
        self._settler.attempt_ended(self._ex, self._attempt, usage=self.usage, error=body if upstream else None)
        if cause is not None:
            ex, lane = self._ex, self._attempt.lane
            mark_failed(ex, lane, self._attempt.key, verdict_on(ex, lane, cause), cause)
        self._settler.request_ended(self._ex, "failed", status=body.http_status, error=body, usage=self.usage)

    async def _close(self, reason: str) -> None:
        await self._items.aclose(reason)
        try:
            await self._source.aclose()
        except RuntimeError:
            # Somebody still waits for an item; closing the upstream has just ended that wait.
            pass


def _invalid(broken: ValueError) -> PluginError:
    return PluginError(ErrorBody(message=str(broken), code=INVALID_CODE, http_status=502, origin="upstream"))
