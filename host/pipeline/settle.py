"""Step 9: usage.handle once per attempt that reached an upstream, request.complete once per request.

Both run in the background, detached from the request: neither can delay, change or cancel it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog
from msgspec import Struct

from host.credentials.records import Credential
from host.observe.trace import DecisionTrace, RequestTrace, Shape
from host.pipeline.execution import Attempt, Execution, request_fields
from host.pipeline.request import ClientRequest
from host.pipeline.state import EXECUTE_STREAM
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from host.runtime.scope import HookTally
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody
from pluginabi.frames import Usage
from pluginabi.payloads.common import Payload
from pluginabi.payloads.intercept import Outcome, RequestCompleteRequest
from pluginabi.payloads.usage import UsageHandleRequest

log = structlog.get_logger("host.pipeline.settle")

_ATTEMPT: Final = Shape(
    "attempt",
    *("number", "credential", "label", "plugin_id", "model", "status", "code", "duration_ms"),
)
_TALLY: Final = Shape("calls", *("plugin_id", "method", "calls", "duration_ms", "items_in", "items_out", "changed"))
_OUTCOME: Final = Shape("outcome", "outcome", "status", "code")
MAX_MESSAGE: Final = 1024
"""Characters of an error that are kept."""
CLIENT_GONE: Final = ErrorBody(message="the client left", code="cancelled", http_status=499, origin="host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a request ended; for metrics and access logs."""

    request_id: str
    protocol: str
    model: str
    provider: str
    stream: bool
    outcome: Outcome
    status: int
    duration_s: float
    attempts: int
    usage: Usage | None


CompletedObserver = Callable[[Completed], None]


class FailedRequest(Struct, frozen=True, kw_only=True):
    """A request that ended with an error. `message` is as somebody else wrote it: redact it before it is shown."""

    request_id: str
    ended_at_s: float
    status: int
    code: str
    origin: str
    message: str
    protocol: str
    endpoint: str
    model: str
    caller: str
    attempts: int
    provider: str = ""
    upstream_model: str = ""
    credential: Credential | None = None


class Recorder(Protocol):
    """Keeps what operators ask for afterwards."""

    @property
    def wants_usage(self) -> bool:
        """Whether `used` is to be told; asked once per attempt."""

    def used(
        self, record: UsageHandleRequest, credential: Credential, *, request: ClientRequest, answer_tier: str = ""
    ) -> None:
        """One attempt of `request` that reached an upstream is over. `answer_tier`: the service tier it was served in,
        as far as the upstream said."""

    def failed(self, request: FailedRequest) -> None:
        """A request is over and ended with an error."""


