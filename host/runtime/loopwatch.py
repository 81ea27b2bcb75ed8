"""Names the in-process plugin that holds the event loop."""

import time
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger("host.runtime.loopwatch")

HELD_LIMIT_S: Final = 0.1

HeldReport = Callable[[str, str, float], None]
"""`report(plugin_id, method, held_s)`."""


class LoopWatch:
    """Measures how long each step of in-process plugin code keeps the event loop from everything else.

    A step is what runs between two suspensions of a hook. Steps nest when a plugin's callback leads to another plugin;
    the time is charged to the innermost one only. One per event loop; all members belong to that loop's thread.
    """

    __slots__ = ("_inner_s", "_limit_s", "_report", "current")

    def __init__(self, *, limit_s: float = HELD_LIMIT_S, report: HeldReport | None = None) -> None:
        self.current: object | None = None
        """The call whose code is running right now; None while the host's own code runs."""
        self._limit_s = limit_s
        self._report = report if report is not None else _log_held
        self._inner_s = 0.0

    def enter(self, call: object) -> tuple[object | None, float, float]:
        """Start a step of `call`; the answer goes to `leave`."""
        outer = (self.current, self._inner_s, time.perf_counter())
        self.current = call
        self._inner_s = 0.0
        return outer

    def leave(self, outer: tuple[object | None, float, float], plugin_id: str, method: str) -> None:
        """End the step; reports it when the plugin's own part of it took too long."""
        elapsed_s = time.perf_counter() - outer[2]
        held_s = elapsed_s - self._inner_s
        self.current = outer[0]
        self._inner_s = outer[1] + elapsed_s
        if held_s > self._limit_s:
            self._report(plugin_id, method, held_s)


def _log_held(plugin_id: str, method: str, held_s: float) -> None:
    log.warning("plugin.held_event_loop", plugin_id=plugin_id, method=method, held_ms=round(held_s * 1000))
