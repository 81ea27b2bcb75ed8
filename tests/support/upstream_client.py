"""What the upstream client's tests share beside servers: a clock that moves when told, a local CA."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trustme

from host.upstream import UpstreamClient

MakeClient = Callable[..., UpstreamClient]
"""Arguments: `ssl_context`, and any field of ClientLimits by name."""


class ManualClock:
    """Monotonic seconds that stand still until a test moves them. `calls` counts how often they were read."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class LocalCa:
    ca_file: Path
    ca: trustme.CA

    def server_context(self, *names: str) -> ssl.SSLContext:
        """A context for a server whose certificate, signed by this CA, is for `names`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context
