"""The oracle: what could have been served by somebody who knows the future of every limit, outage and chance.

It takes the requests in the order in which they come. Each is sent at the earliest moment at which some credential is
known to accept it: no outage, room in every quota, and a try that chance lets pass (any of the tries that the rounds
allow). It waits as long as all rounds together may, never fails a try and spends no time on one. Of several credentials
it takes the one that serves the fewest models, then the one whose quota ends first (what is left of it would be lost),
then the first by id.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

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


Progress = Callable[[str, int, int], None]
"""`progress(what, done, all)`: called often, while something long goes on."""


def oracle(scenario: Scenario, requests: Sequence[Arrival], seed: int, *, progress: Progress | None = None) -> Best:
    """The oracle's result for these requests."""
    groups = _groups(upstreams(scenario, seed).values())
    rounds = scenario.gateway.request_retry
    patience_s = seconds(scenario.gateway.max_retry_interval) * max(1, rounds)
    served, waited_s = 0, 0.0
    for number, request in enumerate(requests):
        if progress is not None:
            progress("oracle", number, len(requests))
        candidates = [it for it in groups if request.model in it.models and not it.never_fits(request.tokens)]
        moment_s = _serve(candidates, request, patience_s, rounds + 1)
        if moment_s is not None:
            served += 1
            waited_s += moment_s - request.at_s
    return Best(served, waited_s)


@dataclass(slots=True)
class _Group:
    """Credentials that differ in nothing but their ids, in the order of these."""

    members: Sequence[Upstream]
    free_from: dict[tuple[int, ...], int] = field(default_factory=dict)
    """By windows: how many of the first members have no request left in them. Ten thousand keys are asked one by one
    only as far as they are free."""

    @property
    def models(self) -> tuple[str, ...]:
        return self.members[0].models

    def never_fits(self, tokens: int) -> bool:
        """Whether no window has room for a request of this size."""
        return any(
            (it.requests is not None and it.requests < 1) or (it.tokens is not None and it.tokens < tokens)
            for it in self.members[0].quotas
        )

    def first(self, at_s: float, request: Arrival, tries: int) -> Upstream | None:
        """The first member that accepts the request now."""
        windows = tuple(quota.window_of(at_s) for quota in self.members[0].quotas)
        start = self.free_from.get(windows, 0)
        while start < len(self.members) and self.members[start].is_used_up(at_s):
            start += 1
        self.free_from[windows] = start
        free = (self.members[index] for index in range(start, len(self.members)))
        return next((it for it in free if _accepts(it, at_s, request, tries)), None)


def _groups(known: Iterable[Upstream]) -> list[_Group]:
    found: dict[tuple[str, str], list[Upstream]] = {}
    for it in sorted(known, key=lambda it: it.id):
        found.setdefault((it.provider.name, it.entry.name), []).append(it)
    return [_Group(members) for members in found.values()]


def _serve(candidates: Sequence[_Group], request: Arrival, patience_s: float, tries: int) -> float | None:
    """The moment at which it is served; None when it cannot be."""
    moment_s = request.at_s
    while moment_s <= request.at_s + patience_s:
        able = [found for it in candidates if (found := it.first(moment_s, request, tries)) is not None]
        if able:
            chosen = min(able, key=lambda it: (len(it.models), _ends_s(it, moment_s), it.id))
            chosen.take(moment_s, request.tokens)
            return moment_s
        later = min((_changes_s(it.members[0], moment_s) for it in candidates), default=math.inf)
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
