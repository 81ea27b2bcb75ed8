"""Attempts with credentials that a plugin hands out one by one, for models that no credential of ours serves.

Three answers stay apart up to the client: a credential; nothing available (503 `auth_not_found`, not worth another try
now); nobody could be asked (the plugin's error as it is, by convention 503 `credential_source_unavailable` with
`retryable`). Who rests, who is next and when to stop is decided where the credentials are kept (spec credentials 10.2).
"""

from typing import Final

import structlog

from host.config.model import config_path
from host.credentials.affinity import session_of
from host.credentials.parse import InvalidCredential, parse_settings
from host.errors import RequestError
from host.pipeline.attempt import ExecutorFailed, Once, T, run_attempt, verdict_on
from host.pipeline.execution import Execution, request_fields
from host.pipeline.readiness import make_ready
from host.pipeline.settle import Settler
from host.pipeline.state import EXECUTE_STREAM, Lane, Plan
from host.pipeline.told import tell_failure, tell_nobody
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.credentials import CredentialSourceRequest, CredentialSourceResponse

log = structlog.get_logger("host.pipeline.source")

SOURCE: Final = "credential_source.next"
UNAVAILABLE: Final = "credential_source_unavailable"
MAX_ATTEMPTS: Final = 100
"""A source that hands out one credential after the other must not keep a request for ever."""


def has_source(ex: Execution, plan: Plan) -> bool:
    """Whether a model that no credential of ours serves may be served with one that is kept elsewhere."""
    return not plan.known and SOURCE in ex.state.plugins.bindings


async def run_from_source(invoker: Invoker, settler: Settler, ex: Execution, plan: Plan, once: Once[T]) -> T:
    """The first answer with any credential that is handed out.

    Raises ExecutorFailed with the last upstream error; what the source raised, or RequestError 503 `auth_not_found`,
    when there was no upstream yet.
    """
    binding = ex.state.plugins.bindings[SOURCE][0]
    failure: ExecutorFailed | None = None
    tried: set[str] = set()
    for count in range(1, MAX_ATTEMPTS + 1):
        try:
            lane = await _next_lane(invoker, ex, binding, plan, count)
        except (RequestError, PluginError, PluginTransportError) as refusal:
            # What an upstream said is worth more to the client than that nobody is left to ask.
            if failure is None:
                raise
            raise failure from refusal
        if lane.credential.id in tried:
            ex.record("source_repeats", plugin_id=binding.plugin_id, credential=lane.credential.id)
            break
        tried.add(lane.credential.id)
        try:
            return await _attempt(invoker, settler, ex, lane, plan, once)
        except ExecutorFailed as failed:
            failure, verdict = failed, verdict_on(ex, lane, failed.error)
            tell_failure(ex, lane, failed.error, verdict)
            if not verdict.rotate:
                raise
    assert failure is not None, "the first credential was tried"
    raise failure


async def _attempt(invoker: Invoker, settler: Settler, ex: Execution, lane: Lane, plan: Plan, once: Once[T]) -> T:
    if lane.prepare is not None:
        try:
            await make_ready(invoker, ex, lane)
        except (PluginError, PluginTransportError) as error:
            raise ExecutorFailed(error) from error
    return await run_attempt(invoker, settler, ex, lane, lane.upstreams[0], plan.suffix, once)


async def _next_lane(invoker: Invoker, ex: Execution, binding: Binding, plan: Plan, count: int) -> Lane:
    """Ask for a credential. Raises RequestError 503 for none, PluginError 502 for one that cannot be used."""
    base = ex.state.registry.resolve(plan.model).base
    try:
        answer = await invoker.call(binding, lambda it: _request(ex, it, model=base, count=count), ex.scope)
    except (PluginError, PluginTransportError) as error:
        code = error.code if isinstance(error, PluginError) else error.to_error_body().code
        if isinstance(error, PluginTransportError) or code == UNAVAILABLE:
            log.error(
                "credential_source.unavailable",
                plugin_id=binding.plugin_id,
                request_id=ex.scope.request_id,
                code=code,
                reason=str(error),
            )
        raise
    value: CredentialSourceResponse | None = answer.value
    if value is None or value.record is None:
        ex.record("source", plugin_id=binding.plugin_id, count=count, credential="")
        message = f"no credential is available for model {plan.model}"
        refusal = RequestError(503, "auth_not_found", message, details={"model": plan.model})
        if count == 1:
            tell_nobody(ex, plan, refusal)
        raise refusal
    try:
        lane = _lane_of(ex, binding, value, base)
    except InvalidCredential as problem:
        message = f"plugin {binding.plugin_id!r} handed out a credential that cannot be used: {problem}"
        raise RequestError(502, "invalid_auth", message) from None
    ex.record(
        "source", plugin_id=binding.plugin_id, count=count, credential=lane.credential.id, model=lane.upstreams[0]
    )
    return lane


def _request(ex: Execution, binding: Binding, *, model: str, count: int) -> CredentialSourceRequest:
    session = session_of(ex.headers, lambda: ex.content.data)
    return CredentialSourceRequest(
        **request_fields(ex.scope),
        model=model,
        requested_model=ex.request.model,
        source_format=ex.source,
        stream=ex.method == EXECUTE_STREAM,
        count=count,
        session=session.key(session.name, ex.request.principal.scope) if session is not None else "",
        headers=ex.visible_headers(ex.headers, binding),
    )


def _lane_of(ex: Execution, binding: Binding, value: CredentialSourceResponse, model: str) -> Lane:
    """The lane of a credential that was handed out. Raises InvalidCredential."""
    assert value.record is not None
    state = ex.state
    credential = state.parts.handed_out.take(
        value.record,
        plugin_id=binding.plugin_id,
        settings=parse_settings(state.config, config_path(state.config, state.config.auth_dir)),
        mint=state.manager.mint,
        now_s=state.manager.clock(),
    )
    upstream = value.model or model
    lane = state.lane_for(credential, model=upstream, method=ex.method, source=ex.source, wanted=ex.wanted)
    if lane is None:
        raise InvalidCredential(f"no plugin that runs serves provider {credential.provider!r} in this way")
    return lane
