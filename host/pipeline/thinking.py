"""The suffix of a model name as a thinking configuration (spec client-api 7.5)."""

from typing import Final

from pluginabi.payloads.thinking import ThinkingConfig

_LEVELS: Final = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})


def thinking_config(suffix: str) -> ThinkingConfig | None:
    """What `name(suffix)` asks for; None for a suffix that says nothing about thinking."""
    folded = suffix.strip().lower()
    if folded in ("auto", "-1"):
        return ThinkingConfig(mode="auto")
    if folded in ("none", "0"):
        return ThinkingConfig(mode="none", budget=0)
    if folded in _LEVELS:
        return ThinkingConfig(mode="level", level=folded)
    if folded.isascii() and folded.isdigit():
        return ThinkingConfig(mode="budget", budget=int(folded))
    return None
