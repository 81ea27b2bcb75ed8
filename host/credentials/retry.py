"""Rounds over the credentials: who may be tried now, and whether another round is worth a wait (spec 5.7, 12.3)."""

import random
from collections.abc import Callable
from typing import Final

from host.credentials.classify import Verdict
from host.credentials.policy import RoutingPolicy
from host.credentials.ready import Members
from host.credentials.records import Credential

ROUND_STATUSES: Final = frozenset({403, 408, 429, 500, 502, 503, 504})
"""What may pass by itself. Anything else fails the same way in the next round."""
MAX_JITTER_S: Final = 2.0
MAX_WAITING: Final = 1000
"""Requests that may wait for a credential at once; each of them holds its body in memory."""
_BLIND_WAIT_S: Final = 1.0


class Search:
    """Which credentials a request has tried. Round 0 admits everybody, round n those whose limit is n or more."""

    __slots__ = (
        *("attempted", "failure", "gone", "is_last", "is_open", "no_free_plan", "only", "policy", "round", "skipped"),
        *("tried", "verdict"),
    )

    def __init__(self, policy: RoutingPolicy, *, only: str = "", no_free_plan: bool = False) -> None:
        self.policy: Final = policy
        self.only: Final = only
        """The one credential that can serve the request; empty: any."""
        self.no_free_plan: Final = no_free_plan
        """Credentials of a free plan cannot serve the request."""
        self.is_open = not (only or no_free_plan)
        """Everybody is admitted: nothing was tried yet."""
        self.tried: set[str] | frozenset[str] = _NOBODY
        """In this round."""
        self.skipped: frozenset[str] = _NOBODY
        """Providers that are not worth another try."""
        self.gone: Callable[[Credential], str] | None = None
        """Whose answer leaves a credential out; None while nobody was taken away since the request began."""
        self.attempted = 0
        """In this round."""
        self.round = 0
        self.failure: Exception | None = None
        """The latest one of an attempt."""
        self.verdict: Verdict | None = None
        """On it."""
        self.is_last = False
        """There is no round after this one: a plugin was asked for it, or wants nobody to be tried any more."""

    @property
    def is_full(self) -> bool:
        """Whether this round may not try any further credential."""
        return 0 < self.policy.max_credentials <= self.attempted

    def note_tried(self, credential_id: str) -> None:
        """The credential was tried in this round; a second time counts for nothing."""
        if credential_id in self.tried:
            return
        self.attempted += 1
        if isinstance(self.tried, set):
            self.tried.add(credential_id)
        else:
            self.tried = {credential_id}
        self.is_open = False

    def leave_out(self, gone: Callable[[Credential], str]) -> None:
        """Whoever `gone` gives a reason for is not tried any more, as long as it does."""
        self.gone = gone
        self.is_open = False

    def skip(self, provider: str, skipped: bool = True) -> None:
        """Leave a provider out from now on, or take it in again."""
        self.is_open = False
        self.skipped = self.skipped | {provider} if skipped else self.skipped - {provider}

    def allows(self, credential: Credential) -> bool:
        """Whether the credential may be tried now, as far as this request is concerned."""
        return credential.id not in self.tried and self.admits(credential)

    def admits(self, credential: Credential) -> bool:
        """Whether the credential takes part in this round."""
        if (self.only and credential.id != self.only) or credential.provider in self.skipped:
            return False
        if credential.weight <= 0 and self.policy.by_weight:
            return False
        if self.no_free_plan and credential.is_free_plan:
            return False
        if self.gone is not None and self.gone(credential):
            return False
        return not self.round or self.policy.rounds_of(credential) >= self.round

    def admits_all(self, members: Members) -> bool:
        """Whether that is known of all of them without looking at each."""
        return self.admits_all_weighted(members) and (members.all_weighted or not self.policy.by_weight)

    def admits_all_weighted(self, members: Members) -> bool:
        """The same of those with a weight."""
        if self.only or self.skipped or self.no_free_plan or self.gone:
            return False
        limits, default = members.retries, self.policy.rounds
        return not self.round or all((default if it is None or it < 0 else it) >= self.round for it in limits)

    def next_round(self, *, of_all: bool = False) -> None:
        """Everybody who takes part in the next round may be tried again; with `of_all` whatever their limits."""
        self.round = 0 if of_all else self.round + 1
        self.is_open = False
        self.tried = _NOBODY
        self.attempted = 0


_NOBODY: Final[frozenset[str]] = frozenset()


def wait_before_round(
    status: int, hint_s: float, free_in_s: float | None, *, fresh: bool, search: Search
) -> float | None:
    """Seconds to wait before the next round, without jitter; None when there should be none.

    `status` and `hint_s` are those of the error that ended the last round, `free_in_s` says when the first credential
    that takes part is free (0: now, None: never). `fresh`: one that is free was not tried in the last round.
    """
    if status not in ROUND_STATUSES or free_in_s is None:
        return None
    wait_s = free_in_s
    if not wait_s and not fresh and (status == 429 or hint_s):
        # Nobody rests because cooling is off: asking at once would only be told the same.
        wait_s = hint_s or _BLIND_WAIT_S * 2.0 ** (search.round - 1)
    return wait_s if wait_s <= search.policy.max_wait_s or not wait_s else None


def with_jitter(wait_s: float, limit_s: float, *, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """The wait plus up to a quarter of it, so that not everybody comes back in the same moment."""
    return min(wait_s + uniform(0.0, min(wait_s / 4, MAX_JITTER_S)), max(limit_s, wait_s))
