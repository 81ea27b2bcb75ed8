"""Protocol names, and which of them an executor should be asked in (spec plugin-abi 5.4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pluginabi.payloads.lifecycle import ExecutorRegistration

ANY: Final = "*"
MODEL_IN_BODY: Final = frozenset({"openai", "openai-response", "claude", "openai-embedding"})
"""Protocols whose request bodies carry `model`; Gemini has it in the path."""
OPTIONAL_ENDPOINTS: Final = frozenset({"openai-response", "openai-embedding", "gemini-embedding"})
"""Protocols of endpoints that an upstream may lack beside the one that it serves its models with."""
_ALIASES: Final = {
    "chat-completions": "openai",
    "chat_completions": "openai",
    "openai-chat-completions": "openai",
    "openai_chat_completions": "openai",
    "responses": "openai-response",
    "openai-responses": "openai-response",
    "openai_responses": "openai-response",
    "anthropic": "claude",
}

CanTranslate = Callable[[str, str], bool]
"""Whether somebody translates from the first format to the second."""


@dataclass(frozen=True, slots=True)
class Formats:
    """What an executor is asked in, and what it answers in."""

    input: str
    output: str


def canonical(name: str) -> str:
    """The canonical name of a format; empty for a blank one or `none`."""
    folded = name.strip().lower()
    if folded in ("", "none"):
        return ""
    return _ALIASES.get(folded, name.strip())


def declared(names: Iterable[str]) -> tuple[str, ...]:
    """Canonical names in order, blanks and repetitions removed; nothing declared means any."""
    return tuple(dict.fromkeys(name for name in map(canonical, names) if name)) or (ANY,)


def negotiate(
    registration: ExecutorRegistration | None,
    *,
    source: str,
    wanted: str,
    request: CanTranslate,
    response: CanTranslate,
    unsupported: frozenset[str] = frozenset(),
) -> Formats | None:
    """The formats for a request body in `source` whose answer is wanted in `wanted`; None when there is no way."""
    inputs = _left(registration.input_formats if registration is not None else (), unsupported)
    outputs = _left(registration.output_formats if registration is not None else (), unsupported)
    chosen_input = _choose(source, inputs, request, unsupported)
    if chosen_input is None:
        return None
    if wanted not in outputs and chosen_input in outputs and response(chosen_input, wanted):
        return Formats(chosen_input, chosen_input)
    chosen_output = _choose(wanted, outputs, lambda there, here: response(here, there), unsupported)
    return None if chosen_output is None else Formats(chosen_input, chosen_output)


def _left(names: Iterable[str], unsupported: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in declared(names) if name not in unsupported)


def _choose(wanted: str, offered: tuple[str, ...], reachable: CanTranslate, unsupported: frozenset[str]) -> str | None:
    if wanted in offered or (ANY in offered and wanted not in unsupported):
        return wanted
    return next((name for name in offered if name != ANY and reachable(wanted, name)), None)
