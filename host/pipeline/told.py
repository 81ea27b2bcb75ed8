"""What the log tells of credentials: which upstream failed with which of them, and why nobody can be picked.

Nothing here runs for a request that succeeds at once. A storm of failures does not become a storm of lines: see
`LineBrake`; every line says how many were held back before it. The decision trace has all of them.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import structlog

from host.credentials.classify import Verdict
from host.credentials.pool import CredentialPool, Tier
from host.credentials.records import Credential
from host.credentials.retry import Search
from host.credentials.spoken import without_secrets
from host.errors import RequestError, to_error_body
from host.pipeline.execution import Execution
from host.pipeline.state import Lane, Plan
from pluginabi.errors import PluginError, PluginTransportError

log = structlog.get_logger("host.pipeline.credentials")

MAX_NAMED: Final = 8
"""Credentials whose reason is told one by one."""
MAX_COUNTED: Final = 1000
"""Credentials that are looked at for the counts; a line about a pool of ten thousand must not hold everybody up."""
MAX_TEXT: Final = 200
"""Characters of what an upstream or a client said."""
_NOT_MEANT: Final = "not for this request"


def tell_failure(
    ex: Execution,
    lane: Lane,
    error: PluginError | PluginTransportError,
    verdict: Verdict,
    *,
    rest_s: float = 0.0,
    rests_for: str = "",
) -> None:
    """Log the failure of an attempt, and how long its credential rests for which reason."""
    credential, body = lane.credential, to_error_body(error)
    if body.code == "cancelled":
        return
    # Cut, because clients choose names: what is remembered must not be as large as what they send.
    subject = (credential.id, lane.model[:MAX_TEXT], body.http_status, body.code[:MAX_TEXT])
    if not ex.state.pool.health.lines.lets_pass(subject):
        return
    if isinstance(error, PluginError):
        body = to_error_body(without_secrets(error, credential))
    # The latest attempt was another credential's when this one could not be made ready.
    attempt = ex.last_attempt if ex.last_attempt is not None and ex.last_attempt.lane is lane else None
    began_s = attempt.started_s if attempt is not None else ex.started_s
    # A client's own fault is told without the upstream's words, which may quote the client's.
    is_clients = verdict.fault == "request"
    fields: dict[str, Any] = {
        "provider": lane.provider,
        "credential": credential.id,
        "label": credential.label,
        "plugin_id": lane.binding.plugin_id,
        "model": (attempt.upstream_model if attempt is not None else lane.upstreams[0])[:MAX_TEXT],
        "status": body.http_status,
        "code": body.code[:MAX_TEXT],
        "fault": verdict.fault,
        "request_id": ex.scope.request_id,
        "attempt": ex.attempts,
        "duration_ms": round((time.monotonic() - began_s) * 1000, 1),
        **({} if is_clients else {"reason": body.message[:MAX_TEXT]}),
        **({"rest_s": round(rest_s, 3), "rests_for": rests_for} if rest_s else {}),
    }
    log.log(logging.INFO if is_clients else logging.WARNING, "upstream.failed", **fields, **_held_back(ex))


def tell_nobody(ex: Execution, plan: Plan, refusal: RequestError) -> None:
    """Log why no credential can be picked for a request: for a few of them each reason, for the others how many."""
    body = refusal.body
    if not ex.state.pool.health.lines.lets_pass((plan.model[:MAX_TEXT], plan.providers, body.code)):
        return
    named: list[str] = []
    others: Counter[str] = Counter()
    for credential, why, details in islice(_reasons(ex, plan), MAX_COUNTED):
        if len(named) < MAX_NAMED and why != _NOT_MEANT:
            label = f" ({credential.label})" if credential.label else ""
            named.append(f"{credential.id}{label}: {why}{details}")
        else:
            others[why] += 1
    log.warning(
        "credential.none_free",
        model=plan.model[:MAX_TEXT],
        requested_model=ex.request.model[:MAX_TEXT],
        providers=list(plan.providers),
        status=body.http_status,
        code=body.code,
        request_id=ex.scope.request_id,
        candidates=plan.total,
        credentials=named,
        **({"others": dict(others.most_common())} if others else {}),
        **({"back_in_s": round(body.retry_after_ms / 1000, 3)} if body.retry_after_ms else {}),
        **_held_back(ex),
    )


def _held_back(ex: Execution) -> dict[str, int]:
    held = ex.state.pool.health.lines.held_back()
    return {"lines_held_back": held} if held else {}


def _reasons(ex: Execution, plan: Plan) -> Iterator[tuple[Credential, str, str]]:
    """Why each candidate cannot be picked, best priority first: the credential, the reason, what is known of it."""
    pool, demands = ex.state.pool, ex.request.demands
    search = Search(ex.state.policy, only=demands.pinned_auth_id or ex.owner, no_free_plan=demands.disallow_free_auth)
    search.leave_out(pool.withdrawn)
    if search.only and (place := pool.position_of(plan.tiers, search.only)) is not None:
        tier, position = place
        yield tier.ready.members.credentials[position], *_why_of(pool, tier, position, search)
        return
    for tier in plan.tiers:
        for position, credential in enumerate(tier.ready.members.credentials):
            yield credential, *_why_of(pool, tier, position, search)
    if not plan.tiers:
        wanted = {provider.lower() for provider in plan.providers}
        for credential in pool.credentials:
            if credential.provider.lower() in wanted:
                unusable = credential.status_message if credential.is_unusable else ""
                yield credential, "disabled" if credential.disabled else unusable or "does not serve the model", ""


def _why_of(pool: CredentialPool, tier: Tier, position: int, search: Search) -> tuple[str, str]:
    why = pool.why_not(tier, position, search)
    state = tier.ready.block_at(position) if why == "resting" else None
    if state is None:
        return why or "free again", ""
    cause = state.cause
    what = f" (status {cause.status} {cause.code})" if cause.status else ""
    return state.reason or "resting", f"{what}, back in {max(0.0, state.until_s - pool.clock()):.0f} s"
