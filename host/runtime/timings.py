"""Every duration of a plugin process's life, in seconds; the defaults are the design's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTimings:
    """How long we wait for what. Tests shorten them, the operator's config sets those of `plugins`."""

    hello_s: float = 10.0
    """From spawn to the plugin's hello; for a socket to the one it says there."""
    connect_s: float = 10.0
    """From its hello on stdout to an open connection."""
    register_s: float = 10.0
    ping_interval_s: float = 1.0
    ping_unresponsive_s: float = 3.0
    ping_kill_s: float = 10.0
    stable_s: float = 1.0
    """A process that had been ready this long is restarted at once when it dies."""
    backoff_min_s: float = 0.5
    backoff_max_s: float = 30.0
    crash_window_s: float = 300.0
    crash_limit: int = 5
    """This many backoffs within the window, and the plugin has failed."""
    shutdown_drain_s: float = 10.0
    plugin_shutdown_s: float = 5.0
    eof_grace_s: float = 2.0
    term_grace_s: float = 2.0
    queue_wait_s: float = 5.0
    late_answer_s: float = 10.0
    """A plugin without `ping` is killed when it holds a slot this long past its call's deadline."""
    last_words_s: float = 0.5
    """What a dead process wrote is read for at most this long."""
    usage_interval_s: float = 5.0
    """Between two looks at a process's memory and processor time."""
