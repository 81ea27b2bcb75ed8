"""What a client is told whose path or method is no route: what the endpoint is called here, which base URL it needs.

A path that no client of the APIs served here would ask for gets no words at all, and neither does anything below the
paths of the management API: whether that is served, and what, is nobody's business.
"""

from collections.abc import Callable, Sequence
from typing import Final

from host.web.render_errors import Family
from pluginabi.errors import ErrorBody
from pluginabi.immutable import Headers

_MAX_SHOWN: Final = 200
_METHODS: Final = ("GET", "POST")
_TAILS: Final[Sequence[tuple[tuple[str, ...], Family]]] = (
    (("chat", "completions"), Family.OPENAI),
    (("responses", "compact"), Family.OPENAI),
    (("messages", "count_tokens"), Family.CLAUDE),
    (("completions",), Family.OPENAI),
    (("embeddings",), Family.OPENAI),
    (("responses",), Family.OPENAI),
    (("messages",), Family.CLAUDE),
)
"""How the paths of endpoints end, longer ones first."""
_BASES: Final = frozenset({"v1", "v1beta", "v1alpha", "v1beta1", "openai", "backend-api"})
_CLIENT_HEADERS: Final = (  # not `authorization`, which everybody sends
    "x-api-key",
    "x-goog-api-key",
    "anthropic-version",
    "x-stainless-lang",
    "x-goog-api-client",
)
_BASE_URLS: Final = {
    Family.OPENAI: "With an OpenAI SDK base_url is the address of this server followed by /v1, once.",
    Family.CLAUDE: "With an Anthropic SDK base_url is the address of this server alone, without /v1: the SDK adds it.",
    Family.GEMINI: (
        "With a Google SDK base_url is the address of this server alone, without a version, and vertexai is off."
    ),
}


def explain_unmatched(
    method: str, path: str, headers: Headers, *, is_route: Callable[[str, str], bool]
) -> tuple[Family, ErrorBody] | None:
    """Whose error a client reads and what it says, a 404; None for a path that is not meant for an API at all."""
    segments = [segment for segment in path.split("/") if segment]
    tail, family = _endpoint_of(segments)
    if not tail and not (any(name in headers for name in _CLIENT_HEADERS) or _BASES & set(segments[:1])):
        return None
    family = family or _family_of(headers, segments)
    shown = f"{method} {path}"[:_MAX_SHOWN]
    others = [other for other in _METHODS if other != method and is_route(other, path.rstrip("/"))]
    if others:
        return family, _error("wrong_method", f"{shown} is not served: use {' or '.join(others)} for this path.")
    if tail:
        meant = f"Invalid URL ({shown}): the endpoint is {tail}. {_BASE_URLS[family]}"
        return family, _error("unknown_path", meant)
    meant = f"Invalid URL ({shown}): this server has no such endpoint; GET / lists what it has. {_BASE_URLS[family]}"
    return family, _error("unknown_path", meant)


def _error(code: str, message: str) -> ErrorBody:
    return ErrorBody(message=message, code=code, http_status=404, origin="host")


def _endpoint_of(segments: Sequence[str]) -> tuple[str, Family | None]:
    """The endpoint that a path means, whatever stands in front of it, and whose it is."""
    if len(segments) > 1 and segments[-2] == "models" and ":" in segments[-1]:
        return f"POST /v1beta/models/{segments[-1]}", Family.GEMINI
    for tail, family in _TAILS:
        if tuple(segments[-len(tail) :]) == tail:
            return f"POST /v1/{'/'.join(tail)}", family
    if segments[-1:] == ["models"]:
        return f"GET /{'v1beta' if 'v1beta' in segments else 'v1'}/models", None
    return "", None


def _family_of(headers: Headers, segments: Sequence[str]) -> Family:
    if "anthropic-version" in headers or "messages" in segments:
        return Family.CLAUDE
    if (
        "x-goog-api-key" in headers
        or "x-goog-api-client" in headers
        or {"v1beta", "v1beta1", "v1alpha"} & set(segments)
    ):
        return Family.GEMINI
    return Family.OPENAI
