"""Step 3: from the model name to the lanes that serve it (spec client-api 7.6)."""

from typing import Final

from host.errors import RequestError
from host.observe.trace import Shape
from host.pipeline.execution import Execution
from host.pipeline.route import Route
from host.pipeline.sessions import RESPONSES, find_owner, find_session, wants_owner
from host.pipeline.state import Plan

_RESOLVED: Final = Shape("resolved", "model", "providers", "lanes")


def resolve(ex: Execution, route: Route | None) -> Plan:
    """The plan for the request's model, or for the provider that a router chose. Raises RequestError for a model that
    only image endpoints may use."""
    model = ex.model if route is None else route.model
    provider = route.provider if route is not None else ""
    plan = ex.state.plan(model, method=ex.method, source=ex.source, wanted=ex.wanted, provider=provider)
    if (bare := plan.image_only) is not None:
        raise RequestError(
            503,
            "image_only_model",
            f"model {bare} is only supported on /v1/images/generations and /v1/images/edits",
            details={"model": bare},
        )
    if ex.trace is not None:
        ex.trace.note(_RESOLVED, plan.model, plan.providers, plan.total)
    return plan


async def recognise(ex: Execution, plan: Plan) -> None:
    """Where there is a choice: find out whether the request belongs to one of the credentials more than to others."""
    policy = ex.state.policy
    if policy.affinity_ttl_s and ex.session is None:
        ex.session = find_session(ex, plan)
    if ex.source == RESPONSES and wants_owner(ex, policy):
        owner = await find_owner(ex, plan)
        if policy.provider_state == "required":
            ex.owner = owner
        elif owner:
            ex.preferred = owner
