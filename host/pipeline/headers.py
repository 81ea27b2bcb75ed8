"""Headers: deltas of plugins, and which upstream headers a client gets (spec client-api 2.8, plugin-abi 4.5)."""

from collections.abc import Mapping, Sequence
from typing import Final

from host.runtime.projection import SECRET_HEADERS
from pluginabi.immutable import EMPTY_HEADERS, FrozenDict, Headers

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NEVER_FORWARDED: Final = _HOP_BY_HOP | {"set-cookie", "content-length", "content-encoding"}
_GATEWAY_PREFIXES: Final = ("x-litellm-", "helicone-", "x-portkey-", "cf-aig-", "x-kong-", "x-bt-")
_RESERVED_PREFIX: Final = "access-control-"
REQUEST_ID: Final = "x-request-id"
UPSTREAM_REQUEST_ID: Final = "x-upstream-request-id"


def apply_delta(
    headers: Headers, *, clear: Sequence[str], replace: Mapping[str, Sequence[str]], may_see_secrets: bool
) -> tuple[Headers, list[str]]:
    """`headers` after a plugin's delta, and the hidden names it touched, which were ignored.

    `clear` first, then `replace` (an empty list clears).
    """
    if not clear and not replace:
        return headers, []
    ignored: list[str] = []
    changed = dict(headers)
    for name in (name.lower() for name in clear):
        if name in SECRET_HEADERS and not may_see_secrets:
            ignored.append(name)
        else:
            changed.pop(name, None)
    for name, values in replace.items():
        folded = name.lower()
        if folded in SECRET_HEADERS and not may_see_secrets:
            ignored.append(folded)
        elif values:
            changed[folded] = tuple(values)
        else:
            changed.pop(folded, None)
    return FrozenDict(changed), ignored


def client_headers(
    upstream: Headers, final: Headers, *, passthrough: bool, added: Mapping[str, Sequence[str]] | None = None
) -> Headers:
    """What the client gets: with passthrough the final headers, else what interceptors added or changed; filtered.

    `added` replaces what is there: it is what interceptors of the request have said.

    `upstream` are the headers as they came, `final` the same after all interceptors (the same object when none ran).
    """
    if added:
        shown = client_headers(upstream, final, passthrough=passthrough)
        return FrozenDict({**shown, **filtered(FrozenDict(added))})
    if passthrough:
        return filtered(final)
    if final is upstream:
        return EMPTY_HEADERS
    return filtered({name: values for name, values in final.items() if list(upstream.get(name, ())) != list(values)})


def filtered(headers: Headers) -> Headers:
    """`headers` without what belongs to a connection or to another gateway; our request id is never overridden."""
    if not headers:
        return EMPTY_HEADERS
    named = {
        token.strip().lower() for value in headers.get("connection", ()) for token in value.split(",") if token.strip()
    }
    kept: dict[str, Sequence[str]] = {}
    for name, values in headers.items():
        if name in _NEVER_FORWARDED or name in named or name.startswith(_GATEWAY_PREFIXES):
            continue
        if name.startswith(_RESERVED_PREFIX):
            continue
        kept[UPSTREAM_REQUEST_ID if name == REQUEST_ID else name] = tuple(values)
    return FrozenDict(kept) if kept else EMPTY_HEADERS