class Settler:
    """Reports what attempts used and how requests ended."""

    def __init__(
        self,
        invoker: Invoker,
        tasks: TaskGroup,
        *,
        trace: DecisionTrace | None = None,
        observe: CompletedObserver | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._invoker = invoker
        self._tasks = tasks
        self._trace = trace
        self._observe = observe
        self._recorder = recorder

    def wants_usage(self, ex: Execution) -> bool:
        """Whether anybody is told what a request used."""
        hooks = ex.state.plugins.bindings
        return self._observe is not None or "usage.handle" in hooks or "request.complete" in hooks or self.is_recorded

    @property
    def is_recorded(self) -> bool:
        """Whether what attempts used is kept for operators."""
        return self._recorder is not None and self._recorder.wants_usage

    def attempt_ended(
        self, ex: Execution, attempt: Attempt, *, usage: Usage | None = None, error: ErrorBody | None = None
    ) -> None:
        """One attempt is over; tells `usage.handle` when it reached an upstream. Later calls do nothing."""
        if attempt.settled:
            return
        attempt.settled = True
        duration_ms = (time.monotonic() - attempt.started_s) * 1000
        if ex.trace is not None:
            if error is not None:
                ex.trace.has_long = True
            ex.trace.note(
                _ATTEMPT,
                attempt.number,
                attempt.lane.credential.id,
                attempt.lane.credential.label,
                attempt.lane.binding.plugin_id,
                attempt.upstream_model,
                error.http_status if error is not None else 200,
                error.code if error is not None else "",
                round(duration_ms, 3),
            )
        hooks = ex.state.plugins.implementers("usage.handle")
        recorder = self._recorder if self._recorder is not None and self._recorder.wants_usage else None
        if not (hooks or recorder) or not attempt.reached_upstream:
            return
        payload = _usage_payload(ex, attempt, usage, error, duration_ms)
        if recorder is not None:
            recorder.used(payload, attempt.lane.credential, request=ex.request, answer_tier=attempt.answer_tier)
        for hook in hooks:
            self._spawn(hook, payload, ex)

    def request_ended(
        self,
        ex: Execution,
        outcome: Outcome,
        *,
        status: int,
        error: ErrorBody | None = None,
        usage: Usage | None = None,
    ) -> None:
        """The request is over; tells `request.complete`. Later calls do nothing."""
        if ex.settled:
            return
        ex.settled = True
        duration_s = time.monotonic() - ex.started_s
        if ex.trace is not None:
            if error is not None:
                ex.trace.has_long = True
            if ex.scope.tallies:
                _note_tallies(ex.trace, ex.scope.tallies)
            ex.trace.note(_OUTCOME, outcome, status, error.code if error is not None else "")
            if self._trace is not None:
                self._trace.finish(ex.trace)
        if error is not None and self._recorder is not None:
            self._recorder.failed(_failed(ex, status, error))
        if self._observe is not None:
            self._observe(_completed(ex, outcome, status, duration_s, usage))
        hooks = ex.state.plugins.implementers("request.complete", ex.scope.skip)
        if not hooks:
            return
        attempt = ex.last_attempt
        payload = RequestCompleteRequest(
            **request_fields(ex.scope),
            source_format=ex.source,
            endpoint=ex.request.endpoint,
            model=attempt.upstream_model if attempt is not None else ex.model,
            requested_model=ex.request.model,
            stream=ex.method == EXECUTE_STREAM,
            outcome=outcome,
            status=status,
            error=error,
            started_at=rfc3339(ex.started_at_s),
            completed_at=rfc3339(time.time()),
            duration_ms=duration_s * 1000,
            usage=usage,
            metadata=attempt.metadata if attempt is not None else ex.metadata,
        )
        for hook in hooks:
            self._spawn(hook, payload, ex)

    def _spawn(self, hook: Binding, payload: Payload, ex: Execution) -> None:
        try:
            self._tasks.start(self._tell(hook, payload, ex), name=f"{hook.method}:{hook.plugin_id}")
        except RuntimeError:
            log.warning("settle.too_late", plugin_id=hook.plugin_id, method=hook.method, request_id=ex.scope.request_id)

    async def _tell(self, hook: Binding, payload: Payload, ex: Execution) -> None:
        await self._invoker.call(hook, lambda _: payload, ex.scope)


def _note_tallies(trace: RequestTrace, tallies: Mapping[tuple[str, str], HookTally]) -> None:
    for (plugin_id, method), tally in tallies.items():
        trace.note(
            _TALLY,
            plugin_id,
            method,
            tally.calls,
            round(tally.duration_s * 1000, 3),
            tally.items_in,
            tally.items_out,
            tally.changed,
        )


def _usage_payload(
    ex: Execution, attempt: Attempt, usage: Usage | None, error: ErrorBody | None, duration_ms: float
) -> UsageHandleRequest:
    credential = attempt.lane.credential
    metadata = attempt.metadata
    return UsageHandleRequest(
        **{**request_fields(ex.scope), "attempt": attempt.number},
        provider=credential.provider,
        executor=attempt.lane.binding.plugin_id,
        model=attempt.upstream_model,
        requested_model=ex.request.model,
        caller=ex.request.principal.name,
        credential_id=credential.id,
        credential_label=credential.label,
        source=credential.attributes.get("source", ""),
        endpoint=ex.request.endpoint,
        stream=ex.method == EXECUTE_STREAM,
        reasoning_effort=metadata.get("reasoning_effort", ""),
        service_tier=metadata.get("service_tier", ""),
        requested_at=rfc3339(attempt.started_at_s),
        duration_ms=duration_ms,
        first_byte_ms=attempt.first_byte_ms,
        failed=error is not None,
        error=error,
        usage=usage or Usage(),
        response_headers=attempt.response_headers,
        metadata=metadata,
    )


def _failed(ex: Execution, status: int, error: ErrorBody) -> FailedRequest:
    attempt = ex.last_attempt
    credential = attempt.lane.credential if attempt is not None else None
    return FailedRequest(
        request_id=ex.scope.request_id,
        ended_at_s=time.time(),
        status=status,
        code=error.code,
        origin=error.origin or "",
        message=error.message[:MAX_MESSAGE],
        protocol=ex.source,
        endpoint=ex.request.endpoint,
        model=ex.request.model,
        caller=ex.request.principal.name,
        attempts=ex.attempts,
        provider=attempt.lane.provider if attempt is not None else "",
        upstream_model=attempt.upstream_model if attempt is not None else "",
        credential=credential,
    )


def _completed(ex: Execution, outcome: Outcome, status: int, duration_s: float, usage: Usage | None) -> Completed:
    attempt = ex.last_attempt
    return Completed(
        request_id=ex.scope.request_id,
        protocol=ex.source,
        model=attempt.upstream_model if attempt is not None else ex.model,
        provider=attempt.lane.provider if attempt is not None else "",
        stream=ex.method == EXECUTE_STREAM,
        outcome=outcome,
        status=status,
        duration_s=duration_s,
        attempts=ex.attempts,
        usage=usage,
    )


def rfc3339(moment_s: float) -> str:
    """A wall-clock time as RFC 3339 text."""
    return datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
