"""Model lists in the shape of each client family."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from host.errors import RequestError
from host.web.codex_catalogue import catalogue
from pluginabi.immutable import Headers
from pluginabi.payloads.common import ModelInfo

DEFAULT_CLAUDE_INPUT_TOKENS: Final = 200_000
DEFAULT_CLAUDE_OUTPUT_TOKENS: Final = 64_000
_GEMINI_PREFIX: Final = "models/"


class Shape(StrEnum):
    """Who asks `GET /v1/models`."""

    OPENAI = "openai"
    CLAUDE = "claude"
    CODEX = "codex"
    GEMINI = "gemini"


def shape_of(headers: Headers, query: Headers) -> Shape:
    """Codex clients send `client_version`, Anthropic's SDK a version header, Google's its key or name in headers of its
    own; everybody else gets OpenAI's list."""
    if "client_version" in query:
        return Shape.CODEX
    if any(value.strip() for value in headers.get("anthropic-version", ())):
        return Shape.CLAUDE
    if any(agent.startswith("claude-cli") for agent in headers.get("user-agent", ())):
        return Shape.CLAUDE
    if "x-goog-api-key" in headers or "x-goog-api-client" in headers:
        return Shape.GEMINI
    return Shape.OPENAI


def listing(infos: Sequence[ModelInfo], shape: Shape) -> dict[str, Any]:
    """The whole list."""
    match shape:
        case Shape.CODEX:
            return {"models": catalogue(infos)}
        case Shape.CLAUDE:
            data = sorted((claude_entry(info) for info in infos), key=lambda each: (each["display_name"], each["id"]))
            return {
                "data": data,
                "has_more": False,
                "first_id": data[0]["id"] if data else "",
                "last_id": data[-1]["id"] if data else "",
            }
        case Shape.GEMINI:
            return {"models": [gemini_entry(info) for info in infos]}
        case _:
            return {"object": "list", "data": [openai_entry(info) for info in sorted(infos, key=lambda each: each.id)]}


def entry(info: ModelInfo, shape: Shape) -> dict[str, Any]:
    """One model."""
    match shape:
        case Shape.CLAUDE:
            return claude_entry(info)
        case Shape.GEMINI:
            return gemini_entry(info)
        case _:
            return openai_entry(info)


def find(infos: Sequence[ModelInfo], name: str) -> ModelInfo | None:
    """A model by its id or name, with or without the prefix `models/`."""
    bare = name.removeprefix(_GEMINI_PREFIX)
    for info in infos:
        if bare == info.id or bare == info.name.removeprefix(_GEMINI_PREFIX) or name == info.id:
            return info
    return None


def unknown(name: str) -> RequestError:
    """The 404 for a model that is not listed."""
    return RequestError(404, "model_not_found", f"there is no model {name!r}", details={"param": "model"})


def openai_entry(info: ModelInfo) -> dict[str, Any]:
    """One entry of OpenAI's list."""
    shown: dict[str, Any] = {"id": info.id, "object": "model"}
    if info.created:
        shown["created"] = info.created
    return {**shown, "owned_by": info.owned_by}


def claude_entry(info: ModelInfo) -> dict[str, Any]:
    """One entry of Anthropic's list."""
    shown: dict[str, Any] = {
        "id": info.id,
        "object": "model",
        "owned_by": info.owned_by,
        "type": "model",
        "display_name": info.display_name or info.id,
    }
    if info.created and (created_at := _rfc3339(info.created)):
        shown["created_at"] = created_at
    shown["max_input_tokens"] = info.context_length or info.input_token_limit or DEFAULT_CLAUDE_INPUT_TOKENS
    shown["max_tokens"] = info.max_completion_tokens or info.output_token_limit or DEFAULT_CLAUDE_OUTPUT_TOKENS
    return shown


def _rfc3339(moment_s: int) -> str:
    """Empty for what is no time: an upstream that counts in milliseconds must not cost everybody the list."""
    try:
        moment = datetime.datetime.fromtimestamp(moment_s, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def gemini_entry(info: ModelInfo) -> dict[str, Any]:
    """One entry of Gemini's list; the same for the list and a single model."""
    name = info.name or info.id
    shown: dict[str, Any] = {
        "name": name if name.startswith(_GEMINI_PREFIX) else _GEMINI_PREFIX + name,
        "version": info.version,
        "displayName": info.display_name or name,
        "description": info.description or name,
        "inputTokenLimit": info.input_token_limit or info.context_length,
        "outputTokenLimit": info.output_token_limit or info.max_completion_tokens,
        "supportedGenerationMethods": list(info.supported_generation_methods) or ["generateContent"],
        "supportedInputModalities": list(info.supported_input_modalities),
        "supportedOutputModalities": list(info.supported_output_modalities),
    }
    return {key: value for key, value in shown.items() if value}
