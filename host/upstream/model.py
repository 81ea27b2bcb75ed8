"""What a caller hands to the client: one request, and the limits of the whole client."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One HTTP/1.1 request, complete in memory.

    A msgspec struct rather than a dataclass: one is made per request and a frozen dataclass costs ten times as much.

    `url`: absolute `http`/`https` URL without user info, already percent-encoded; a fragment is dropped.
    `headers`: sent in this order as given, except those the client owns (`Host`, `Content-Length`, `Connection`, every
    other framing or hop-by-hop name), which are left out silently. `Accept-Encoding` and `User-Agent` are sent only
    when they are in here.
    `proxy_url`: `http`, `https`, `socks4`, `socks4a`, `socks5` or `socks5h`, user and password percent-encoded. None,
    "", "direct" and "none" mean no proxy; environment variables are never looked at.
    `connect_timeout_s`: name resolution, TCP, proxy and TLS together. `first_byte_timeout_s`: from the request being
    written to the whole response head. `idle_timeout_s`: silence between two reads of the body. The last two are
    checked once per `ClientLimits.sweep_interval_s`, so they fire up to one interval late. None means no limit.
    `public_only`: connect to addresses of the Internet only, whatever the name resolves to: not to this machine, its
    networks, or a cloud's metadata service. Through a proxy, which resolves names itself, only addresses written as
    such, and `localhost`, can be told.
    `decompress`: undo the answer's Content-Encoding; otherwise the body is handed on as it came.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    proxy_url: str | None = None
    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float | None = 600.0
    idle_timeout_s: float | None = 300.0
    decompress: bool = True
    public_only: bool = False


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of one client. Sizes in bytes, times in seconds."""

    max_head_bytes: int = 64 * 1024
    """Status line and header fields of one answer, interim (1xx) answers before it included."""
    max_trailer_bytes: int = 16 * 1024
    """Trailer fields, and chunk extensions between two pieces of data; they are read and dropped."""
    max_interim_responses: int = 16
    max_body_bytes: int = 128 * 1024 * 1024
    """What `read()` accepts when the caller names no bound."""
    max_decoded_bytes: int = 512 * 1024 * 1024
    """What one compressed answer may inflate to, read or iterated."""
    high_water_bytes: int = 256 * 1024
    """Unread body above which the socket is no longer read; it is read again when the reader has taken everything."""
    max_idle_per_origin: int = 128
    max_idle_total: int = 1024
    keep_alive_s: float = 45.0
    """How long an unused connection is kept; below the 60 s after which common load balancers close theirs."""
    sweep_interval_s: float = 1.0
    stale_retry_window_s: float = 1.0
    """See `UpstreamClient`: how soon after the write a loss still counts as "was already closing"."""
    happy_eyeballs_delay_s: float = 0.25
    extra_ca_file: str | None = None
    """PEM file trusted in addition to the system's roots; ignored when the client is given an `ssl_context`."""


@dataclass(frozen=True, slots=True)
class ClientStats:
    """Counters since the client was made (`opened`, `reused`, `retried`) and the present state (`idle`, `open`)."""

    opened: int
    reused: int
    retried: int
    idle: int
    open: int
