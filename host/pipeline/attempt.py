"""Steps 4 to 7 for one request: credential after credential until one answers (spec credentials 5.1)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from msgspec import UNSET

from host.credentials.classify import Verdict, classify
from host.credentials.records import with_suffix
from host.errors import RequestError, to_error_body
from host.pipeline.execution import (
    Attempt,
    Content,
    Execution,
    client_body,
    shown_body,
    shown_parts,
    shown_query,
)
from host.pipeline.formats import MODEL_IN_BODY
from host.pipeline.intercept import intercept_after
from host.pipeline.pick import pick, refuse_without_lanes
from host.pipeline.settle import CLIENT_GONE, Settler
from host.pipeline.state import COUNT, EXECUTE_STREAM, Lane, Plan
from host.pipeline.translate import translate_request
from host.registry.suffix import split_suffix
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, host_error
from pluginabi.immutable import FrozenDict
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse

T = TypeVar("T")
Once = Callable[[Execution, Attempt], Awaitable[T]]
"""One attempt. Raises ExecutorFailed when the executor or its upstream failed; anything else ends the request."""

NOT_SENT = frozenset({"unavailable", "start", "hello", "overload"})
"""Phases of a transport fault in which the plugin never got the call: another one may. After that nothing is replayed:
the upstream may have done, and billed, the work."""


class ExecutorFailed(Exception):
    """An executor failed before its first byte reached the client; `error` is what it raised."""

    def __init__(self, error: PluginError | PluginTransportError) -> None:
        super().__init__(str(error))
        self.error = error


async def run_attempts(invoker: Invoker, settler: Settler, ex: Execution, plan: Plan, once: Once[T]) -> T:
    """The first answer of any lane. Raises ExecutorFailed with the last upstream error, or the selection's refusal when
    there was none.

    Errors that every credential would get stop at once. Each failure is marked on its credential.
    """
    if not plan.lanes:
        raise refuse_without_lanes(plan, ex.source)
    tried: set[str] = set()
    last: PluginError | PluginTransportError | None = None
    limit = ex.state.config.max_retry_credentials
    counted = 0
    while True:
        if last is not None and 0 < limit <= counted:
            raise ExecutorFailed(last)
        try:
            lane = await pick(invoker, ex, plan, tried)
        except (RequestError, PluginError, PluginTransportError) as refusal:
            # What an upstream said is worth more to the client than that nobody is left to ask.
            if last is None:
                raise
            raise ExecutorFailed(last) from refusal
        tried.add(lane.credential.id)
        counted += 1
        for upstream in lane.upstreams if len(lane.upstreams) == 1 else usable_upstreams(ex, lane):
            try:
                return await run_attempt(invoker, settler, ex, lane, upstream, plan.suffix, once)
            except ExecutorFailed as failed:
                last = failed.error
                verdict = verdict_on(ex, last)
                mark_failed(ex, lane, upstream, verdict)
                if not verdict.rotate:
                    raise
                if verdict.whole_provider:
                    tried.update(it.credential.id for it in plan.lanes if it.provider == lane.provider)
                    break


async def run_attempt(
    invoker: Invoker, settler: Settler, ex: Execution, lane: Lane, upstream: str, suffix: str | None, once: Once[T]
) -> T:
    """One attempt, prepared, run, and settled when it fails."""
    attempt = await prepare(invoker, ex, lane, upstream, suffix)
    try:
        return await once(ex, attempt)
    except ExecutorFailed as failed:
        settler.attempt_ended(ex, attempt, error=to_error_body(failed.error))
        raise
    except asyncio.CancelledError:
        settler.attempt_ended(ex, attempt, error=CLIENT_GONE)
        raise
    except Exception as error:
        settler.attempt_ended(ex, attempt, error=to_error_body(error))
        raise


async def prepare(invoker: Invoker, ex: Execution, lane: Lane, upstream: str, suffix: str | None) -> Attempt:
    """Steps 5 and 6: everything the executor will see."""
    ex.attempts += 1
    ex.scope.attempt = ex.attempts
    model, own_suffix = split_suffix(with_suffix(upstream, suffix))
    metadata = FrozenDict({**ex.metadata, "selected_auth_id": lane.credential.id})
    content, headers = ex.content, ex.headers
    if "request.intercept_after" in ex.state.plugins.bindings:
        content, headers = await intercept_after(invoker, ex, lane, model=model, metadata=metadata)
    if content is not ex.content and (rewritten := changed_model(ex, content)) is not None:
        ex.record("model_changed", requested=ex.request.model, model=rewritten, attempt=ex.attempts)
        model = rewritten
    translated = await translate_request(invoker, ex, lane, content, model=model, suffix=own_suffix)
    attempt = Attempt(
        number=ex.attempts,
        lane=lane,
        upstream_model=model,
        suffix=own_suffix,
        content=translated,
        client_content=content,
        headers=headers,
        metadata=metadata,
        started_s=time.monotonic(),
        started_at_s=time.time(),
    )
    ex.last_attempt = attempt
    return attempt


def changed_model(ex: Execution, content: Content) -> str | None:
    """The model that after-interceptors wrote into the body: the upstream is asked for it as it is."""
    if ex.source not in MODEL_IN_BODY:
        return None
    model = content.model
    return model if model and model != ex.content.model else None


def executor_request(ex: Execution, attempt: Attempt) -> Callable[[Binding], ExecutorRequest]:
    """What the executor gets; the client's very bytes when nobody changed them."""
    lane = attempt.lane

    def build(binding: Binding) -> ExecutorRequest:
        inputs, content = binding.inputs, attempt.content
        return ExecutorRequest(
            request_id=ex.scope.request_id,
            parent_request_id=ex.scope.parent_request_id,
            attempt=ex.scope.attempt,
            model=attempt.upstream_model,
            requested_model=ex.request.model,
            source_format=lane.input_format,
            format=lane.output_format,
            stream=ex.method == EXECUTE_STREAM,
            alt=ex.request.alt,
            credential=lane.handle,
            metadata=attempt.metadata,
            headers=ex.visible_headers(attempt.headers, binding),
            query=shown_query(ex.query, binding),
            body=shown_body(inputs, content),
            client_body=client_body(inputs, attempt.client_content),
            body_parts=shown_parts(inputs, content),
            body_size=len(content.data),
        )

    return build


