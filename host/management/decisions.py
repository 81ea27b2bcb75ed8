"""Endpoints for the decision trace: one request in full, and the latest ones in a line each."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from host.management.calls import Call, ManagementError, reply
from host.management.table import Endpoint
from host.observe.explain import TracedSummary, summary_of, traced
from host.observe.trace import DecisionTrace

DEFAULT_REQUESTS: Final = 50
MAX_REQUESTS: Final = 500
AT_A_TIME: Final = 50

Wanted = Callable[[TracedSummary], bool]


class DecisionEndpoints:
    """The rows of `/requests`."""

    def __init__(self, trace: DecisionTrace) -> None:
        self._trace = trace

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (
            Endpoint("GET", "/requests", self._latest),
            Endpoint("GET", "/requests/{id}", self._one),
        )

    async def _latest(self, call: Call) -> web.Response:
        limit = call.number("limit", DEFAULT_REQUESTS, highest=MAX_REQUESTS)
        wanted = [_by_model(call.argument("model")), _by_status(call.argument("status"))]
        found: list[TracedSummary] = []
        for number, request in enumerate(self._trace.latest(len(self._trace))):
            if number % AT_A_TIME == AT_A_TIME - 1:
                # Other requests do not wait until all are looked through.
                await asyncio.sleep(0)
            summary = summary_of(request)
            if all(fits(summary) for fits in wanted):
                found.append(summary)
                if len(found) == limit:
                    break
        return reply({"requests": found})

    async def _one(self, call: Call) -> web.Response:
        request_id = call.params["id"]
        found = self._trace.get(request_id)
        if found is None:
            raise ManagementError(404, "request_not_found", f"no request {request_id!r} is remembered")
        return reply(traced(self._trace, found))


def _by_model(model: str) -> Wanted:
    """The client's or the upstream's name, whole."""
    return lambda summary: not model or model in (summary.model, summary.upstream_model)


def _by_status(text: str) -> Wanted:
    """`429`, a class like `5xx`, `ok` and `error`, an outcome, or `failed_open`."""
    wanted = text.strip().lower()
    if not wanted:
        return lambda summary: True
    if wanted == "failed_open":
        return lambda summary: bool(summary.failed_open)
    if wanted == "ok":
        return lambda summary: 200 <= summary.status < 400
    if wanted == "error":
        return lambda summary: summary.status >= 400
    return lambda summary: wanted in (str(summary.status), f"{summary.status // 100}xx", summary.outcome)
