"""The `Server-Timing` header: what each plugin and the host took until the first byte."""

from collections.abc import Mapping
from typing import Final

NAME: Final = "Server-Timing"
HOST: Final = "host"
READ: Final = "host-read"
"""Waiting for the rest of the client's body."""


def timing_line(times_s: Mapping[str, float], *, total_s: float, read_s: float) -> bytes:
    """One part per plugin, by id, and `host` for whatever of the total is nobody else's."""
    parts = [f"{_name(plugin_id)};dur={seconds * 1000:.3f}" for plugin_id, seconds in times_s.items()]
    if read_s > 0:
        parts.append(f"{READ};dur={read_s * 1000:.3f}")
    own_s = max(0.0, total_s - read_s - sum(times_s.values()))
    return f"{NAME}: {', '.join([*parts, f'{HOST};dur={own_s * 1000:.3f}'])}\r\n".encode()


def _name(plugin_id: str) -> str:
    # A plugin's id is a token as it stands.
    return f"plugin-{plugin_id}" if plugin_id in (HOST, READ) else plugin_id
