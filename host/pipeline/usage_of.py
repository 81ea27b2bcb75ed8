"""Token counts as the four families write them, read into one shape."""

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from host.pipeline.decode import UNDECODABLE
from pluginabi.frames import Usage

Count: TypeAlias = Annotated[int, Meta(ge=0)] | None


class _Tier(Struct):
    service_tier: str | None = None


class _TierHolder(Struct):
    """OpenAI names the tier beside the counts, Anthropic among them."""

    service_tier: str | None = None
    usage: _Tier | None = None


class _Details(Struct, kw_only=True):
    cached_tokens: Count = None
    reasoning_tokens: Count = None


class _Counts(Struct, kw_only=True):
    """OpenAI chat, embeddings and Responses, and Anthropic: their names do not collide."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    input_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    cache_read_input_tokens: Count = None
    cache_creation_input_tokens: Count = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _GeminiCounts(Struct, kw_only=True, rename="camel"):
    prompt_token_count: Count = None
    candidates_token_count: Count = None
    thoughts_token_count: Count = None
    cached_content_token_count: Count = None
    total_token_count: Count = None


class _Holder(Struct, kw_only=True):
    """What holds the counts: an answer, or a stream event's message or response."""

    usage: _Counts | None = None
    usage_metadata: _GeminiCounts | None = msgspec.field(default=None, name="usageMetadata")


_ANSWER: Final = msgspec.json.Decoder(_Holder)
_TIER: Final = msgspec.json.Decoder(_TierHolder)
_TIER_NAME: Final = b'"service_tier"'
_MAX_TIER: Final = 64


def usage_of_body(body: bytes) -> Usage | None:
    """The usage of a complete answer; None when it says nothing. Answers without the word are not decoded."""
    if b'"usage' not in body:
        return None
    try:
        holder = _ANSWER.decode(body)
    except UNDECODABLE:
        return None
    return _of_holder(holder)


def usage_of_document(document: dict[str, Any]) -> Usage | None:
    """The usage of an answer or of one stream event, wherever its family puts it."""
    for place in (document, document.get("message"), document.get("response")):
        if not isinstance(place, dict) or not (place.get("usage") or place.get("usageMetadata")):
            continue
        try:
            return _of_holder(msgspec.convert(place, _Holder))
        except UNDECODABLE:
            return None
    return None


def tier_of_body(body: bytes) -> str:
    """The service tier that served a complete answer, as the upstream names it; empty when it says nothing."""
    if _TIER_NAME not in body:
        return ""
    try:
        return _tier_of_holder(_TIER.decode(body))
    except UNDECODABLE:
        return ""


def tier_of_document(document: dict[str, Any]) -> str:
    """The same of a stream event, wherever its family puts it."""
    for place in (document, document.get("message"), document.get("response")):
        try:
            if isinstance(place, dict) and (tier := _tier_of_holder(msgspec.convert(place, _TierHolder))):
                return tier
        except UNDECODABLE:
            continue
    return ""


def _tier_of_holder(holder: _TierHolder) -> str:
    tier = holder.service_tier or (holder.usage.service_tier if holder.usage is not None else None)
    return (tier or "").strip()[:_MAX_TIER]


def _of_holder(holder: _Holder) -> Usage | None:
    usage, gemini = holder.usage, holder.usage_metadata
    if usage is not None:
        prompt = usage.prompt_tokens_details or usage.input_tokens_details
        output = usage.completion_tokens_details or usage.output_tokens_details
        return Usage(
            input_tokens=usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens,
            output_tokens=usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens,
            reasoning_tokens=output.reasoning_tokens if output is not None else None,
            cached_tokens=prompt.cached_tokens if prompt is not None else None,
            cache_read_tokens=usage.cache_read_input_tokens,
            cache_creation_tokens=usage.cache_creation_input_tokens,
            total_tokens=usage.total_tokens,
        )
    if gemini is not None:
        return Usage(
            input_tokens=gemini.prompt_token_count,
            output_tokens=gemini.candidates_token_count,
            reasoning_tokens=gemini.thoughts_token_count,
            cached_tokens=gemini.cached_content_token_count,
            total_tokens=gemini.total_token_count,
        )
    return None
