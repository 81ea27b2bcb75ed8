"""Steps 4 to 7 for one request: credential after credential until one answers (spec credentials 5.1)."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from msgspec import UNSET

from host.credentials.classify import Verdict, classify
from host.credentials.cooldown import cause_of
from host.credentials.records import with_suffix
from host.credentials.retry import Search
from host.credentials.spoken import without_secrets
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
from host.pipeline.formats import MODEL_IN_BODY, OPTIONAL_ENDPOINTS
from host.pipeline.intercept import intercept_after
from host.pipeline.patch import apply_patch, is_object
from host.pipeline.pick import NoCredential, pick, refuse_without_lanes
from host.pipeline.readiness import make_ready, rests
from host.pipeline.rounds import another_round
from host.pipeline.sessions import prolong_session, unbind_session
from host.pipeline.settle import CLIENT_GONE, Settler
from host.pipeline.shown import shown_credential
from host.pipeline.state import COUNT, EXECUTE_STREAM, Lane, Plan
from host.pipeline.told import tell_failure, tell_nobody
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
        self.error: PluginError | PluginTransportError = error


class Withdrawn(Exception):
    """A credential was taken away while an attempt with it was prepared."""


async def run_attempts(invoker: Invoker, settler: Settler, ex: Execution, plan: Plan, once: Once[T]) -> T:
    """The first answer of any lane, over as many rounds as the configuration allows. Raises ExecutorFailed with the
    last upstream error, or the selection's refusal when there was none.

    Errors that every credential would get stop at once. Each failure is marked on its credential. Cancelling it also
    ends the wait between two rounds.
    """
    if not plan.tiers:
        refusal = refuse_without_lanes(plan, ex.source)
        if isinstance(refusal, NoCredential):
            tell_nobody(ex, plan, refusal)
        raise refusal
    demands = ex.request.demands
    only, no_free_plan = demands.pinned_auth_id or ex.owner, demands.disallow_free_auth
    search = Search(ex.state.policy, only=only, no_free_plan=no_free_plan)
    while True:
        try:
            return await _round(invoker, settler, ex, plan, search, once)
        except (ExecutorFailed, NoCredential) as failure:
            error = failure.error if isinstance(failure, ExecutorFailed) else failure
            if not await another_round(invoker, ex, plan, search, error):
                if isinstance(failure, NoCredential):
                    tell_nobody(ex, plan, failure)
                raise


async def _round(invoker: Invoker, settler: Settler, ex: Execution, plan: Plan, search: Search, once: Once[T]) -> T:
    """Credential after credential until one answers; each is tried once. Raises as `run_attempts`."""
    while True:
        if search.failure is not None and search.is_full:
            raise search.failure
        try:
            lane = await pick(invoker, ex, plan, search)
        except (RequestError, PluginError, PluginTransportError) as refusal:
            # What an upstream said is worth more to the client than that nobody is left to ask.
            if search.failure is None:
                raise
            search.is_last = search.is_last or not isinstance(refusal, RequestError)
            raise search.failure from refusal
        if _is_withdrawn(ex, lane, search):
            continue
        if lane.prepare is not None and not await _ready(invoker, ex, lane, search):
            continue
        if lane.prepare is not None and (rests(ex, lane, *lane.upstreams) or _is_withdrawn(ex, lane, search)):
            continue  # since it was picked
        for number, upstream in enumerate(lane.upstreams if len(lane.upstreams) == 1 else usable_upstreams(ex, lane)):
            if number and _is_withdrawn(ex, lane, search):
                break
            if number and rests(ex, lane, upstream):
                continue  # since the one before was tried
            is_renewed, verdict = False, None
            while True:
                try:
                    return await run_attempt(invoker, settler, ex, lane, upstream, plan.suffix, once)
                except Withdrawn:
                    _is_withdrawn(ex, lane, search)
                    break
                except ExecutorFailed as failed:
                    if is_renewed:
                        _note_vain(ex, lane, failed.error, began_s=_began_s(ex))
                    elif await _renewed(ex, lane, failed.error, began_s=_began_s(ex)):
                        is_renewed = True
                        continue
                    verdict = _note_failure(ex, lane, lane.key_of(upstream), search, failed)
                    break
            if verdict is None or verdict.whole_credential or verdict.whole_provider:
                break


def _is_withdrawn(ex: Execution, lane: Lane, search: Search) -> bool:
    """Whether an operator took the credential away since the request began; it is in the trace then."""
    pool = ex.state.pool
    why = pool.withdrawn(lane.credential)
    if why:
        ex.record("withdrawn", credential=lane.credential.id, why=why)
        search.leave_out(pool.withdrawn)
    return bool(why)


async def _renewed(
    ex: Execution, lane: Lane, error: PluginError | PluginTransportError, *, began_s: float | None
) -> bool:
    """Whether the upstream refused a token and there is a new one, which is worth one more try (spec 12.4). `began_s`:
    when it was sent, None: it was not."""
    credential = lane.credential
    if error.http_status != 401 or isinstance(error, PluginTransportError) or began_s is None:
        return False
    if not await ex.state.manager.refresh_now(credential.id, started_s=began_s):
        return False
    if ex.state.pool.withdrawn(credential):
        return False
    ex.record("token_renewed", credential=credential.id)
    return True


def _note_vain(ex: Execution, lane: Lane, error: PluginError | PluginTransportError, *, began_s: float | None) -> None:
    """When the new token is refused as well: a next one is not to be had for every request."""
    if isinstance(error, PluginError) and error.http_status == 401 and began_s is not None:
        ex.state.manager.refreshed_in_vain(lane.credential.id, started_s=began_s)


def _began_s(ex: Execution) -> float | None:
    return None if ex.last_attempt is None else ex.last_attempt.started_s


async def _ready(invoker: Invoker, ex: Execution, lane: Lane, search: Search) -> bool:
    """Whether the executor has the credential ready; a failure counts like one of the attempt itself."""
    is_renewed = False
    while True:
        began_s = time.monotonic()
        try:
            await make_ready(invoker, ex, lane)
        except (PluginError, PluginTransportError) as error:
            if is_renewed:
                _note_vain(ex, lane, error, began_s=began_s)
            elif await _renewed(ex, lane, error, began_s=began_s):
                is_renewed = True
                continue
            failed = ExecutorFailed(error)
            failed.__cause__ = error
            _note_failure(ex, lane, lane.keys[0], search, failed, also=lane.keys[1:])
            return False
        return True


def _note_failure(
    ex: Execution, lane: Lane, key: str, search: Search, failed: ExecutorFailed, *, also: Sequence[str] = ()
) -> Verdict:
    """Mark a failure on its credential. Raises it when nobody else may be tried."""
    verdict = verdict_on(ex, lane, failed.error)
    search.failure, search.verdict = failed, verdict
    search.note_tried(lane.credential.id)
    mark_failed(ex, lane, key, verdict, failed.error, also=also)
    if not verdict.rotate:
        raise failed
    if verdict.whole_provider:
        search.skip(lane.provider)
    return verdict


async def run_routed(invoker: Invoker, settler: Settler, ex: Execution, lane: Lane, once: Once[T]) -> T:
    """The one attempt of a plugin that a router chose: no credential, no scheduler, no retry; all else as always."""
    try:
        return await run_attempt(invoker, settler, ex, lane, lane.upstreams[0], None, once)
    except ExecutorFailed as failed:
        mark_failed(ex, lane, lane.keys[0], verdict_on(ex, lane, failed.error), failed.error)
        raise


async def run_attempt(
    invoker: Invoker, settler: Settler, ex: Execution, lane: Lane, upstream: str, suffix: str | None, once: Once[T]
) -> T:
    """One attempt, prepared, run, and settled when it fails. Raises Withdrawn before anything was sent."""
    attempt = await prepare(invoker, ex, lane, upstream, suffix)
    if ex.state.pool.withdrawn(lane.credential):
        raise Withdrawn
    try:
        return await once(ex, attempt)
    except ExecutorFailed as failed:
        if isinstance(failed.error, PluginError):
            failed.error = without_secrets(failed.error, lane.credential)
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
    ex.scope.attempt, ex.scope.mask = ex.attempts, partial(without_secrets, credential=lane.credential)
    model, own_suffix = split_suffix(with_suffix(upstream, suffix))
    metadata = FrozenDict({**ex.metadata, "selected_auth_id": lane.credential.id})
    content, headers = ex.content, ex.headers
    if "request.intercept_after" in ex.state.plugins.bindings:
        content, headers = await intercept_after(invoker, ex, lane, model=model, metadata=metadata)
    if content is not ex.content and (rewritten := changed_model(ex, content)) is not None:
        ex.record("model_changed", requested=ex.request.model, model=rewritten, attempt=ex.attempts)
        model = rewritten
    if ex.request.demands.websocket and not lane.credential.websockets:
        content = without_generate(content)
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
        key=lane.keys[0] if len(lane.keys) == 1 else lane.key_of(upstream),
        started_s=time.monotonic(),
        started_at_s=time.time(),
        began_s=ex.state.pool.clock(),
    )
    ex.last_attempt = attempt
    return attempt


def without_generate(content: Content) -> Content:
    """Without `generate`, which only upstreams that are spoken to over a WebSocket know (spec credentials 4.5)."""
    if b"generate" not in content.data or not is_object(content.data):
        return content
    return Content(apply_patch(content.data, b'{"generate":null}'), is_json=True)


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
            credential=shown_credential(ex.state.manager, lane.credential, lane.handle, binding),
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
    health = ex.state.pool.health
    start = health.pool_cursors.next(f"{lane.credential.id}:{lane.model}") % len(lane.upstreams)
    turned = lane.upstreams[start:] + lane.upstreams[:start]
    return tuple(name for name in turned if not rests(ex, lane, name))


def verdict_on(ex: Execution, lane: Lane, error: PluginError | PluginTransportError) -> Verdict:
    """What a failure means. A plugin that broke says nothing about its credential."""
    if isinstance(error, PluginTransportError):
        return Verdict(rotate=error.phase in NOT_SENT, fault="plugin", reason=error.phase, whole_provider=True)
    return classify(
        to_error_body(error),
        transient_s=ex.state.policy.transient_s,
        may_be_missing=ex.method == COUNT or lane.input_format in OPTIONAL_ENDPOINTS,
        rules=lane.credential.error_rules,
    )


def mark_failed(
    ex: Execution,
    lane: Lane,
    key: str,
    verdict: Verdict,
    error: PluginError | PluginTransportError,
    *,
    also: Sequence[str] = (),
) -> None:
    """Let the credential rest as the verdict says. `key`: the canonical name of the upstream's model; `also`: of
    further ones that it is true of."""
    if verdict.fault == "plugin" or (ex.route is not None and ex.route.lane is lane):
        tell_failure(ex, lane, error, verdict)
        return  # a plugin that a router chose has no credential that could rest
    pool, credential = ex.state.pool, lane.credential
    if credential.auth_kind == "apikey" and _was_replaced(ex, lane):
        pool.count_failure(credential)
        tell_failure(ex, lane, error, verdict)
        return  # another key has its name by now
    body = to_error_body(error)
    cause = cause_of(body.http_status, body.code, body.message)
    rest_s = pool.failed(credential, key, verdict, cause=cause, also=also)
    if verdict.fault == "credential":
        pool.health.ready.pop(credential.id, None)
    if ex.session is not None and verdict.fault not in ("request", "connection"):
        unbind_session(ex, credential.id)
    model = "" if verdict.whole_credential else key
    # Another failure may have set it aside for longer already: that one is why it rests.
    state = pool.book.states(credential.id).get(model)
    reason = verdict.reason if state is None else state.reason
    tell_failure(ex, lane, error, verdict, rest_s=rest_s, rests_for=reason)
    if rest_s and ex.trace is not None:
        ex.trace.record("cooldown", credential=credential.id, model=model, seconds=round(rest_s, 3), reason=reason)


def _was_replaced(ex: Execution, lane: Lane) -> bool:
    attempt = ex.last_attempt
    began_s = attempt.started_s if attempt is not None and attempt.lane is lane else ex.started_s
    return ex.state.manager.renewed_since(lane.credential.id, began_s)


def mark_succeeded(ex: Execution, attempt: Attempt) -> None:
    """The credential served this model: its block, if it had one, is over."""
    pool, credential_id = ex.state.pool, attempt.lane.credential.id
    # What a plugin hands out is counted where it is kept.
    is_ours = pool.succeeded(attempt.lane.credential)
    if is_ours and not pool.book.empty and pool.book.states(credential_id):
        # When a stream began is when the upstream accepted it; of a plain answer only the end is known.
        age_s = pool.clock() - attempt.began_s
        until_seen_s = age_s if attempt.first_byte_ms is None else attempt.first_byte_ms / 1000
        pool.disprove(
            credential_id, attempt.key, age_s=age_s, seen_ago_s=age_s - until_seen_s, headers=attempt.response_headers
        )
    if ex.session is not None:
        prolong_session(ex, attempt.lane)


def reached_upstream(error: PluginError | PluginTransportError) -> bool:
    """Whether the executor may have called its upstream before it failed."""
    return not (isinstance(error, PluginTransportError) and error.phase in NOT_SENT | {"body_size"})


def as_content(answer: ExecutorResponse) -> Content:
    """The body of an answer; none is an empty one."""
    return Content() if answer.body is UNSET else Content(body=answer.body)
