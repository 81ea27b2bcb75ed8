"""How often each credential succeeded and failed in this process, with the last hours in buckets (spec 1.12)."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Final

BUCKETS: Final = 20
BUCKET_S: Final = 600


class Tally:
    """The counts of one credential: for ever, and in a ring of ten-minute buckets."""

    __slots__ = ("_ends_s", "_failures", "_numbers", "_slot", "_successes", "failed", "succeeded")

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self._numbers = [-1] * BUCKETS
        self._successes = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._slot = 0
        self._ends_s = 0.0
        """When the present bucket is over."""

    def add_success(self, now_s: float) -> None:
        """Count one. `now_s` is of the wall clock."""
        if not 0 < self._ends_s - now_s <= BUCKET_S:
            self._turn(now_s)
        self.succeeded += 1
        self._successes[self._slot] += 1

    def add_failure(self, now_s: float) -> None:
        """As `add_success`."""
        if not 0 < self._ends_s - now_s <= BUCKET_S:
            self._turn(now_s)
        self.failed += 1
        self._failures[self._slot] += 1

    def _turn(self, now_s: float) -> None:
        number = int(now_s // BUCKET_S)
        slot = self._slot = number % BUCKETS
        self._ends_s = (number + 1) * float(BUCKET_S)
        if self._numbers[slot] != number:
            self._numbers[slot], self._successes[slot], self._failures[slot] = number, 0, 0

    def recent(self, now_s: float) -> list[Mapping[str, object]]:
        """The last 20 buckets, oldest first, empty ones included; `time` is local."""
        latest = int(now_s // BUCKET_S)
        return [self._bucket(number) for number in range(latest - BUCKETS + 1, latest + 1)]

    def _bucket(self, number: int) -> Mapping[str, object]:
        slot = number % BUCKETS
        known = self._numbers[slot] == number
        return {
            "time": f"{_clock_text(number * BUCKET_S)}-{_clock_text((number + 1) * BUCKET_S)}",
            "success": self._successes[slot] if known else 0,
            "failed": self._failures[slot] if known else 0,
        }


class Tallies:
    """The counts of all credentials, by id."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock: Final = clock
        self._by_id: Final[dict[str, Tally]] = {}

    def succeeded(self, credential_id: str) -> None:
        """Count a success."""
        tally = self._by_id.get(credential_id)
        if tally is None:
            tally = self._by_id[credential_id] = Tally()
        tally.add_success(self._clock())

    def failed(self, credential_id: str) -> None:
        """Count a failure."""
        tally = self._by_id.get(credential_id)
        if tally is None:
            tally = self._by_id[credential_id] = Tally()
        tally.add_failure(self._clock())

    def of(self, credential_id: str) -> tuple[int, int]:
        """Successes and failures so far."""
        tally = self._by_id.get(credential_id)
        return (tally.succeeded, tally.failed) if tally is not None else (0, 0)

    def recent(self, credential_id: str) -> list[Mapping[str, object]]:
        """The buckets of one credential, as `Tally.recent`."""
        return self._by_id.get(credential_id, _NOTHING).recent(self._clock())

    def drop(self, credential_ids: Iterable[str]) -> None:
        """Drop the counts of these: whoever comes in their place starts from nothing."""
        for credential_id in credential_ids:
            self._by_id.pop(credential_id, None)

    def keep_only(self, credential_ids: Collection[str]) -> None:
        """Drop the counts of credentials that no longer exist."""
        for credential_id in [known for known in self._by_id if known not in credential_ids]:
            del self._by_id[credential_id]


@lru_cache(maxsize=4 * BUCKETS)  # a listing of thousands asks for the same few again and again
def _clock_text(moment_s: float) -> str:
    return time.strftime("%H:%M", time.localtime(moment_s))


_NOTHING: Final = Tally()
