"""New connections: TCP or a tunnel, then TLS, under one time limit."""

import asyncio
import ipaddress
import socket
import ssl
from typing import Any, Final

from host.upstream.connection import Connection, ConnectionOwner
from host.upstream.errors import AddressRefused, ConnectError, Phase, ProxyError, TlsError, UpstreamTimeout
from host.upstream.origin import Origin, ProxyAddress
from host.upstream.tcp import NotPublic, connect_tcp, is_public, prepare_socket
from host.upstream.tunnel import ConnectTunnel, connect_socks

# Our own limit must fire before the event loop's, which would look like a TLS failure.
_LOOP_HANDSHAKE_SLACK_S: Final = 60.0


def make_ssl_context(extra_ca_file: str | None) -> ssl.SSLContext:
    """System roots plus `extra_ca_file`, certificates and host names verified. Raises OSError or ssl.SSLError."""
    context = ssl.create_default_context()
    if extra_ca_file is not None:
        context.load_verify_locations(cafile=extra_ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Dialer:
    """Opens connections for one client. Root certificates take milliseconds to read, which waits for the first use."""

    def __init__(self, owner: ConnectionOwner, ssl_context: ssl.SSLContext | None) -> None:
        self._owner = owner
        self._ssl_context = ssl_context

    async def dial(self, origin: Origin, *, timeout_s: float) -> Connection:
        """A connected, idle Connection. Raises ConnectError, ProxyError, TlsError or UpstreamTimeout.

        Cancelling it closes what was opened so far.
        """
        if origin.secure or (origin.proxy is not None and origin.proxy.scheme == "https"):
            # Before anything is connected: a bad CA file must not cost a connection, nor a good one connect time.
            self.ssl_context()
        attempt = _Attempt(self, origin, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await attempt.run()
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{origin.label}: not connected within {timeout_s:g} s", phase=attempt.phase) from exc

    def ssl_context(self) -> ssl.SSLContext:
        """The context of every handshake. Raises TlsError when the extra CA file cannot be loaded."""
        if self._ssl_context is None:
            try:
                self._ssl_context = make_ssl_context(self._owner.limits.extra_ca_file)
            except OSError as exc:
                raise TlsError("the extra CA file cannot be loaded") from exc
        return self._ssl_context

    def new_connection(self, origin: Origin) -> Connection:
        return Connection(self._owner, origin, asyncio.get_running_loop())

    @property
    def stagger_s(self) -> float:
        return self._owner.limits.happy_eyeballs_delay_s


class _Attempt:
    """One dial; remembers which phase it is in for the error of a time limit."""

    def __init__(self, dialer: Dialer, origin: Origin, timeout_s: float) -> None:
        self._dialer = dialer
        self._origin = origin
        self._timeout_s = timeout_s
        self.phase: Phase = "connect"

    async def run(self) -> Connection:
        proxy = self._origin.proxy
        if proxy is None:
            return await self._direct()
        if self._origin.public_only and _is_written_private(self._origin.host):
            raise AddressRefused(f"{self._origin.label}: not a public address")
        self.phase = "proxy"
        if proxy.scheme in ("http", "https"):
            return await self._through_http_proxy(proxy)
        return await self._through_socks_proxy(proxy)

    async def _direct(self) -> Connection:
        origin = self._origin
        try:
            sock = await connect_tcp(
                origin.host, origin.port, stagger_s=self._dialer.stagger_s, public_only=origin.public_only
            )
        except NotPublic as exc:
            raise AddressRefused(f"{origin.label}: no public address") from exc
        except OSError as exc:
            timed_out = isinstance(exc, TimeoutError)
            raise ConnectError(f"{origin.label}: {_reason(exc)}", timed_out=timed_out) from exc
        return await self._adopt(sock)

    async def _through_socks_proxy(self, proxy: ProxyAddress) -> Connection:
        sock = await connect_socks(proxy, self._origin)
        prepare_socket(sock)
        return await self._adopt(sock)

    async def _through_http_proxy(self, proxy: ProxyAddress) -> Connection:
        loop = asyncio.get_running_loop()
        origin = self._origin
        try:
            sock = await connect_tcp(proxy.host, proxy.port, stagger_s=self._dialer.stagger_s)
            transport, tunnel = await loop.create_connection(
                lambda: ConnectTunnel(proxy, origin, loop), sock=sock, **self._tls_options(proxy.host, proxy.scheme)
            )
        except OSError as exc:
            timed_out = isinstance(exc, TimeoutError)
            raise ProxyError(f"{proxy.label}: {_reason(exc)}", timed_out=timed_out) from exc
        try:
            await tunnel.establish()
            return await self._take_over(transport, proxy)
        except BaseException:
            transport.abort()
            raise

    async def _adopt(self, sock: socket.socket) -> Connection:
        """The last step on a plain socket: TLS if the origin wants it, and a Connection on top."""
        loop = asyncio.get_running_loop()
        origin = self._origin
        if not origin.secure:
            _, connection = await loop.create_connection(lambda: self._dialer.new_connection(origin), sock=sock)
            return connection
        self.phase = "tls"
        options = self._tls_options(origin.host, "https")
        try:
            _, connection = await loop.create_connection(
                lambda: self._dialer.new_connection(origin), sock=sock, **options
            )
        except OSError as exc:
            raise TlsError(f"{origin.label}: {_reason(exc)}") from exc
        return connection

    async def _take_over(self, transport: asyncio.Transport, proxy: ProxyAddress) -> Connection:
        """The last step inside a CONNECT tunnel: the same, on a transport that exists already."""
        origin = self._origin
        if transport.is_closing():
            raise ProxyError(f"{proxy.label}: closed the tunnel at once")
        connection = self._dialer.new_connection(origin)
        if not origin.secure:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        self.phase = "tls"
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                connection,
                self._dialer.ssl_context(),
                server_hostname=origin.host,
                ssl_handshake_timeout=self._timeout_s + _LOOP_HANDSHAKE_SLACK_S,
            )
        except OSError as exc:
            raise TlsError(f"{origin.label}: {_reason(exc)}") from exc
        except TypeError as exc:
            # TLS inside TLS: asyncio before 3.11.8 trips over its own error handling (python/cpython#113214) and
            # hands us that, with the real reason as its context.
            if not isinstance(exc.__context__, OSError):
                raise
            raise TlsError(f"{origin.label}: {_reason(exc.__context__)}") from exc.__context__
        if secured is None:
            raise TlsError(f"{origin.label}: the connection was closed during the handshake")
        connection.connection_made(secured)
        return connection

    def _tls_options(self, host: str, scheme: str) -> dict[str, Any]:
        if scheme != "https":
            return {}
        return {
            "ssl": self._dialer.ssl_context(),
            "server_hostname": host,
            "ssl_handshake_timeout": self._timeout_s + _LOOP_HANDSHAKE_SLACK_S,
        }


def _is_written_private(host: str) -> bool:
    """An address, or the one name that everybody resolves the same way."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
    return not is_public(host)


def _reason(exc: OSError) -> str:
    """What the operator needs to know, for people; nothing decides by it."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason or type(exc).__name__}"
    if isinstance(exc, socket.gaierror):
        return "the name cannot be resolved"
    return f"cannot connect ({exc.strerror or type(exc).__name__})"
