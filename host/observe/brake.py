"""A brake on log lines that a storm of requests would write: few per subject, and not many of all subjects together."""

import math
import time
from collections.abc import Callable, Hashable
from typing import Final

MAX_SUBJECTS: Final = 1024
"""Remembered at once; the oldest goes first."""


class LineBrake:
    """Lets one line pass per subject and `every_s`, and at most `burst` lines of all subjects in that time."""

    def __init__(self, *, every_s: float = 10.0, burst: int = 100, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._burst = burst
        self._clock = clock
        self._shown_s: dict[Hashable, float] = {}
        self._window_s = -math.inf
        self._left = 0
        self._held = 0

    def lets_pass(self, subject: Hashable) -> bool:
        """Whether the line about `subject` may be written now; counts it among those held back when it may not."""
        now_s = self._clock()
        if now_s - self._window_s >= self._every_s:
            self._window_s, self._left = now_s, self._burst
        if not self._left or now_s - self._shown_s.get(subject, -math.inf) < self._every_s:
            self._held += 1
            return False
        self._left -= 1
        self._shown_s.pop(subject, None)
        self._shown_s[subject] = now_s
        if len(self._shown_s) > MAX_SUBJECTS:
            del self._shown_s[next(iter(self._shown_s))]
        return True

    def held_back(self) -> int:
        """How many lines were held back since this was asked last."""
        held, self._held = self._held, 0
        return held
