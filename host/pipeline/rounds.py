"""Between two rounds over the credentials: is another one worth it, and how long to wait for it (spec 5.7, 12.3)."""

from collections.abc import Callable
from typing import Final

from host.credentials.classify import PASSING, hint_of
from host.credentials.pool import Exhausted
from host.credentials.retry import MAX_WAITING, ROUND_STATUSES, Search, wait_before_round, with_jitter
from host.errors import RequestError, to_error_body
from host.pipeline.execution import Execution
from host.pipeline.state import EXHAUSTED, Plan
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.payloads.executor import ExecutorExhaustedRequest, ExecutorExhaustedResponse

LIFTED_BY_PLUGIN: Final = PASSING
"""What the provider's plugin may know better: that a limit is no limit any more."""


async def another_round(
    invoker: Invoker,
    ex: Execution,
    plan: Plan,
    search: Search,
    error: PluginError | PluginTransportError | RequestError,
) -> bool:
    """Whether there is one after a round ended with `error`; returns when it may begin. Cancelling it ends the wait."""
    verdict = search.verdict
    if search.is_last or (verdict is not None and (not verdict.rotate or verdict.fault == "plugin")):
        return False
    body = to_error_body(error)
    pool = ex.state.pool
    fresh = search.is_full and not isinstance(pool.best(plan.tiers, search), Exhausted)
    search.next_round()
    free_in_s = pool.free_in_s(plan.tiers, search)
    wait_s = wait_before_round(body.http_status, hint_of(body), free_in_s, fresh=fresh, search=search)
    if wait_s is None:
        if body.http_status in ROUND_STATUSES and free_in_s is not None:
            after_s = round(free_in_s or hint_of(body), 3)
            ex.record("round_refused", why="longer than max-retry-interval", after_s=after_s)
        return await _plugin_helps(invoker, ex, plan, search, body)
    return await _wait(ex, search, wait_s)


async def _wait(ex: Execution, search: Search, wait_s: float) -> bool:
    health = ex.state.pool.health
    if not wait_s:
        ex.record("round", number=search.round)
        return True
    if health.waiting >= MAX_WAITING:
        ex.record("round_refused", why="too many requests wait already", waiting=health.waiting)
        return False
    wait_s = with_jitter(wait_s, search.policy.max_wait_s, uniform=health.uniform)
    ex.record("round", number=search.round, after_s=round(wait_s, 3))
    health.waiting += 1
    try:
        await health.sleep(wait_s)
    finally:
        health.waiting -= 1
    return True


async def _plugin_helps(invoker: Invoker, ex: Execution, plan: Plan, search: Search, body: ErrorBody) -> bool:
    """Ask the plugins of the providers, in order, whether one more round makes sense: they may have done something
    about it. Once per request. A plugin that says so ends the blocks of its provider for this model."""
    hooks = ex.state.plugins.bindings.get(EXHAUSTED)
    if not hooks:
        return False
    search.is_last = True
    for provider in plan.providers:
        view = ex.state.plugins.executor_of_provider(provider)
        binding = ex.state.plugins.binding(view.plugin_id, EXHAUSTED) if view is not None else None
        if binding is None:
            continue
        request = ExecutorExhaustedRequest(
            request_id=ex.scope.request_id,
            parent_request_id=ex.scope.parent_request_id,
            attempt=ex.scope.attempt,
            provider=provider,
            model=plan.model,
            metadata=ex.metadata,
            error=body,
        )
        try:
            answer = await invoker.call(binding, _constant(request), ex.scope)
        except (PluginError, PluginTransportError):
            continue  # in the trace and in the log; what ended the round is still the answer
        value: ExecutorExhaustedResponse | None = answer.value
        if value is None or not value.retry:
            continue
        wait_s = max(0, value.retry_after_ms or 0) / 1000
        if wait_s > search.policy.max_wait_s:
            ex.record(
                "round_refused", plugin_id=binding.plugin_id, why="longer than max-retry-interval", after_s=wait_s
            )
            continue
        search.next_round(of_all=True)
        search.skip(provider, False)
        if not await _wait(ex, search, wait_s):
            return False
        ex.state.pool.lift(plan.tiers, provider, LIFTED_BY_PLUGIN)
        return True
    return False


def _constant(request: ExecutorExhaustedRequest) -> Callable[[Binding], ExecutorExhaustedRequest]:
    return lambda _: request
