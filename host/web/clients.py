"""Where a request comes from: the client's address behind trusted proxies."""

import ipaddress
from collections.abc import Sequence

from aiohttp import web

from pluginabi.immutable import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed."""

    def __init__(self, entries: Sequence[str]) -> None:
        """Entries are addresses or networks. Raises ValueError for anything else."""
        self._networks: list[Network] = [ipaddress.ip_network(entry, strict=False) for entry in entries]

    def client_address(self, peer: str, headers: Headers) -> str:
        """The address of the client: the last one in the chain that is no trusted proxy."""
        if not self._networks or not self._trusts(peer):
            return peer
        forwarded = [part.strip() for value in headers.get("x-forwarded-for", ()) for part in value.split(",")]
        client = peer
        for hop in reversed(forwarded):
            address = _address(hop)
            if address is None:
                break
            client = str(address)
            if not self._trusts(client):
                break
        return client

    def _trusts(self, address: str) -> bool:
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def peer_address(request: web.BaseRequest) -> str:
    """The address of the other end of the connection; empty on a Unix socket."""
    peer = request.protocol.peername
    return str(peer[0]) if isinstance(peer, tuple) else ""


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine; a Unix socket (empty) is."""
    if address in ("127.0.0.1", "::1", ""):
        return True
    parsed = _address(address)
    return parsed is not None and parsed.is_loopback


def is_loopback_request(client_address: str, headers: Headers) -> bool:
    """Whether the request comes from this machine and not from a web page.

    A page of any site can make a browser on this machine send requests; `Origin` and (after DNS rebinding) `Host`
    give it away.
    """
    hosts = [_host_name(value) for value in headers.get("host", ())]
    origins = [_host_name(value.partition("//")[2]) for value in headers.get("origin", ())]
    return is_loopback(client_address) and all(_names_loopback(name) for name in hosts + origins)


def _host_name(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _names_loopback(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or (name != "" and is_loopback(name))


def _address(text: str) -> Address | None:
    text = text.strip("[] ").partition("%")[0]
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
