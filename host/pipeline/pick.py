"""Step 4, scheduler.pick: a scheduler plugin, else the built-in strategy (spec plugin-abi 6, credentials 4)."""

from collections.abc import Sequence
from itertools import islice
from typing import Final, cast

import structlog

from host.credentials.pool import NOBODY, Exhausted, Tier, ceil_seconds
from host.credentials.retry import Search
from host.credentials.select import Strategy
from host.errors import RequestError
from host.observe.trace import Shape
from host.pipeline.candidates import shown_at, shown_positions
from host.pipeline.executed import no_executor
from host.pipeline.execution import Execution, request_fields, shown_body, shown_parts
from host.pipeline.sessions import bind_session, keep_preferred, keep_session
from host.pipeline.state import EXECUTE_STREAM, Lane, Plan
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from pluginabi.body import Body
from pluginabi.payloads.routing import SchedulerPickRequest, SchedulerPickResponse

log = structlog.get_logger("host.pipeline.pick")

DELEGATES: Final = ("round-robin", "weighted-round-robin", "fill-first")
MAX_SHOWN: Final = 20
"""Candidates in the decision trace."""
_PICKED: Final = Shape("picked", "credential", "by", "candidates", "resting")


class NoCredential(RequestError):
    """Nobody can be picked right now; `body` says why and when that may change."""


async def pick(invoker: Invoker, ex: Execution, plan: Plan, search: Search) -> Lane:
    """The lane for the next attempt, of a credential that is free.

    Raises RequestError when none is left, and PluginError when the scheduler vetoes (its status is kept).
    """
    pool = ex.state.pool
    strategy, delegated = pool.policy.strategy, False
    schedulers = ex.state.plugins.bindings.get("scheduler.pick")
    if schedulers:
        chosen = await _ask(invoker, ex, schedulers[0], plan, search)
        if isinstance(chosen, Lane):
            bind_session(ex, chosen)
            return chosen
        delegated = chosen is not None
        strategy = chosen or strategy
    if ex.preferred and (preferred := keep_preferred(ex, plan, search)) is not None:
        bind_session(ex, preferred)
        return preferred
    if ex.session is not None and not delegated and (kept := await keep_session(ex, plan, search)) is not None:
        return kept
    found = _choose(ex, plan, search, strategy)
    if isinstance(found, Exhausted):
        raise _refusal(ex, plan, found)
    tier, position = found
    lane = plan.lane(tier, position)
    if ex.trace is not None:
        ready = tier.ready
        resting = len(ready.members) - ready.count or None
        ex.trace.note(_PICKED, lane.credential.id, strategy, _first_ids(tier, strategy), resting)
    if ex.session is not None:
        bind_session(ex, lane)
    return lane


def _first_ids(tier: Tier, strategy: Strategy) -> Sequence[str]:
    ready, members = tier.ready, tier.ready.members
    if strategy != "weighted-round-robin" or members.all_weighted:
        return ready.first_ids(MAX_SHOWN)
    weighted = (it for it in ready.free() if members.credentials[it].weight > 0)
    return [members.ids[it] for it in islice(weighted, MAX_SHOWN)]


def _choose(ex: Execution, plan: Plan, search: Search, strategy: Strategy) -> tuple[Tier, int] | Exhausted:
    pool = ex.state.pool
    if _prefers_websockets(ex, plan, search):
        cursor = f"{plan.cursor}#websockets"
        found = pool.choose(plan.websocket_tiers, search, strategy=strategy, cursor=cursor)
        if not isinstance(found, Exhausted):
            return found
    return pool.choose(plan.tiers, search, strategy=strategy, cursor=plan.cursor)


def _best(ex: Execution, plan: Plan, search: Search) -> tuple[Tier, int] | Exhausted:
    """The tier whose members a scheduler is shown, and how many of them can be picked."""
    if _prefers_websockets(ex, plan, search):
        found = ex.state.pool.best(plan.websocket_tiers, search)
        if not isinstance(found, Exhausted):
            return found
    return ex.state.pool.best(plan.tiers, search)


def _prefers_websockets(ex: Execution, plan: Plan, search: Search) -> bool:
    return ex.request.demands.websocket and bool(plan.websocket_tiers) and not search.only


