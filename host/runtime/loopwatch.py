"""Names the in-process plugin that holds the event loop, afterwards and while it does."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

log = structlog.get_logger("host.runtime.loopwatch")

HELD_LIMIT_S: Final = 0.1
STUCK_LIMIT_S: Final = 1.0
STACK_LINES: Final = 12

HeldReport = Callable[[str, str, float], None]
"""`report(plugin_id, method, held_s)`, on the event loop's thread."""
StuckReport = Callable[[str, str, float, str], None]
"""`report(plugin_id, method, held_s, stack)` from a thread of its own, while the event loop is stuck."""


class WatchedCall(Protocol):
    """Whose code runs."""

    @property
    def plugin_id(self) -> str: ...

    @property
    def method(self) -> str: ...


class LoopWatch:
    """Measures how long each step of in-process plugin code keeps the event loop from everything else.

    A step is what runs between two suspensions of a hook. Steps nest when a plugin's callback leads to another plugin;
    the time is charged to the innermost one only. One per event loop; what is not said to be for the thread belongs to
    that loop's thread.
    """

    __slots__ = ("_inner_s", "_limit_s", "_report", "_since_s", "_stopping", "_stuck", "_thread", "current")

    def __init__(
        self,
        *,
        limit_s: float = HELD_LIMIT_S,
        report: HeldReport | None = None,
        stuck: StuckReport | None = None,
    ) -> None:
        self.current: WatchedCall | None = None
        """The call whose code is running right now; None while the host's own code runs."""
        self._limit_s = limit_s
        self._report = report if report is not None else _log_held
        self._stuck = stuck if stuck is not None else _log_stuck
        self._inner_s = 0.0
        self._since_s = 0.0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def step(self, send: Callable[[Any], Any], value: Any, call: WatchedCall) -> Any:
        """One step of `call`: answers or raises what `send(value)` does. Reported when the plugin's own part of it
        took too long."""
        outer, outer_inner_s, outer_since_s = self.current, self._inner_s, self._since_s
        began_s = time.perf_counter()
        self.current = call
        self._inner_s = 0.0
        self._since_s = began_s
        try:
            return send(value)
        finally:
            elapsed_s = time.perf_counter() - began_s
            held_s = elapsed_s - self._inner_s
            self.current = outer
            self._inner_s = outer_inner_s + elapsed_s
            self._since_s = outer_since_s
            if held_s > self._limit_s:
                self._report(call.plugin_id, call.method, held_s)

    def start(self) -> None:
        """Watch from a thread too, for steps that never end. Once is enough; `stop` before the process ends."""
        if self._thread is None:
            loop_thread = threading.get_ident()
            self._thread = threading.Thread(
                target=self._watch, args=(loop_thread,), name="jackfield-loopwatch", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._stopping.set()

    def _watch(self, loop_thread: int) -> None:
        reported_s = 0.0
        while not self._stopping.wait(STUCK_LIMIT_S / 2):
            call, since_s = self.current, self._since_s
            held_s = time.perf_counter() - since_s
            if call is not None and held_s > STUCK_LIMIT_S and since_s != reported_s:
                reported_s = since_s
                frame = sys._current_frames().get(loop_thread)
                stack = "".join(traceback.format_stack(frame)[-STACK_LINES:]) if frame is not None else ""
                self._stuck(call.plugin_id, call.method, held_s, stack)


def _log_held(plugin_id: str, method: str, held_s: float) -> None:
    log.warning("plugin.held_event_loop", plugin_id=plugin_id, method=method, held_ms=round(held_s * 1000))


def _log_stuck(plugin_id: str, method: str, held_s: float, stack: str) -> None:
    log.error("plugin.holds_event_loop", plugin_id=plugin_id, method=method, held_ms=round(held_s * 1000), stack=stack)
