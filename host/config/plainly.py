"""Values that are written in one way only: without asking the library that keeps comments, which takes a thousand times
as long."""

import re
from typing import Any, Final

from host.config.align import same
from host.config.tree import Unsure, scalar

_WORD: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_./:@+-]*[A-Za-z0-9_/])?")
"""Strings and keys that need no quotes, if they are none of YAML's own words."""
_VALUE: Final = re.compile(r":( +)([^\s#'\"]\S*)( +#[^\n]*)?\n")
"""What follows a key: its value in one piece, and a comment."""
_SPECIAL: Final = frozenset("[]{}&*!|>%@`,?-:")
_WORDS: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def simple_text(value: Any) -> str | None:
    """A scalar as it is written; None where that takes a thought."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    if type(value) is str and _WORD.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return None


def simple_item(value: Any) -> list[str] | None:
    """The lines of an item of a list; None where that takes a thought."""
    if not isinstance(value, dict):
        text = simple_text(value)
        return None if text is None else [f"- {text}\n"]
    lines: list[str] = []
    for key, member in value.items():
        name, text = simple_text(key) if isinstance(key, str) else None, simple_text(member)
        if name is None or text is None:
            return None
        lines.append(f"{'  ' if lines else '- '}{name}: {text}\n")
    return lines or None


def with_value(line: str, key: Any, old: Any, value: Any) -> str | None:
    """A line that says one pair, with another value; None where the line says more, or is not read at a glance.

    What follows the value stays where it was if there is room.
    """
    text = simple_text(value)
    if text is None or not isinstance(key, str) or not line.startswith(key):
        return None
    found = _VALUE.fullmatch(line, len(key))
    if found is None or found[2][0] in _SPECIAL or not _WORD.fullmatch(key):
        return None
    try:
        if not same(scalar(found[2]), old):
            return None
    except Unsure:
        return None
    comment = found[3] or ""
    if comment:
        comment = " " * max(1, len(found[2]) + len(comment) - len(comment.lstrip()) - len(text)) + comment.lstrip()
    return f"{key}:{found[1]}{text}{comment}\n"