async def _ask(
    invoker: Invoker, ex: Execution, scheduler: Binding, plan: Plan, search: Search
) -> Lane | Strategy | None:
    """The scheduler's lane, or the built-in strategy it names, or None for the configured one."""
    found = _best(ex, plan, search)
    if isinstance(found, Exhausted):
        raise _refusal(ex, plan, found)
    tier, total = found
    everybody = scheduler.inputs.all_candidates
    positions = shown_positions(ex, plan, tier, search, total=total, everybody=everybody)
    candidates = shown_at(tier, positions)

    def build(binding: Binding) -> SchedulerPickRequest:
        return SchedulerPickRequest(
            **request_fields(ex.scope),
            providers=tuple(dict.fromkeys(provider.lower() for provider in plan.providers)),
            model=plan.model,
            requested_model=ex.request.model,
            stream=ex.method == EXECUTE_STREAM,
            metadata=ex.metadata,
            candidates=candidates,
            candidates_total=total,
            headers=ex.visible_headers(ex.headers, binding),
            body=shown_body(binding.inputs, ex.content),
            body_parts=shown_parts(binding.inputs, ex.content),
            body_size=len(ex.content.data),
        )

    answer = await invoker.call(scheduler, build, ex.scope)
    if answer.failed_open:
        return None
    value: SchedulerPickResponse = answer.value
    why = ""
    if value.auth_id:
        position = tier.ready.members.positions.get(value.auth_id)
        why = _why_not(ex, tier, position, search)
        if position is not None and not why:
            ex.record(
                "picked",
                credential=value.auth_id,
                by=scheduler.plugin_id,
                candidates=[it.id for it in candidates[:MAX_SHOWN]],
                **({"of": total} if total > len(candidates) else {}),
                reason=value.reason,
            )
            return plan.lane(tier, position)
    delegate = value.delegate.strip()
    if not value.auth_id and delegate in DELEGATES:
        ex.record("delegated", plugin_id=scheduler.plugin_id, strategy=delegate, reason=value.reason)
        return cast(Strategy, delegate)
    if value.auth_id or delegate:
        why = why or "unknown delegate"
        ex.record("pick_refused", plugin_id=scheduler.plugin_id, why=why, answer=value.auth_id or delegate)
        log.warning("pick.refused", plugin_id=scheduler.plugin_id, request_id=ex.scope.request_id, why=why)
    return None


def _why_not(ex: Execution, tier: Tier, position: int | None, search: Search) -> str:
    """Why the credential that a scheduler names is not taken; empty when it is. It need not have been shown."""
    if position is None:
        return "unknown auth id"
    why = ex.state.pool.why_not(tier, position, search)
    return "no longer free" if why == "resting" else why


def _refusal(ex: Execution, plan: Plan, why: Exhausted) -> NoCredential:
    resting = plan.total - sum(tier.ready.count for tier in plan.tiers)
    ex.record("no_credential", why=why.reason, resting=resting, of=plan.total, back_in_s=round(why.retry_after_s, 3))
    return exhausted(plan, why, source=ex.source)


def refuse_without_lanes(plan: Plan, source: str) -> RequestError:
    """Why a plan has no lanes."""
    if plan.unsupported:
        upstream = ", ".join(plan.unsupported)
        return RequestError(
            400,
            "unsupported_protocol_pair",
            f"model {plan.model!r} is served in {upstream} and nobody translates between {source} and that",
            details={"source_format": source, "upstream_formats": list(plan.unsupported), "model": plan.model},
        )
    if plan.missing_method:
        return RequestError(
            400,
            "unsupported_operation",
            f"the provider of model {plan.model!r} cannot do this",
            details={"model": plan.model},
        )
    if plan.unexecuted:
        why = "; ".join(no_executor(provider) for provider in plan.unexecuted)
        return RequestError(
            500,
            "executor_not_found",
            f"model {plan.model!r} is configured, but {why}: install or enable one, `jackfield plugins list` says which"
            " there are",
            details={"model": plan.model, "providers": list(plan.unexecuted)},
        )
    if plan.known:
        return exhausted(plan, NOBODY, source=source)
    return RequestError(
        400,
        "model_not_found",
        f"unknown provider for model {plan.model}" if plan.model else "the request names no model",
        details={"param": "model", "model": plan.model},
    )


def exhausted(plan: Plan, why: Exhausted, *, source: str) -> NoCredential:
    """The refusal when no credential can be picked (spec credentials 4.8)."""
    if why.reason == "cooling":
        return _cooling(plan, why.retry_after_s, source)
    code = "auth_not_found" if why.reason == "not_found" else "auth_unavailable"
    text = "no auth available" if why.reason == "not_found" else "no credential can serve this right now"
    providers = ",".join(plan.providers) or "unknown"
    wait_ms = ceil_seconds(why.retry_after_s) * 1000 if why.retry_after_s > 0 else None
    where = f"(providers={providers}, model={plan.model or 'unknown'})"
    return NoCredential(503, code, f"{text} {where}", retry_after_ms=wait_ms)


def _cooling(plan: Plan, retry_after_s: float, source: str) -> NoCredential:
    provider = plan.providers[0] if len(plan.providers) == 1 else ""
    wait_s = ceil_seconds(retry_after_s)
    message = f"All credentials for model {plan.model or 'requested model'} are cooling down"
    message += f" via provider {provider}" if provider else ""
    facts = {
        "code": "model_cooldown",
        "message": message,
        "model": plan.model,
        **({"provider": provider} if provider else {}),
        "reset_time": duration_text(wait_s),
        "reset_seconds": wait_s,
    }
    own_shape = source.startswith("openai")
    return NoCredential(
        429,
        "model_cooldown",
        message,
        retry_after_ms=wait_s * 1000,
        details=facts,
        **({"body": Body.from_value({"error": facts}), "body_protocol": source} if own_shape else {}),
    )


def duration_text(seconds: int) -> str:
    """`45s`, `1m0s`, `2h5m0s`; at least one second."""
    seconds = max(seconds, 1)
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"
