"""Which credential a request belongs to: that of its session, as a preference, or that of what it refers to.

Both are looked up only where there is a choice between credentials, and every outcome is in the decision trace.
"""

from typing import Final

from host.credentials.affinity import session_of
from host.credentials.policy import RoutingPolicy
from host.credentials.provenance import TTL_S, made_by_answer, made_by_event, references_in
from host.credentials.retry import Search
from host.pipeline.execution import Attempt, BoundSession, Execution
from host.pipeline.state import COUNT, Lane, Plan

RESPONSES: Final = "openai-response"


async def find_owner(ex: Execution, plan: Plan) -> str:
    """The credential that made what the request refers to; empty when none of the candidates did."""
    references = references_in(ex.content.data)
    if not references:
        return ""
    bindings, scope = ex.state.pool.health.origins, ex.request.principal.scope
    for reference in references:
        owner = await bindings.get(f"{scope}:{reference}")
        if owner is None:
            continue
        known = ex.state.pool.position_of(plan.tiers, owner) is not None
        ex.record("provider_state", credential=owner, rule=ex.state.policy.provider_state, known=known)
        return owner if known else ""
    ex.record("provider_state", credential="", why="it was not made here, or too long ago")
    return ""


def keep_preferred(ex: Execution, plan: Plan, search: Search) -> Lane | None:
    """The lane of the credential that can read what the request refers to, when it can be used."""
    place = ex.state.pool.position_of(plan.tiers, ex.preferred)
    if place is None or ex.state.pool.why_not(*place, search):
        return None
    ex.record("picked", credential=ex.preferred, by="provider_state")
    return plan.lane(*place)


def wants_owner(ex: Execution, policy: RoutingPolicy) -> bool:
    """Whether what a request refers to may matter."""
    return ex.source == RESPONSES and policy.provider_state != "ignored" and not ex.state.pool.health.origins.is_empty


def note_made(ex: Execution, attempt: Attempt, data: bytes, *, streamed: bool) -> None:
    """Remember which credential made what an answer brings into being. `data`: its body, or the stream's last event."""
    made = made_by_event(data) if streamed else made_by_answer(data)
    bindings, scope = ex.state.pool.health.origins, ex.request.principal.scope
    for reference in made:
        bindings.put(f"{scope}:{reference}", attempt.lane.credential.id, ttl_s=TTL_S)


def makes_state(ex: Execution, attempt: Attempt) -> bool:
    """Whether what an answer brings into being is worth remembering: also while there is nobody else who could be asked
    for it, for others may come. Only clients of the Responses API can refer to it."""
    lane = attempt.lane
    if ex.source != RESPONSES or lane.output_format != RESPONSES or ex.state.policy.provider_state == "ignored":
        return False
    return lane.handle is not None and lane.credential.id in ex.state.pool.by_id


def find_session(ex: Execution, plan: Plan) -> BoundSession | None:
    """The session of a request, with the keys of its bindings: per caller, providers and model."""
    execution = ex.request.demands.execution_session_id
    session = session_of(ex.headers, lambda: ex.content.data, execution=execution)
    if session is None:
        ex.record("session", outcome="none")
        return None
    parts = (ex.request.principal.scope, plan.cursor)
    fallback = session.key(session.fallback, *parts) if session.fallback else ""
    return BoundSession(source=session.source, key=session.key(session.name, *parts), fallback=fallback)


async def keep_session(ex: Execution, plan: Plan, search: Search) -> Lane | None:
    """The lane of the credential that the session is bound to, when that can be used."""
    session, pool = ex.session, ex.state.pool
    assert session is not None
    bindings = pool.health.sessions
    bound = await bindings.get(session.key)
    if bound is None and session.fallback:
        bound = await bindings.get(session.fallback)
    if bound is None:
        ex.record("session", source=session.source, key=session.shown, outcome="new")
        return None
    found = _usable(ex, plan, search, bound)
    if isinstance(found, str):
        # Another process may have moved the session already: it shall not be in two places.
        moved = await bindings.get(session.key, fresh=True)
        if moved is not None and moved != bound and isinstance(there := _usable(ex, plan, search, moved), Lane):
            bound, found = moved, there
    if isinstance(found, str):
        ex.record("session", source=session.source, key=session.shown, outcome="moved", credential=bound, why=found)
        return None
    bindings.put(session.key, bound, ttl_s=pool.policy.affinity_ttl_s)
    ex.record("picked", credential=bound, by="session", source=session.source, key=session.shown)
    return found


def _usable(ex: Execution, plan: Plan, search: Search, credential_id: str) -> Lane | str:
    """The lane of a credential that a session is bound to, or why it cannot be used now."""
    pool = ex.state.pool
    place = pool.position_of(plan.tiers, credential_id)
    if place is None:
        return "gone"
    return pool.why_not(*place, search) or plan.lane(*place)


def bind_session(ex: Execution, lane: Lane) -> None:
    """From now on the session's requests go to this credential. Counting tokens follows a session and never moves it:
    not every upstream can count, and what is in its cache is the conversation."""
    if ex.session is not None and ex.method != COUNT:
        ex.state.pool.health.sessions.put(ex.session.key, lane.credential.id, ttl_s=ex.state.policy.affinity_ttl_s)


def prolong_session(ex: Execution, lane: Lane) -> None:
    """As `bind_session`, unless the session has moved while the request was on its way: the credential was resting."""
    if ex.session is not None:
        moved_to = ex.state.pool.health.sessions.peek(ex.session.key)
        if moved_to is None or moved_to == lane.credential.id:
            bind_session(ex, lane)


def unbind_session(ex: Execution, credential_id: str) -> None:
    """The credential failed: the session's next request is free to go elsewhere."""
    if ex.session is not None and ex.method != COUNT:
        sessions = ex.state.pool.health.sessions
        sessions.drop(ex.session.key, credential_id)
        if ex.session.fallback:
            sessions.drop(ex.session.fallback, credential_id)
