"""What plugins tried and were refused, counted and logged: by the kernel's filter, and by the host itself.

What Landlock refuses (files, signals) is an error in the plugin and, from Linux 6.15 on and with auditing switched on,
a record in the kernel's audit log; the kernel tells nobody else, so it is not counted here.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

import structlog

log = structlog.get_logger("host.runtime.refusals")

_KINDS_MAX: Final = 64
"""Of one plugin; further ones are counted under one name."""
_OTHER: Final = "other"
ORDINARY: Final = frozenset({"io_uring_setup"})
"""Asked for at every start by a library that goes on without it (libuv): no reason to warn."""


class Refusals:
    """Counts by plugin and by what was refused. A kind is logged at first, and when its number gets a digit more."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def note(self, plugin_id: str, what: str, *, times: int = 1) -> None:
        """Some refusals. `what` is one of few texts, never something a plugin chose."""
        counts = self._counts.setdefault(plugin_id, Counter())
        if what not in counts and len(counts) >= _KINDS_MAX:
            what = _OTHER
        before, counts[what] = counts[what], counts[what] + times
        if before == 0 or len(str(counts[what])) > len(str(before)):
            write = log.info if what in ORDINARY else log.warning
            write("plugin.refused", plugin_id=plugin_id, what=what, times=counts[what])

    def of(self, plugin_id: str) -> Mapping[str, int]:
        """What one plugin was refused since the host started."""
        return dict(self._counts.get(plugin_id, {}))

    def all(self) -> Mapping[str, Mapping[str, int]]:
        """By plugin."""
        return {plugin_id: dict(counts) for plugin_id, counts in self._counts.items()}


class TokenBucket:
    """Lets a rate through, and a burst before it."""

    __slots__ = ("_burst", "_left", "_per_second", "_refilled_s")

    def __init__(self, *, per_second: float, burst: float) -> None:
        self._per_second: Final = per_second
        self._burst: Final = burst
        self._left = burst
        self._refilled_s = time.monotonic()

    def take(self) -> bool:
        """Whether one more may pass now."""
        if self._left < 1.0:
            now_s = time.monotonic()
            self._left = min(self._burst, self._left + (now_s - self._refilled_s) * self._per_second)
            self._refilled_s = now_s
            if self._left < 1.0:
                return False
        self._left -= 1.0
        return True
