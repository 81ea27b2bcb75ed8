"""The oracle: what could have been served by somebody who knows the future of every limit, outage and chance.

It takes the requests in the order in which they come. Each is sent at the earliest moment, from its arrival until
`max-retry-interval` later, at which some credential is known to accept it: no outage, room in every quota, and a try
that chance lets pass (any of the tries that the rounds allow). It never fails a try and spends no time on one. Of
several credentials it takes the one that serves the fewest models, then the one whose quota ends first (what is left of
it would be lost), then the first by id.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from host.config.values import seconds
from host.simulate.scenario import Scenario
from host.simulate.upstreams import Upstream, upstreams
from host.simulate.workload import Arrival


@dataclass(frozen=True, slots=True)
class Best:
    """What the oracle serves."""

    served: int
    waited_s: float
    """In all."""


def oracle(scenario: Scenario, requests: Sequence[Arrival], seed: int) -> Best:
    """The oracle's result for these requests."""
    known = sorted(upstreams(scenario, seed).values(), key=lambda it: (len(it.models), it.id))
    patience_s = seconds(scenario.gateway.max_retry_interval)
    tries = scenario.gateway.request_retry + 1
    served, waited_s = 0, 0.0
    for request in requests:
        candidates = [it for it in known if request.model in it.models]
        moment_s = _serve(candidates, request, patience_s, tries)
        if moment_s is not None:
            served += 1
            waited_s += moment_s - request.at_s
    return Best(served, waited_s)


def _serve(candidates: Sequence[Upstream], request: Arrival, patience_s: float, tries: int) -> float | None:
    """The moment at which it is served; None when it cannot be."""
    moment_s = request.at_s
    while moment_s <= request.at_s + patience_s:
        able = [it for it in candidates if _accepts(it, moment_s, request, tries)]
        if able:
            chosen = min(able, key=lambda it: (len(it.models), _ends_s(it, moment_s), it.id))
            chosen.take(moment_s, request.tokens)
            return moment_s
        later = min((_changes_s(it, moment_s) for it in candidates), default=math.inf)
        if later <= moment_s:
            return None
        moment_s = later
    return None


def _accepts(upstream: Upstream, at_s: float, request: Arrival, tries: int) -> bool:
    if not upstream.fits(at_s, request.tokens):
        return False
    return any(upstream.fault(at_s, request.number, number) is None for number in range(tries))


def _ends_s(upstream: Upstream, at_s: float) -> float:
    return min((quota.resets_at_s(at_s) for quota in upstream.quotas), default=math.inf)


def _changes_s(upstream: Upstream, at_s: float) -> float:
    """The next moment at which the upstream may accept what it does not accept now."""
    ends = [it.end_s for it in upstream.outages if it.start_s <= at_s < it.end_s]
    return min([*ends, _ends_s(upstream, at_s)])
