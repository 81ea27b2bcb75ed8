"""Names of languages and kinds, apart from everything else so that the command line's help is instant."""

from typing import Final

LANGUAGE_NAMES: Final = ("python", "node", "go", "rust", "c", "shell")
KINDS: Final = (
    "router",
    "scheduler",
    "interceptor",
    "guard",
    "stream",
    "executor",
    "normalizer",
    "translator",
    "thinking",
    "usage",
    "management",
    "auth",
    "frontend-auth",
    "command-line",
)
SHELL_KINDS: Final = ("router", "scheduler", "interceptor", "guard", "usage", "frontend-auth", "command-line")
"""Decisions that need no streams and no large bodies; the others want a language with data structures."""


def kinds_of(language: str) -> tuple[str, ...]:
    """The kinds offered in a language."""
    return SHELL_KINDS if language == "shell" else KINDS
