"""What the host tells plugins about a request beside its body (spec client-api 7.3, 7.5, 9.7)."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from host.pipeline.decode import UNDECODABLE
from host.pipeline.request import NO_DEMANDS, ClientRequest
from host.registry.suffix import split_suffix
from pluginabi.immutable import FrozenDict, Metadata, freeze

NESTED_SOURCE: Final = "plugin_host_model_callback"
DEFAULT_TIER: Final = "auto"
_LEVELS: Final = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})


class _Facts(Struct, kw_only=True):
    """The members of a body that say something about the request; anything may be in them."""

    service_tier: Any = None
    generate: Any = None
    reasoning_effort: Any = None
    reasoning: Any = None
    thinking: Any = None
    output_config: Any = None
    generation_config: Any = msgspec.field(default=None, name="generationConfig")


class _Gemini(Struct, kw_only=True):
    thinking: Any = msgspec.field(default=None, name="thinkingConfig")


class _GeminiFacts(Struct, kw_only=True):
    """Gemini's generation config may hold a whole response schema: only its thinking part is decoded."""

    service_tier: Any = None
    generate: Any = None
    generation_config: _Gemini | None = msgspec.field(default=None, name="generationConfig")


_FACTS: Final = msgspec.json.Decoder(_Facts)
_GEMINI_FACTS: Final = msgspec.json.Decoder(_GeminiFacts)
_NO_FACTS: Final = _Facts()


def base_metadata(request: ClientRequest, *, nested: bool) -> dict[str, Any]:
    """What is known before routing."""
    _, _, path = request.endpoint.partition(" ")
    found: dict[str, Any] = {"requested_model": request.model, "request_path": path}
    keys = request.headers.get("idempotency-key")
    if keys and (key := keys[0].strip()):
        found["idempotency_key"] = key
    if nested:
        found["source"] = NESTED_SOURCE
    demands = request.demands
    if demands is not NO_DEMANDS:
        if demands.pinned_auth_id:
            found["pinned_auth_id"] = demands.pinned_auth_id
        if demands.disallow_free_auth:
            found["disallow_free_auth"] = True
        if demands.execution_session_id:
            found["execution_session_id"] = demands.execution_session_id
    principal = request.principal
    if principal.name:
        found["caller"] = principal.name
    if principal.scope:
        found["caller_scope"] = principal.scope
    if principal.metadata:
        found["caller_metadata"] = freeze(principal.metadata)
    return found


def full_metadata(base: Metadata, request: ClientRequest, body: bytes) -> Metadata:
    """`base` plus what the body says."""
    facts = _facts(request.protocol, body)
    found = dict(base)
    if facts == _NO_FACTS and not request.model.endswith(")"):
        found["service_tier"] = DEFAULT_TIER
        found["generate"] = True
        return FrozenDict(found)
    tier = facts.service_tier
    found["service_tier"] = tier.strip() if isinstance(tier, str) and tier.strip() else DEFAULT_TIER
    found["generate"] = facts.generate is not False
    if effort := reasoning_effort(request.protocol, request.model, facts):
        found["reasoning_effort"] = effort
    return FrozenDict(found)


def _facts(protocol: str, body: bytes) -> Any:
    decoder: Any = _GEMINI_FACTS if protocol == "gemini" else _FACTS
    try:
        return decoder.decode(body)
    except UNDECODABLE:
        # Not an object, or a member of an unexpected type: the body says nothing we understand.
        return _NO_FACTS


def reasoning_effort(protocol: str, model: str, facts: Any) -> str | None:
    """The canonical label: of the model's suffix when it has one we know, else of the body."""
    _, suffix = split_suffix(model)
    if suffix is not None and (label := _suffix_label(suffix)):
        return label
    match protocol:
        case "openai":
            return _text(facts.reasoning_effort) or _text(_member(facts.reasoning, "effort"))
        case "openai-response":
            return _text(_member(facts.reasoning, "effort"))
        case "claude":
            return _claude(facts.thinking, facts.output_config)
        case "gemini":
            config = facts.generation_config
            return _gemini(config.thinking if isinstance(config, _Gemini) else None)
    return None


def budget_label(budget: int) -> str:
    """The level that a token budget amounts to."""
    if budget < 0:
        return "auto"
    for limit, label in ((0, "none"), (512, "minimal"), (1024, "low"), (8192, "medium"), (24576, "high")):
        if budget <= limit:
            return label
    return "xhigh"


def _suffix_label(suffix: str) -> str | None:
    folded = suffix.strip().lower()
    if folded in ("none", "auto") or folded in _LEVELS:
        return folded
    if folded == "-1":
        return "auto"
    return budget_label(int(folded)) if folded.isascii() and folded.isdigit() else None


def _claude(thinking: Any, output_config: Any) -> str | None:
    kind = _member(thinking, "type")
    if kind == "disabled":
        return "none"
    effort = _text(_member(output_config, "effort"))
    if kind in ("adaptive", "auto") and effort:
        return effort
    budget = _member(thinking, "budget_tokens")
    if isinstance(budget, int):
        return budget_label(budget)
    if kind == "enabled" or kind in ("adaptive", "auto"):
        return "auto"
    return effort


def _gemini(thinking: Any) -> str | None:
    level = _text(_member(thinking, "thinkingLevel")) or _text(_member(thinking, "thinking_level"))
    if level:
        return level
    for name in ("thinkingBudget", "thinking_budget"):
        budget = _member(thinking, name)
        if isinstance(budget, int):
            return budget_label(budget)
    return None


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return value.strip().lower() or None if isinstance(value, str) else None
