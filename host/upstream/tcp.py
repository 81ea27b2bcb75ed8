"""TCP connections by name: resolve, then try addresses in turn with a head start for each (RFC 8305).

`loop.create_connection` could do this on asyncio, but uvloop's has no happy eyeballs; and with the socket made here, a
TCP failure and a TLS failure cannot be confused.
"""

import asyncio
import ipaddress
import socket
from itertools import chain, zip_longest
from typing import Any, Final, TypeAlias

# A dead peer or a forgotten NAT entry must show up during a model's long silence, before the idle timeout does.
_KEEPALIVE_OPTIONS: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 4))

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

AddressInfo: TypeAlias = tuple[int, int, int, str, Any]


class NotPublic(OSError):
    """None of a host's addresses is one of the Internet."""


async def connect_tcp(host: str, port: int, *, stagger_s: float, public_only: bool = False) -> socket.socket:
    """A connected non-blocking socket with TCP_NODELAY and keep-alive. Raises OSError (of the last address tried).

    `public_only`: NotPublic unless one of the addresses is public, and only these are tried. What was checked is what
    is connected to: the name is not resolved again.

    The caller bounds the time. Cancelling it closes every socket it has opened.
    """
    addresses = await _resolve(host, port)
    if public_only:
        addresses = [address for address in addresses if is_public(address[4][0])]
        if not addresses:
            raise NotPublic(f"{host} has no public address")
    if len(addresses) == 1:
        return await _connect(addresses[0])
    return await _race(addresses, stagger_s)


def is_public(address: str) -> bool:
    """Whether a literal address belongs to somebody on the Internet; IPv4 inside of IPv6 counts as what it leads to."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return found.is_global and not found.is_multicast


async def _resolve(host: str, port: int) -> list[AddressInfo]:
    try:
        # A literal address needs no resolver thread.
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first = [info for info in infos if info[0] == infos[0][0]]
    second = [info for info in infos if info[0] != infos[0][0]]
    mixed = [info for info in chain.from_iterable(zip_longest(first, second)) if info is not None]
    if not mixed:
        raise OSError(f"{host} has no address")
    return mixed


async def _connect(address: AddressInfo) -> socket.socket:
    family, kind, protocol, _, sockaddr = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        prepare_socket(sock)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare_socket(sock: socket.socket) -> None:
    """Send small writes at once; probe silent peers."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE_OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _race(addresses: list[AddressInfo], stagger_s: float) -> socket.socket:
    attempts: list[asyncio.Task[socket.socket]] = []
    pending: set[asyncio.Task[socket.socket]] = set()
    winner: socket.socket | None = None
    error: OSError | None = None
    try:
        while winner is None and (pending or len(attempts) < len(addresses)):
            if len(attempts) < len(addresses):
                attempt = asyncio.create_task(_connect(addresses[len(attempts)]), name="upstream-connect")
                attempts.append(attempt)
                pending.add(attempt)
            more = len(attempts) < len(addresses)
            done, pending = await asyncio.wait(
                pending, timeout=stagger_s if more else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                failure = attempt.exception()
                if failure is None:
                    winner = winner or attempt.result()
                elif isinstance(failure, OSError):
                    error = failure
                else:
                    raise failure
    finally:
        await _discard(attempts, keep=winner)
    if winner is None:
        raise error or OSError("no address could be tried")
    return winner


async def _discard(attempts: list[asyncio.Task[socket.socket]], *, keep: socket.socket | None) -> None:
    for attempt in attempts:
        attempt.cancel()
    # A cancelled sock_connect ends in the next loop turn, so this does not wait for the network.
    results = await asyncio.gather(*attempts, return_exceptions=True)
    for result in results:
        if isinstance(result, socket.socket) and result is not keep:
            result.close()
