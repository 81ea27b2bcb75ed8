"""Step 1, model.route: routers in priority order, the first valid answer wins; none can fail a request.

Spec plugin-abi 5.1 to 5.3.
"""

from dataclasses import dataclass
from typing import Final

import structlog

from host.observe.trace import Shape
from host.pipeline.execution import Execution, shown_body, shown_parts, shown_query
from host.pipeline.state import EXECUTE_STREAM, Lane
from host.runtime.handle import Binding, PluginState
from host.runtime.invoke import Invoker
from pluginabi.immutable import FrozenDict
from pluginabi.payloads.routing import ModelRouteRequest, ModelRouteResponse

log = structlog.get_logger("host.pipeline.route")

_NO_OPINION: Final = Shape("no_opinion", "plugin_id", "method")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a router sent the request: to a plugin's executor (`lane`), or to a provider's credentials."""

    router: str
    lane: Lane | None = None
    provider: str = ""
    model: str = ""


async def route(invoker: Invoker, ex: Execution) -> Route | None:
    """Ask the routers; None when none exists or none decided.

    One that chose a plugin that is down leaves it to the next, and to the registry; `ex.unavailable` says so.
    """
    routers = ex.state.plugins.implementers("model.route", ex.scope.skip)
    if not routers:
        return None
    providers = ex.state.pool.providers()
    metadata = FrozenDict(ex.base_metadata)

    def build(binding: Binding) -> ModelRouteRequest:
        return ModelRouteRequest(
            request_id=ex.scope.request_id,
            parent_request_id=ex.scope.parent_request_id,
            attempt=ex.scope.attempt,
            source_format=ex.source,
            requested_model=ex.request.model,
            stream=ex.method == EXECUTE_STREAM,
            metadata=metadata,
            available_providers=providers,
            headers=ex.visible_headers(ex.headers, binding),
            query=shown_query(ex.query, binding),
            body=shown_body(binding.inputs, ex.client_content),
            body_parts=shown_parts(binding.inputs, ex.client_content),
            body_size=len(ex.client_content.data),
        )

    for router in routers:
        answer = await invoker.call(router, build, ex.scope)
        if answer.failed_open:
            continue
        if not _has_opinion(answer.value):
            if ex.trace is not None:
                ex.trace.note(_NO_OPINION, router.plugin_id, router.method)
            continue
        found = _target(ex, router, answer.value, providers)
        if isinstance(found, Route):
            ex.record(
                "route",
                plugin_id=router.plugin_id,
                target_kind=answer.value.target_kind,
                target=found.provider or (found.lane.binding.plugin_id if found.lane is not None else ""),
                model=found.model,
                reason=answer.value.reason,
            )
            return found
        ex.record("route_refused", plugin_id=router.plugin_id, why=found)
        log.warning("route.refused", plugin_id=router.plugin_id, request_id=ex.scope.request_id, why=found)
    return None


def _has_opinion(answer: ModelRouteResponse) -> bool:
    return bool(answer.target_kind or answer.target or answer.target_model)


def _target(ex: Execution, router: Binding, answer: ModelRouteResponse, providers: tuple[str, ...]) -> Route | str:
    """The route an answer means, or why it is not valid."""
    match answer.target_kind:
        case "self" | "executor" as kind:
            plugin_id = router.plugin_id if kind == "self" else answer.target.strip()
            lane = ex.state.plugin_lane(
                plugin_id, model=ex.request.model, method=ex.method, source=ex.source, wanted=ex.wanted
            )
            if lane is None:
                view = ex.state.plugins.plugins.get(plugin_id)
                if view is not None and view.handle.state != PluginState.READY:
                    ex.unavailable = ex.unavailable or plugin_id
                return f"plugin executor {plugin_id!r} is not ready for {ex.source}"
            return Route(router=router.plugin_id, lane=lane, model=ex.request.model)
        case "provider":
            provider = answer.target.strip().lower()
            if provider not in providers:
                return f"provider {provider!r} has no credential that is enabled"
            model = answer.target_model.strip() or ex.request.model
            return Route(router=router.plugin_id, provider=provider, model=model)
        case kind:
            return f"invalid target kind {kind!r}"
