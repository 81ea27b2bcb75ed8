"""Tunnels through outbound proxies: HTTP CONNECT (also for plain http URLs) and SOCKS.

A plain http URL also goes through CONNECT rather than as an absolute-form request: the proxy then cannot rewrite the
exchange, one connection never mixes origins, and the proxy's credentials never stand next to the caller's headers.
"""

import asyncio
import base64
import re
import socket
from typing import Final, cast

from python_socks import ProxyConnectionError, ProxyType
from python_socks import ProxyError as SocksError
from python_socks.async_.asyncio import Proxy as SocksProxy

from host.upstream.errors import ProxyError
from host.upstream.origin import Origin, ProxyAddress

_MAX_ANSWER_BYTES: Final = 16 * 1024
# The library insists on a limit of its own; ours must be the one that fires.
_NEVER_S: Final = 1e6
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n").match
# Scheme -> protocol and whether the proxy resolves the host name (the "a" and "h" variants).
_SOCKS_KINDS: Final = {
    "socks4": (ProxyType.SOCKS4, False),
    "socks4a": (ProxyType.SOCKS4, True),
    "socks5": (ProxyType.SOCKS5, False),
    "socks5h": (ProxyType.SOCKS5, True),
}


async def connect_socks(proxy: ProxyAddress, origin: Origin) -> socket.socket:
    """A socket that speaks to the origin through a SOCKS proxy. Raises ProxyError. The caller bounds the time."""
    kind, remote_names = _SOCKS_KINDS[proxy.scheme]
    client = SocksProxy(
        proxy_type=kind,
        host=proxy.host,
        port=proxy.port,
        username=proxy.username,
        password=proxy.password,
        rdns=remote_names,
    )
    try:
        return await client.connect(dest_host=origin.host, dest_port=origin.port, timeout=_NEVER_S)
    except ProxyConnectionError as exc:
        raise ProxyError(f"{proxy.label}: cannot be reached") from exc
    except SocksError as exc:
        raise ProxyError(f"{proxy.label}: refused the tunnel", socks_code=exc.error_code) from exc
    except OSError as exc:
        raise ProxyError(f"{proxy.label}: failed ({type(exc).__name__})") from exc
    except ValueError as exc:
        raise ProxyError(f"{proxy.label}: user, password or host name do not fit into SOCKS") from exc


class ConnectTunnel(asyncio.Protocol):
    """The CONNECT exchange on a connection to a proxy; afterwards another protocol takes the transport over."""

    def __init__(self, proxy: ProxyAddress, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._origin = origin
        self._buffer = b""
        self._established: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport | None = None

    async def establish(self) -> None:
        """Ask for the tunnel and wait until it stands. Raises ProxyError; the caller closes the transport then."""
        assert self.transport is not None
        self.transport.write(_connect_request(self._proxy, self._origin))
        await self._established

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if self._established.done():
            return
        if end < 0:
            if len(self._buffer) > _MAX_ANSWER_BYTES:
                self._refuse(ProxyError(f"{self._proxy.label}: the answer to CONNECT is too large"))
            return
        match = _STATUS_LINE(self._buffer)
        if match is None:
            self._refuse(ProxyError(f"{self._proxy.label}: the answer to CONNECT is not HTTP/1.1"))
            return
        status = int(match[1])
        surplus = self._buffer[end + 4 :]
        if not 200 <= status < 300:
            self._refuse(ProxyError(f"{self._proxy.label}: refused CONNECT with {status}", proxy_status=status))
        elif surplus:
            # Neither TLS nor HTTP lets a server speak first: these bytes are not the origin's.
            self._refuse(ProxyError(f"{self._proxy.label}: sent bytes of its own into the tunnel"))
        else:
            self._established.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._refuse(ProxyError(f"{self._proxy.label}: closed the connection during CONNECT"))

    def _refuse(self, error: ProxyError) -> None:
        if not self._established.done():
            self._established.set_exception(error)


def _connect_request(proxy: ProxyAddress, origin: Origin) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"CONNECT {host}:{origin.port} HTTP/1.1", f"Host: {host}:{origin.port}"]
    if proxy.username is not None:
        user_and_password = f"{proxy.username}:{proxy.password or ''}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(user_and_password).decode('ascii')}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
