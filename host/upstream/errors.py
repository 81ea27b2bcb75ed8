"""What can go wrong between this process and an upstream. One class per different handling, never decided by text.

    UpstreamError
    ├── InvalidRequest         phase "request"            the caller's fault; nothing was sent, no connection was used
    ├── ConnectError           phase "connect"            name resolution or TCP failed; nothing was sent
    │   └── AddressRefused     phase "connect"            only addresses that `public_only` keeps the request from
    ├── TlsError               phase "tls"                handshake or certificate refused; nothing was sent
    ├── ProxyError             phase "proxy"              the outbound proxy refused or failed; nothing was sent
    ├── UpstreamTimeout        any phase but "request"    `timed_out` is true; `phase` says what did not happen in time
    ├── UpstreamDisconnected   phases "send"/"head"/"body"  the peer (or `close()`) ended the connection too early
    └── UpstreamProtocolError  phases "head"/"body"       the peer's bytes are not an answer we accept
        └── BodyTooLarge       phase "body"               `max_bytes` of `read()` or the decompression cap was hit

Messages name scheme, host and port only: paths and queries may carry API keys, proxy URLs carry passwords.
"""

from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["request", "connect", "tls", "proxy", "send", "head", "body"]


class UpstreamError(Exception):
    """Base of everything `host.upstream` raises on purpose.

    `phase`: the step that failed. `bytes_sent`: request bytes were handed to the kernel or its buffer, so the upstream
    may have acted on them. `response_started`: at least one byte of an answer had arrived. `timed_out`: a time limit of
    ours or of the kernel ran out, as opposed to a refusal.
    """

    def __init__(
        self,
        message: str,
        *,
        phase: Phase,
        timed_out: bool = False,
        bytes_sent: bool = False,
        response_started: bool = False,
    ) -> None:
        super().__init__(message)
        self.phase: Phase = phase
        self.timed_out = timed_out
        self.bytes_sent = bytes_sent
        self.response_started = response_started


class InvalidRequest(UpstreamError):
    """The request cannot be written safely (bad URL, header name or value, method, proxy URL)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, phase="request")


class ConnectError(UpstreamError):
    """No TCP connection: the name does not resolve, or every address refused or was unreachable."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message, phase="connect", timed_out=timed_out)


class AddressRefused(ConnectError):
    """The host has no address that this request may go to; nothing was sent."""


class TlsError(UpstreamError):
    """The TLS handshake with the upstream failed: untrusted certificate, wrong host name, no common protocol, cut."""

    def __init__(self, message: str) -> None:
        super().__init__(message, phase="tls")


class ProxyError(UpstreamError):
    """The outbound proxy could not be reached or refused the tunnel.

    `proxy_status` is the HTTP status of a refused CONNECT (407, 403, ...), `socks_code` the reply code of a SOCKS
    proxy. Both are None when the proxy gave no such answer. Neither is ever an upstream's status.
    """

    def __init__(
        self,
        message: str,
        *,
        proxy_status: int | None = None,
        socks_code: int | None = None,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message, phase="proxy", timed_out=timed_out)
        self.proxy_status = proxy_status
        self.socks_code = socks_code


class UpstreamTimeout(UpstreamError):
    """A limit of the request ran out: connect, first byte or silence between body pieces."""

    def __init__(self, message: str, *, phase: Phase, bytes_sent: bool = False, response_started: bool = False) -> None:
        super().__init__(message, phase=phase, timed_out=True, bytes_sent=bytes_sent, response_started=response_started)


class UpstreamDisconnected(UpstreamError):
    """The connection ended before the answer did, or the response was closed while it was being read."""


class UpstreamProtocolError(UpstreamError):
    """The answer is malformed, ambiguous or beyond a limit. The connection is never used again."""


class BodyTooLarge(UpstreamProtocolError):
    """The body is larger than the caller allows, or inflates beyond the decompression cap."""

    def __init__(self, message: str, *, limit_bytes: int) -> None:
        super().__init__(message, phase="body", bytes_sent=True, response_started=True)
        self.limit_bytes = limit_bytes
