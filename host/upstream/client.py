"""The client: from a request to the head of its answer."""

import ssl
import time
from collections.abc import Callable
from typing import Final

from host.upstream.connection import StaleConnection
from host.upstream.dial import Dialer
from host.upstream.encode import FieldNames, encode_head
from host.upstream.errors import ConnectError
from host.upstream.model import ClientLimits, ClientStats, UpstreamRequest
from host.upstream.origin import split_url
from host.upstream.pool import Pool
from host.upstream.response import UpstreamResponse

_DEFAULT_LIMITS: Final = ClientLimits()


class UpstreamClient:
    """HTTP/1.1 to upstreams, with kept-alive connections. One per process, used on one event loop.

    Redirects are handed to the caller like any other answer. HTTP errors are answers, not exceptions. The number of
    connections is bounded by the number of requests in progress, nothing else.

    Retry policy. A request is written a second time, on a new connection, in exactly one case: it was written on a
    *reused* connection, the peer ended that connection before sending a single byte of an answer, and it did so within
    `ClientLimits.stale_retry_window_s` of the write. That is how a peer looks that had closed the idle connection
    while our request was on its way. RFC 9110 section 9.2.2 forbids repeating a POST unless we can tell that it was
    never applied; a peer that took the request, worked on it and died looks different in nearly every case: it dies
    later than the window, or answers something first. What remains is a peer that reads a request and crashes within
    the window without a byte; then a completion is asked for twice and the first one is lost.
    Failures on new connections, partial answers and time limits are never retried here: whether another attempt (with
    another credential, say) is right is not this layer's decision.

    `ssl_context` replaces the default, which trusts the system's roots and `ClientLimits.extra_ca_file` and verifies
    names. `clock` gives monotonic seconds for every time limit but the connect timeout.
    """

    def __init__(
        self,
        *,
        limits: ClientLimits = _DEFAULT_LIMITS,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = Pool(limits, clock)
        self._dialer = Dialer(self._pool, ssl_context)
        self._field_names = FieldNames()
        self._retried = 0
        self._closed = False

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request; returns when the head of the final answer has arrived, the body is read from the response.

        Raises UpstreamError (see `errors`). Cancelling it closes the connection at once, so that the upstream notices.
        """
        base_url, target = split_url(request.url)
        origin = self._pool.origin(base_url, request.proxy_url, request.public_only)
        head = encode_head(request, origin, target, self._field_names)
        connection = self._pool.take(origin)
        if connection is not None:
            try:
                return await connection.exchange(head, request)
            except StaleConnection:
                self._retried += 1
        if self._closed:
            raise ConnectError(f"{origin.label}: the client is closed")
        connection = await self._dialer.dial(origin, timeout_s=request.connect_timeout_s)
        return await connection.exchange(head, request)

    async def close(self) -> None:
        """End everything: requests in progress fail with UpstreamDisconnected, later ones with ConnectError."""
        self._closed = True
        await self._pool.close()

    def stats(self) -> ClientStats:
        """Counters for metrics and tests."""
        return ClientStats(
            opened=self._pool.opened,
            reused=self._pool.reused,
            retried=self._retried,
            idle=self._pool.idle_count,
            open=self._pool.open_count,
        )
