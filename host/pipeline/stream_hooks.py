"""Stream hooks: normalisers, translators and chunk interceptors over events (spec plugin-abi 4.5, design: Rewriting).

Everything here works on events in batches of what arrived together; `index` is the position of a batch's first event.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Self

import structlog
from msgspec import UNSET

from host.pipeline.execution import Attempt, Execution, names_of, request_fields
from host.pipeline.headers import apply_delta
from host.pipeline.intercept import INTERCEPTED, exact_or_plain
from host.pipeline.scan import watch_for
from host.pipeline.shown_model import ShownModel
from host.pipeline.terminal import Closer, closer_for
from host.pipeline.translate import unsupported_pair
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from host.runtime.projection import visible_headers
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody
from pluginabi.payloads.common import StreamEnd
from pluginabi.payloads.intercept import StreamInterceptRequest, StreamInterceptResponse
from pluginabi.payloads.translate import ResponseTranslateRequest
from pluginapi.protocols.sse import SseParser

log = structlog.get_logger("host.pipeline.stream_hooks")

HISTORY_ITEMS: Final = 64
HISTORY_BYTES: Final = 1024 * 1024
HEADER_CALL: Final = -1
_NORMALIZE_BEFORE: Final = "response.normalize_before"
_TRANSLATE: Final = "response.translate"
_NORMALIZE_AFTER: Final = "response.normalize_after"
_INTERCEPT: Final = "response.intercept_stream_chunk"


def event_of(item: StreamItem) -> StreamItem:
    """The item as the next hook sees it: a body that is JSON as JSON, in whatever form a plugin gave it."""
    body = item.body
    if body is UNSET or body.json is not UNSET:
        return item
    return StreamItem(event=item.event, body=Body.from_bytes(body.to_bytes()))


class StreamHooks:
    """The hooks of one stream, and what they have seen. Made only when there is somebody to call."""

    def __init__(self, invoker: Invoker, ex: Execution, attempt: Attempt) -> None:
        plugins = ex.state.plugins
        self.headers = attempt.response_headers
        """The upstream's headers as changed so far."""
        self.ended: StreamEnd | None = None
        self._invoker = invoker
        self._ex = ex
        self._attempt = attempt
        self._before = plugins.implementers(_NORMALIZE_BEFORE)
        self._translators = plugins.implementers(_TRANSLATE) if attempt.lane.output_format != ex.wanted else ()
        self._after = plugins.implementers(_NORMALIZE_AFTER)
        self._interceptors = plugins.implementers(_INTERCEPT, ex.scope.skip)
        self._shown = ShownModel.of(attempt.lane.answers_as)
        self._parser = SseParser()
        self._closer: Closer = closer_for(ex.wanted)
        self._watch = watch_for(ex.wanted)
        self._index = 0
        self._header_call_made = False
        self._keeps_history = any(hook.inputs.history for hook in self._interceptors)
        self._history: deque[StreamItem] = deque()
        self._history_bytes = 0

    @classmethod
    def for_execution(cls, invoker: Invoker, ex: Execution, attempt: Attempt) -> Self | None:
        """The hooks of a stream; None when nobody wants events and both sides speak the same protocol."""
        plugins = ex.state.plugins
        if attempt.lane.output_format == ex.wanted and not (
            plugins.implementers(_NORMALIZE_BEFORE)
            or plugins.implementers(_NORMALIZE_AFTER)
            or plugins.implementers(_INTERCEPT, ex.scope.skip)
        ):
            return None
        return cls(invoker, ex, attempt)

    def events_of(self, frames: bytes) -> list[StreamItem]:
        """Raw frames as events; OpenAI's `[DONE]` is not an event."""
        if not frames:
            return []
        return [
            StreamItem(event=event.event, body=Body.from_bytes(event.data))
            for event in self._parser.feed(frames)
            if event.data != b"[DONE]"
        ]

    async def process(self, batch: Sequence[StreamItem]) -> Sequence[StreamItem]:
        """What the client gets for a batch. Raises what a hook with failure mode `fail` raised."""
        index = self._index
        self._index += len(batch)
        return await self._run(batch, index, last=False)

    async def flush(self) -> Sequence[StreamItem]:
        """The last call: what hooks held back, and the protocol's end when a hook ended the stream early."""
        made = [] if self.ended is not None else list(await self._run((), self._index, last=True))
        if self.ended is not None and self.ended.error is UNSET:
            made.extend(self._closer.closing())
        return made

    def sent(self, item: StreamItem) -> None:
        """`item` goes to the client now."""
        if item.body is UNSET:
            return
        data = item.body.to_bytes()
        self._closer.saw(item.event, data)
        self._watch.event(item.event, data)
        if self._keeps_history:
            self._remember(item, len(data))

    @property
    def terminal_sent(self) -> bool:
        """Whether the end marker of the client's protocol was among the events sent."""
        return self._watch.terminal

    def end_error(self) -> ErrorBody | None:
        """What is missing at the end of a stream whose hooks translated it."""
        return self._watch.end_error() if self._attempt.lane.output_format != self._ex.wanted else None

    async def _run(self, items: Sequence[StreamItem], index: int, *, last: bool) -> Sequence[StreamItem]:
        for hook in self._before:
            items = await self._normalized(hook, items, index, last=last)
        if self._attempt.lane.output_format != self._ex.wanted:
            items = await self._translated(items, index, last=last)
        for hook in self._after:
            items = await self._normalized(hook, items, index, last=last)
        if self._shown is not None:
            items = [self._shown.item(item) for item in items]
        return await self._intercepted(items, index, last=last) if self._interceptors else items

    async def _normalized(
        self, hook: Binding, items: Sequence[StreamItem], index: int, *, last: bool
    ) -> Sequence[StreamItem]:
        if not items and not last:
            return items
        answer = await self._ask(hook, items, index, last=last)
        self._count(hook, items, answer)
        return items if answer is None else answer

    async def _translated(self, items: Sequence[StreamItem], index: int, *, last: bool) -> Sequence[StreamItem]:
        for hook in self._translators:
            answer = await self._ask(hook, items, index, last=last)
            if answer is not None:
                self._count(hook, items, answer)
                return answer
        if not items:
            return items
        raise unsupported_pair(self._ex.wanted, self._attempt.lane.output_format)

    async def _ask(
        self, hook: Binding, items: Sequence[StreamItem], index: int, *, last: bool
    ) -> Sequence[StreamItem] | None:
        """A translator's or normaliser's items; None for no opinion."""
        ex, attempt = self._ex, self._attempt

        def build(binding: Binding) -> ResponseTranslateRequest:
            inputs = binding.inputs
            return ResponseTranslateRequest(
                **request_fields(ex.scope),
                from_format=attempt.lane.output_format,
                to_format=ex.wanted,
                model=attempt.upstream_model,
                stream=True,
                items=items,
                index=index,
                last=last,
                request_body=exact_or_plain(binding, attempt.content) if inputs.request_body else UNSET,
                client_body=attempt.client_content.body if inputs.client_body else UNSET,
            )

        answer = await self._invoker.call(hook, build, ex.scope)
        if answer.failed_open:
            return None
        if answer.value.end is not UNSET:
            self.ended = answer.value.end
        return None if answer.value.items is UNSET else [event_of(item) for item in answer.value.items]

    async def _intercepted(self, items: Sequence[StreamItem], index: int, *, last: bool) -> Sequence[StreamItem]:
        if not self._header_call_made:
            self._header_call_made = True
            for hook in self._interceptors:
                await self._intercept(hook, (), HEADER_CALL, last=False)
        for hook in self._interceptors:
            if not items and not last:
                break
            answer = await self._intercept(hook, items, index, last=last)
            if answer is None:
                continue
            given = items
            if answer.items is not UNSET:
                items = [event_of(item) for item in answer.items if not item.is_progress]
            self._count(hook, given, None if items is given else items)
            if answer.end is not UNSET:
                # What this hook lets pass is the end: the hooks after it flush with it.
                self.ended, last = answer.end, True
        return items

    async def _intercept(
        self, hook: Binding, items: Sequence[StreamItem], index: int, *, last: bool
    ) -> StreamInterceptResponse | None:
        ex, attempt = self._ex, self._attempt
        header_call = index == HEADER_CALL

        def build(binding: Binding) -> StreamInterceptRequest:
            inputs = binding.inputs
            bodies: dict[str, Any] = {}
            if header_call and inputs.request_body:
                bodies["request_body"] = exact_or_plain(binding, attempt.client_content)
            if header_call and inputs.client_body:
                bodies["client_body"] = exact_or_plain(binding, ex.client_content)
            return StreamInterceptRequest(
                **request_fields(ex.scope),
                source_format=ex.wanted,
                model=attempt.upstream_model,
                requested_model=ex.request.model,
                index=index,
                last=last,
                items=tuple(items),
                request_headers=visible_headers(attempt.headers, binding.may("client_credentials")),
                headers=self.headers,
                metadata=attempt.metadata,
                history=tuple(self._history) if inputs.history and not header_call else (),
                **bodies,
            )

        answer = await self._invoker.call(hook, build, ex.scope)
        if answer.failed_open:
            return None
        value: StreamInterceptResponse = answer.value
        before = self.headers
        self.headers, _ = apply_delta(before, clear=value.clear_headers, replace=value.headers, may_see_secrets=True)
        if ex.trace is not None and self.headers is not before:
            names, cleared = names_of(value.headers), names_of(value.clear_headers)
            ex.trace.note(INTERCEPTED, hook.plugin_id, hook.method, None, None, names, cleared, [])
        return value

    def _count(self, hook: Binding, items: Sequence[StreamItem], answer: Sequence[StreamItem] | None) -> None:
        """For the trace: how many items went in and came out; None is the same again."""
        scope = self._ex.scope
        if scope.record is None:
            return
        tally = scope.tally(hook.plugin_id, hook.method)
        tally.items_in += len(items)
        tally.items_out += len(items) if answer is None else len(answer)
        tally.changed += answer is not None

    def _remember(self, item: StreamItem, size_bytes: int) -> None:
        self._history.append(item)
        self._history_bytes += size_bytes
        while len(self._history) > HISTORY_ITEMS or (self._history_bytes > HISTORY_BYTES and self._history):
            dropped = self._history.popleft()
            assert dropped.body is not UNSET
            self._history_bytes -= len(dropped.body.to_bytes())
