"""Text of strangers on a terminal: nothing in it may move the cursor or reorder what stands around it."""

import unicodedata
from typing import Final

_MAX_CHARS: Final = 300


def clean(text: str) -> str:
    """One line without control and formatting characters, at most 300 characters long."""
    visible = "".join(char if unicodedata.category(char) not in ("Cc", "Cf", "Cs") else " " for char in text)
    return visible if len(visible) <= _MAX_CHARS else f"{visible[:_MAX_CHARS]}…"
