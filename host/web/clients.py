"""Where a request comes from: the client's address behind trusted proxies."""

import ipaddress
from collections.abc import Sequence

from aiohttp import web

from host.pipeline.access import anonymous_request_allowed, is_loopback_name
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


def is_local_request(client_address: str, headers: Headers) -> bool:
    """Whether the request comes from this machine (a Unix socket does) and no web page of another host is behind it."""
    local_client = not client_address or is_loopback_name(client_address)
    host, origin = headers.get("host", ("",))[0], headers.get("origin", ("",))[0]
    return local_client and anonymous_request_allowed(host, origin)


def _address(text: str) -> Address | None:
    text = text.strip("[] ").partition("%")[0]
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
