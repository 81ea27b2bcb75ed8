"""The model catalogue that Codex clients ask for (`GET /v1/models?client_version=…`; spec client-api 3.6)."""

from collections.abc import Sequence
from typing import Any, Final

from pluginabi.payloads.common import ModelInfo

_LEVELS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
_DEFAULT_LEVELS: Final = ("low", "medium", "high")
_FIRST_PRIORITY: Final = 29
_PRIORITY_STEP: Final = 100
_CONTEXT_WINDOW: Final = 200_000


def catalogue(infos: Sequence[ModelInfo]) -> list[dict[str, Any]]:
    """One entry per model, by display name. Our template is neutral: it carries no vendor's instructions."""
    entries = [_entry(info) for info in infos if info.id.strip()]
    entries.sort(key=lambda each: (each["display_name"].lower(), each["slug"]))
    for position, each in enumerate(entries, start=1):
        each["priority"] = _FIRST_PRIORITY + _PRIORITY_STEP * position
    return entries


def _entry(info: ModelInfo) -> dict[str, Any]:
    declared = info.thinking.levels if info.thinking is not None else ()
    levels = [level.lower() for level in declared if level.lower() in _LEVELS] or list(_DEFAULT_LEVELS)
    window = info.context_length or info.input_token_limit or _CONTEXT_WINDOW
    modalities = [word.lower() for word in info.supported_input_modalities if word.lower() in ("text", "image")]
    return {
        "slug": info.id,
        "display_name": info.display_name or info.id,
        "description": info.description or info.id,
        "base_instructions": "",
        "context_window": window,
        "max_context_window": window,
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
        "default_reasoning_level": _default_level(levels),
        "supported_reasoning_levels": [{"effort": level, "description": f"{level} effort"} for level in levels],
        "supports_reasoning_summaries": True,
        "default_reasoning_summary": "auto",
        "support_verbosity": False,
        "shell_type": "default",
        "input_modalities": modalities or ["text"],
        "supports_image_detail_original": "image" in modalities,
        "supports_parallel_tool_calls": True,
        "supports_search_tool": False,
        "experimental_supported_tools": [],
        "prefer_websockets": False,
        "visibility": "hide" if _is_media(info) else "list",
        "minimal_client_version": "0.0.1",
        "supported_in_api": True,
        "service_tiers": [],
        "additional_speed_tiers": [],
        "priority": _PRIORITY_STEP,
    }


def _default_level(levels: list[str]) -> str:
    if "medium" in levels:
        return "medium"
    return next((level for level in levels if level != "none"), levels[0])


def _is_media(info: ModelInfo) -> bool:
    outputs = {word.lower() for word in info.supported_output_modalities}
    return info.type in ("openai-image", "openai-video") or (bool(outputs) and "text" not in outputs)
