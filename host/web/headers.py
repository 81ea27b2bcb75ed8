"""Response headers towards the client: the filter for foreign ones, and what every response of ours carries."""

import re
from collections.abc import Iterable
from typing import Final

from pluginabi.immutable import Headers

REQUEST_ID: Final = "X-Request-Id"
UPSTREAM_REQUEST_ID: Final = "X-Upstream-Request-Id"

EXPOSED: Final = (
    "X-Jackfield-Version",
    "X-Jackfield-Commit",
    "X-Jackfield-Build-Date",
    "X-Jackfield-Support-Plugin",
    "Location",
    "Retry-After",
    REQUEST_ID,
    UPSTREAM_REQUEST_ID,
    "OpenAI-Request-Id",
    "Request-Id",
    "Retry-After-Ms",
    "X-Should-Retry",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
    "*",
)
"""Headers that scripts of a web page may read. The star stands for what plugins and upstreams add, in requests without
cookies (Fetch standard, CORS protocol and credentials); browsers that take it for a name get what SDKs look at."""

CORS: Final = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: GET, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
    b"Access-Control-Allow-Headers: *\r\n"
    b"Access-Control-Expose-Headers: " + ", ".join(EXPOSED).encode() + b"\r\n"
)

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NEVER: Final = _HOP_BY_HOP | {"set-cookie", "content-length", "content-encoding", "date", "server"}
_FORBIDDEN_PREFIXES: Final = (
    "access-control-",
    "x-litellm-",
    "helicone-",
    "x-portkey-",
    "cf-aig-",
    "x-kong-",
    "x-bt-",
)
"""CORS is ours to set; the others are fingerprints of gateways behind us."""
_OWN: Final = frozenset({"cache-control", "content-type", "x-accel-buffering"})
"""Set by us where they matter; a foreign value never overwrites them."""

_TOKEN: Final = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_FORBIDDEN_IN_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def safe_headers(headers: Headers, *, keep_content_type: bool = False) -> list[tuple[str, str]]:
    """What of foreign headers a client may get, several values in order; an upstream's request id is renamed.

    Dropped: hop-by-hop names and those that `Connection` lists, framing, cookies, names of other gateways, CORS, and
    anything that could not be written as one header line. `keep_content_type` is for a response that a plugin wrote
    whole.
    """
    if not headers:
        return []
    dropped = _NEVER | {name.strip().lower() for value in headers.get("connection", ()) for name in value.split(",")}
    kept: list[tuple[str, str]] = []
    for name, values in headers.items():
        lowered = name.lower()
        if lowered in dropped or lowered.startswith(_FORBIDDEN_PREFIXES):
            continue
        if lowered in _OWN and not keep_content_type:
            continue
        if lowered == "x-request-id":
            name = UPSTREAM_REQUEST_ID
        if _TOKEN.match(name):
            kept += [(name, value) for value in values if not _FORBIDDEN_IN_VALUE.search(value)]
    return kept


def header_lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Header lines as bytes; the caller has checked names and values."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers]).encode()