async def call_executor(invoker: Invoker, ex: Execution, attempt: Attempt) -> tuple[ExecutorResponse, Any]:
    """Step 7, not streamed: the executor's answer and the usage it reported. Raises ExecutorFailed."""
    attempt.reached_upstream = True
    try:
        answer = await invoker.call(attempt.lane.binding, executor_request(ex, attempt), ex.scope)
        if not 200 <= answer.value.status <= 299:
            raise bad_status(attempt, answer.value)
    except (PluginError, PluginTransportError) as error:
        attempt.reached_upstream = reached_upstream(error)
        raise ExecutorFailed(error) from error
    return answer.value, answer.usage


def bad_status(attempt: Attempt, answer: ExecutorResponse) -> PluginError:
    """An executor's answer has status 200 to 299. An error status is an error, whatever the envelope said."""
    binding = attempt.lane.binding
    if 400 <= answer.status <= 599:
        body: Any = answer.body
        return PluginError(
            ErrorBody(
                message=f"upstream answered {answer.status}",
                code="upstream_error",
                http_status=answer.status,
                headers=answer.headers,
                body=body if isinstance(body, Body) else UNSET,
                body_protocol=attempt.lane.output_format,
                origin="upstream",
            )
        )
    return host_error(
        "plugin_protocol_error", f"plugin {binding.plugin_id!r}, {binding.method}: status {answer.status} is no answer"
    )


def usable_upstreams(ex: Execution, lane: Lane) -> tuple[str, ...]:
    """The names of an alias pool to try, in order: it starts one further each time and leaves out blocked ones."""
    pool = ex.state.pool
    start = pool.cursors.next(f"pool:{lane.credential.id}:{lane.model}") % len(lane.upstreams)
    turned = lane.upstreams[start:] + lane.upstreams[:start]
    now_s = pool.clock()
    free = tuple(name for name in turned if pool.book.block(lane.credential.id, split_suffix(name)[0], now_s) is None)
    return free or turned[:1]


def state_model(lane: Lane, upstream: str) -> str:
    """Under which name the result counts."""
    return split_suffix(upstream)[0] if len(lane.upstreams) > 1 else lane.model


def verdict_on(ex: Execution, error: PluginError | PluginTransportError) -> Verdict:
    """What a failure means. A plugin that broke says nothing about its credential."""
    if isinstance(error, PluginTransportError):
        return Verdict(rotate=error.phase in NOT_SENT, reason=error.phase, whole_provider=True)
    body = to_error_body(error)
    return classify(body, transient_s=ex.state.transient_s, counting=ex.method == COUNT)


def mark_failed(ex: Execution, lane: Lane, upstream: str, verdict: Verdict) -> None:
    """Let the credential rest as the verdict says."""
    rest_s = ex.state.pool.failed(lane.credential, state_model(lane, upstream), verdict)
    if rest_s and ex.trace is not None:
        ex.trace.record(
            "cooldown",
            credential=lane.credential.id,
            model="" if verdict.whole_credential else state_model(lane, upstream),
            seconds=round(rest_s, 3),
            reason=verdict.reason,
        )


def mark_succeeded(ex: Execution, attempt: Attempt) -> None:
    """The credential served this model: its block, if it had one, is over."""
    lane = attempt.lane
    model = attempt.upstream_model if len(lane.upstreams) > 1 else lane.model
    ex.state.pool.succeeded(lane.credential, model)


def reached_upstream(error: PluginError | PluginTransportError) -> bool:
    """Whether the executor may have called its upstream before it failed."""
    return not (isinstance(error, PluginTransportError) and error.phase in NOT_SENT | {"body_size"})


def as_content(answer: ExecutorResponse) -> Content:
    """The body of an answer; none is an empty one."""
    return Content() if answer.body is UNSET else Content(body=answer.body)
