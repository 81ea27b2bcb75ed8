"""All connections of one client: the idle ones per origin, and the sweep that enforces every time limit."""

import asyncio
from collections.abc import Callable
from typing import Final

from host.upstream.connection import Connection
from host.upstream.errors import UpstreamDisconnected
from host.upstream.model import ClientLimits
from host.upstream.origin import Origin, OriginKey, parse_origin
from host.upstream.parser import HeaderNames

# Origins are remembered by the text of their URL; the bound is for callers who invent host names.
_MAX_CACHED_ORIGINS: Final = 1024


class Pool:
    """Idle connections are reused newest first, so that a quiet period lets the surplus expire.

    One timer per client runs only while there are connections; it compares every connection's deadline with the clock.
    """

    def __init__(self, limits: ClientLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self.header_names = HeaderNames()
        self.opened = 0
        self.reused = 0
        self._origins_by_url: dict[tuple[str, str | None, bool], Origin] = {}
        self._origins: dict[OriginKey, Origin] = {}
        self._idle: dict[Origin, list[Connection]] = {}
        self._idle_total = 0
        self._connections: set[Connection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._all_lost: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def idle_count(self) -> int:
        return self._idle_total

    @property
    def open_count(self) -> int:
        return len(self._connections)

    def origin(self, base_url: str, proxy_url: str | None, public_only: bool = False) -> Origin:
        """Cached `parse_origin`; equal origins written differently share connections. Raises InvalidRequest."""
        key = (base_url, proxy_url, public_only)
        origin = self._origins_by_url.get(key)
        if origin is None:
            if len(self._origins_by_url) >= _MAX_CACHED_ORIGINS:
                # Forgetting is harmless: connections of a forgotten origin are not found again and expire.
                self._origins_by_url.clear()
                self._origins.clear()
            parsed = parse_origin(base_url, proxy_url, public_only=public_only)
            origin = self._origins_by_url[key] = self._origins.setdefault(parsed.key, parsed)
        return origin

    def take(self, origin: Origin) -> Connection | None:
        """An idle connection that has not been lost, no longer idle now; None when there is none."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            self._idle_total -= 1
            if not connection.closed:
                self.reused += 1
                return connection
        return None

    async def close(self) -> None:
        """Fail what is in progress, close everything; returns when the event loop has let go of every connection."""
        self._closed = True
        for connection in list(self._connections):
            connection.fail(UpstreamDisconnected(f"{connection.origin.label}: the client was closed", phase="body"))
        if self._connections:
            self._all_lost = self._all_lost or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._all_lost)

    # Side of the connections (ConnectionOwner).

    def connected(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
        self.opened += 1
        self._connections.add(connection)
        if self._sweep_timer is None:
            self._arm_sweep()

    def release(self, connection: Connection) -> None:
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = []
        if len(idle) >= self.limits.max_idle_per_origin or self._idle_total >= self.limits.max_idle_total:
            connection.abort()
            return
        keep_alive_s = self.limits.keep_alive_s
        announced_s = connection.announced_keep_alive_s()
        if announced_s is not None:
            # One second early: a request written while the peer closes would have to be sent twice.
            keep_alive_s = min(keep_alive_s, announced_s - 1.0)
        if keep_alive_s <= 0:
            connection.abort()
            return
        connection.keep_until(self.clock() + keep_alive_s)
        idle.append(connection)
        self._idle_total += 1

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            if connection in idle:
                idle.remove(connection)
                self._idle_total -= 1
            if not idle:
                del self._idle[connection.origin]
        if not self._connections:
            self._stop_sweep()
            if self._all_lost is not None and not self._all_lost.done():
                self._all_lost.set_result(None)

    def _arm_sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep_timer = loop.call_later(self.limits.sweep_interval_s, self._sweep)

    def _stop_sweep(self) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    def _sweep(self) -> None:
        now = self.clock()
        for connection in list(self._connections):
            connection.check_deadline(now)
        self._arm_sweep()
