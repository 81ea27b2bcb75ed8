"""Token counts as the four families write them, read into one shape."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from host.pipeline.decode import UNDECODABLE
from pluginabi.frames import Usage


class _Answer(Struct, kw_only=True):
    usage: Any = None
    usage_metadata: Any = msgspec.field(default=None, name="usageMetadata")


_ANSWER: Final = msgspec.json.Decoder(_Answer)


def usage_of_body(body: bytes) -> Usage | None:
    """The usage of a complete answer; None when it says nothing. Answers without the word are not decoded."""
    if b'"usage' not in body:
        return None
    try:
        answer = _ANSWER.decode(body)
    except UNDECODABLE:
        return None
    return usage_of_document({"usage": answer.usage, "usageMetadata": answer.usage_metadata})


def usage_of_document(document: dict[str, Any]) -> Usage | None:
    """The usage of an answer or of one stream event, wherever its family puts it."""
    for holder in (document, document.get("message"), document.get("response")):
        if not isinstance(holder, dict):
            continue
        if isinstance(usage := holder.get("usage"), dict):
            return _of_usage(usage)
        if isinstance(usage := holder.get("usageMetadata"), dict):
            return _of_gemini(usage)
    return None


def _of_usage(usage: dict[str, Any]) -> Usage | None:
    """OpenAI chat, embeddings and Responses, and Anthropic: their names do not collide."""
    prompt_details = _dict(usage.get("prompt_tokens_details")) or _dict(usage.get("input_tokens_details"))
    output_details = _dict(usage.get("completion_tokens_details")) or _dict(usage.get("output_tokens_details"))
    found = {
        "input_tokens": _first(usage, "prompt_tokens", "input_tokens"),
        "output_tokens": _first(usage, "completion_tokens", "output_tokens"),
        "reasoning_tokens": _first(output_details, "reasoning_tokens"),
        "cached_tokens": _first(prompt_details, "cached_tokens"),
        "cache_read_tokens": _first(usage, "cache_read_input_tokens"),
        "cache_creation_tokens": _first(usage, "cache_creation_input_tokens"),
        "total_tokens": _first(usage, "total_tokens"),
    }
    return _usage(found)


def _of_gemini(usage: dict[str, Any]) -> Usage | None:
    return _usage(
        {
            "input_tokens": _first(usage, "promptTokenCount"),
            "output_tokens": _first(usage, "candidatesTokenCount"),
            "reasoning_tokens": _first(usage, "thoughtsTokenCount"),
            "cached_tokens": _first(usage, "cachedContentTokenCount"),
            "total_tokens": _first(usage, "totalTokenCount"),
        }
    )


def _usage(found: dict[str, int | None]) -> Usage | None:
    return Usage(**found) if any(value is not None for value in found.values()) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(holder: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = holder.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
