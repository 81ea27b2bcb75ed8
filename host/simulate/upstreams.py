"""What one credential's upstream does to a request: by its limits, its outages, and chance that no policy changes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from host.config.values import seconds
from host.simulate.scenario import CredentialEntry, OutageEntry, ProviderEntry, QuotaEntry, Scenario
from host.simulate.spread import Spread, parse_spread


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request fails. `status` 0: the connection is refused."""

    status: int
    takes_s: float
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outage:
    """Everything fails from `start_s` until before `end_s`."""

    start_s: float
    end_s: float
    status: int
    takes_s: float | None
    retry_after_s: float | None


@dataclass(slots=True)
class Quota:
    """What is left of one limit. Windows begin at `start_s` plus every multiple of `per_s`."""

    requests: int | None
    tokens: int | None
    per_s: float
    start_s: float
    used: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Requests and tokens by window: the oracle fills later windows before it is done with earlier ones."""

    def fits(self, at_s: float, tokens: int) -> bool:
        """Whether a request of this size is within the limit."""
        used_requests, used_tokens = self.used.get(self.window_of(at_s), (0, 0))
        if self.requests is not None and used_requests + 1 > self.requests:
            return False
        return self.tokens is None or used_tokens + tokens <= self.tokens

    def take(self, at_s: float, tokens: int) -> None:
        """Count a request."""
        window = self.window_of(at_s)
        used_requests, used_tokens = self.used.get(window, (0, 0))
        self.used[window] = used_requests + 1, used_tokens + tokens

    def resets_at_s(self, at_s: float) -> float:
        """When the next window begins."""
        return self.start_s + (self.window_of(at_s) + 1) * self.per_s

    def is_used_up(self, at_s: float) -> bool:
        """Whether no request at all fits any more."""
        return self.requests is not None and self.used.get(self.window_of(at_s), (0, 0))[0] >= self.requests

    def window_of(self, at_s: float) -> int:
        """The number of a moment's window."""
        return math.floor((at_s - self.start_s) / self.per_s)


@dataclass(slots=True, kw_only=True)
class Upstream:
    """One credential as its provider sees it."""

    id: str
    provider: ProviderEntry
    entry: CredentialEntry
    models: tuple[str, ...]
    latency: Spread
    error_latency: Spread
    rates: Mapping[str, float]
    outages: Sequence[Outage]
    quotas: Sequence[Quota]
    seed: int
    tries: dict[int, int] = field(default_factory=dict)
    """How often each request was tried here."""

    def fault(self, at_s: float, request: int, number: int) -> Refusal | None:
        """What breaks the try of a request with this number (from 0), limits aside."""
        if not self.rates and not any(it.start_s <= at_s < it.end_s for it in self.outages):
            return None
        chance = Random(f"{self.seed}:fault:{self.id}:{request}:{number}")
        takes_s = self.error_latency.draw(chance)
        for outage in self.outages:
            if outage.start_s <= at_s < outage.end_s:
                after_s = takes_s if outage.takes_s is None else outage.takes_s
                return Refusal(outage.status, after_s, outage.retry_after_s)
        drawn = chance.random()
        for status, rate in self.rates.items():
            if drawn < rate:
                return Refusal(int(status), takes_s)
            drawn -= rate
        return None

    def fits(self, at_s: float, tokens: int) -> bool:
        """Whether the limits leave room."""
        return all(quota.fits(at_s, tokens) for quota in self.quotas)

    def is_used_up(self, at_s: float) -> bool:
        """Whether the limits leave no room for any request."""
        return any(quota.is_used_up(at_s) for quota in self.quotas)

    def take(self, at_s: float, tokens: int) -> None:
        """Count a request that was accepted."""
        for quota in self.quotas:
            quota.take(at_s, tokens)

    def ask(self, at_s: float, request: int, tokens: int) -> Refusal | None:
        """One try: refused, or accepted and counted."""
        number = self.tries.get(request, 0)
        self.tries[request] = number + 1
        fault = self.fault(at_s, request, number)
        if fault is not None:
            return fault
        full = [quota.resets_at_s(at_s) for quota in self.quotas if not quota.fits(at_s, tokens)]
        if full:
            takes_s = self.error_latency.draw(Random(f"{self.seed}:limit:{self.id}:{request}:{number}"))
            return Refusal(429, takes_s, max(full) - at_s)
        self.take(at_s, tokens)
        return None

    def latency_s(self, request: int) -> float:
        """How long the answer takes."""
        return self.latency.draw(Random(f"{self.seed}:latency:{self.id}:{request}"))


def upstreams(scenario: Scenario, seed: int) -> dict[str, Upstream]:
    """Every credential with nothing used yet, by id: `provider/credential`, numbered where there are several."""
    made: dict[str, Upstream] = {}
    for provider in scenario.providers:
        for entry in provider.credentials:
            width = len(str(entry.count))
            for number in range(1, entry.count + 1):
                name = entry.name if entry.count == 1 else f"{entry.name}{number:0{width}d}"
                credential_id = f"{provider.name}/{name}"
                made[credential_id] = _upstream(scenario, provider, entry, credential_id, seed)
    return made


def _upstream(
    scenario: Scenario, provider: ProviderEntry, entry: CredentialEntry, credential_id: str, seed: int
) -> Upstream:
    return Upstream(
        id=credential_id,
        provider=provider,
        entry=entry,
        models=scenario.models_of(provider),
        latency=parse_spread(provider.latency if entry.latency is None else entry.latency, seconds),
        error_latency=parse_spread(provider.error_latency, seconds),
        rates=provider.error_rates if entry.error_rates is None else entry.error_rates,
        outages=[_outage(it) for it in (*provider.outages, *entry.outages)],
        quotas=[_quota(it) for it in (*provider.quotas, *entry.quotas)],
        seed=seed,
    )


def _outage(entry: OutageEntry) -> Outage:
    return Outage(
        seconds(entry.start),
        math.inf if entry.end is None else seconds(entry.end),
        entry.status,
        None if entry.after is None else seconds(entry.after),
        None if entry.retry_after is None else seconds(entry.retry_after),
    )


def _quota(entry: QuotaEntry) -> Quota:
    return Quota(entry.requests, entry.tokens, seconds(entry.per), seconds(entry.start))
