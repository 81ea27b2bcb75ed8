"""The life of a plugin process: one table of states and transitions, and the machine that walks it.

    stopped -> starting -> handshaking -> registering -> ready <-> unresponsive -> draining -> stopped
                   \\            \\              \\          \\           \\
                    `-----------> backoff (tried again by itself) or failed (reset or config change) <-'
"""

from collections.abc import Callable, Mapping
from typing import Final

import structlog

from host.runtime.handle import PluginState

log = structlog.get_logger("host.runtime.states")

S = PluginState

TRANSITIONS: Final[Mapping[PluginState, frozenset[PluginState]]] = {
    S.STOPPED: frozenset({S.STARTING}),
    S.STARTING: frozenset({S.HANDSHAKING, S.BACKOFF, S.FAILED, S.STOPPED}),
    S.HANDSHAKING: frozenset({S.REGISTERING, S.BACKOFF, S.FAILED, S.STOPPED}),
    S.REGISTERING: frozenset({S.READY, S.BACKOFF, S.FAILED, S.STOPPED}),
    S.READY: frozenset({S.UNRESPONSIVE, S.DRAINING, S.BACKOFF, S.FAILED, S.STARTING, S.STOPPED}),
    S.UNRESPONSIVE: frozenset({S.READY, S.DRAINING, S.BACKOFF, S.FAILED, S.STARTING, S.STOPPED}),
    S.DRAINING: frozenset({S.STOPPED}),
    S.BACKOFF: frozenset({S.STARTING, S.FAILED, S.STOPPED}),
    S.FAILED: frozenset({S.STARTING, S.STOPPED}),
}
"""State -> states that may follow. `ready -> starting` is the immediate restart after a crash."""

StateListener = Callable[[PluginState, PluginState, str], None]
"""Called as `listener(old, new, reason)` after every transition."""


class StateMachine:
    """The state of one plugin; every transition has a reason and is logged with it."""

    def __init__(self, plugin_id: str, *, generation: int, listener: StateListener | None = None) -> None:
        self.state = PluginState.STOPPED
        self.reason = ""
        self._plugin_id = plugin_id
        self._generation = generation
        self._listener = listener

    def move(self, new: PluginState, reason: str) -> None:
        """Enter `new`. Staying where it is changes nothing. Raises RuntimeError for a transition the table forbids."""
        old = self.state
        if new is old:
            return
        if new not in TRANSITIONS[old]:
            raise RuntimeError(f"plugin {self._plugin_id!r}: no transition from {old} to {new} ({reason})")
        self.state = new
        self.reason = reason
        log.info(
            "plugin.state",
            plugin_id=self._plugin_id,
            generation=self._generation,
            old=str(old),
            new=str(new),
            reason=reason,
        )
        if self._listener is not None:
            self._listener(old, new, reason)
