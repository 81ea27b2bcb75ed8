"""How much that nobody asked for is looked at: a bucket of processor time that fills slowly. Sans-io.

Answers, stream items and callbacks have limits of their own. What has none is noise: lines that are no frames, frames
that cannot be used, log lines, and frames of calls that are over. A peer that sends them without end would keep its
reader busy all the time, and with it everybody else on the same event loop.
"""

from typing import Final

SHARE: Final = 0.1
"""Of one processor, for the noise of one peer."""
BURST_S: Final = 0.003
"""Processor time that is spent at once, at most; then reading pauses until half of it is there again."""
LONGEST_S: Final = 0.02
"""What one piece of noise counts at most."""

LINE_S: Final = 10e-6
"""To find out that a line is no good frame; what is done with it comes on top."""
BYTE_S: Final = 10e-9
"""For each byte of it."""
LATE_S: Final = 0.5e-6
"""A good frame for a call that is over. It takes a little longer, but clients that leave cause many at once."""


class Patience:
    """The bucket of one peer."""

    __slots__ = ("_left_s", "_seen_s", "until_s")

    def __init__(self, now_s: float) -> None:
        self._left_s = BURST_S
        self._seen_s = now_s
        self.until_s = now_s
        """End of the last pause."""

    def spend(self, cost_s: float, now_s: float) -> float:
        """Take note of noise that took `cost_s`; the seconds for which nothing more must be read, usually 0."""
        saved_s = self._left_s + (now_s - self._seen_s) * SHARE
        self._left_s = min(BURST_S, saved_s) - min(LONGEST_S, cost_s)
        self._seen_s = now_s
        if self._left_s > 0.0:
            return 0.0
        pause_s = (BURST_S / 2 - self._left_s) / SHARE
        self.until_s = now_s + pause_s
        return pause_s
