"""HTTP/1.1 client for all upstream traffic. A leaf: nothing of ours is imported from here.

client.py       UpstreamClient.send: find a connection, write, wait for the head; the retry policy
pool.py         kept-alive connections and the sweep that enforces time limits
dial.py         new connections: tcp.py (addresses), tunnel.py (HTTP CONNECT, SOCKS), then TLS
connection.py   one connection as an asyncio protocol; parser.py turns its bytes into an answer
response.py     what the caller reads; stream.py (back-pressure), decompress.py (Content-Encoding)
origin.py       URLs; encode.py request heads
errors.py       the error tree
"""

from host.upstream.client import UpstreamClient
from host.upstream.errors import (
    BodyTooLarge,
    ConnectError,
    InvalidRequest,
    Phase,
    ProxyError,
    TlsError,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from host.upstream.model import ClientLimits, ClientStats, UpstreamRequest
from host.upstream.origin import ProxyAddress, check_base_url, parse_proxy
from host.upstream.response import UpstreamResponse

__all__ = [
    "BodyTooLarge",
    "ClientLimits",
    "ClientStats",
    "ConnectError",
    "InvalidRequest",
    "Phase",
    "ProxyAddress",
    "ProxyError",
    "TlsError",
    "UpstreamClient",
    "UpstreamDisconnected",
    "UpstreamError",
    "UpstreamProtocolError",
    "UpstreamRequest",
    "UpstreamResponse",
    "UpstreamTimeout",
    "check_base_url",
    "parse_proxy",
]
