"""Reading an upstream's own list of models with a credential, for `model.for_auth`."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from pluginabi.body import Body
from pluginabi.errors import PluginError
from pluginabi.payloads.common import CredentialHandle
from pluginapi.context import Context
from pluginapi.upstream import upstream_error

__all__ = ["ACCEPT", "count", "model_pages", "text", "wants_lists"]

MAX_PAGES: Final = 50
"""An upstream whose list never ends must not keep anybody for ever."""
_PAGE: Final = msgspec.json.Decoder(dict[str, Any])
ACCEPT: Final[Mapping[str, Sequence[str]]] = {"accept": ("application/json",)}


def wants_lists(config: Mapping[str, Any]) -> bool:
    """Whether the operator said `list-models: true` in the plugin's section."""
    return config.get("list-models") is True


def text(value: object) -> str:
    """A trimmed text; anything else is none."""
    return value.strip() if isinstance(value, str) else ""


def count(value: object) -> int | None:
    """A whole number above 0; anything else is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53 else None


async def model_pages(
    ctx: Context,
    credential: CredentialHandle,
    url: str,
    *,
    items: str,
    protocol: str,
    following: Callable[[Mapping[str, Any]], str] = lambda page: "",
    headers: Mapping[str, Sequence[str]] = ACCEPT,
) -> AsyncIterator[Mapping[str, Any]]:
    """The objects of the member `items` of every page.

    `following`: what to append to `url` for the page after one; empty for none. Raises PluginError with the upstream's
    status, 502 for an answer that is no such list, and for a failed transfer as `ctx.http.do` does.
    """
    query = ""
    for _ in range(MAX_PAGES):
        answer = await ctx.http.do("GET", url + query, headers=headers, credential=credential)
        body = answer.body.to_bytes() if isinstance(answer.body, Body) else b""
        if not 200 <= answer.status < 300:
            raise upstream_error(answer.status, answer.headers, body, protocol=protocol)
        try:
            page = _PAGE.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise PluginError(
                "the upstream's list of models cannot be read", code="upstream_error", http_status=502
            ) from None
        found = page.get(items)
        for item in found if isinstance(found, list) else ():
            if isinstance(item, dict):
                yield item
        query = following(page)
        if not query:
            return
