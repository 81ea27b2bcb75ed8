"""Finds the line of a key in a TOML text, because the standard parser keeps no positions."""

import re
from collections.abc import Sequence
from typing import Final

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*(?P<path>[^\]]+?)\s*\]\]?\s*(#.*)?$")
_PART: Final = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+))\s*(?:\.|$)")
_KEY: Final = re.compile(r"^\s*(?P<path>(?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_.\s-])+?)\s*=")
_QUOTES: Final = ('"""', "'''")


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line on which the value at `path` begins; an integer part counts the items of an array.

    Inside an inline table or array the line of the nearest enclosing key is given; None when not even that is found.
    """
    lines = _key_lines(text)
    wanted = tuple(str(part) for part in path)
    for length in range(len(wanted), 0, -1):
        prefix = wanted[:length]
        # A table may exist only through keys like `table.key`; then its first one stands for it.
        line = lines.get(prefix) or next((number for key, number in lines.items() if key[:length] == prefix), None)
        if line is not None:
            return line
    return None


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Path -> line for every table header and every key that starts a line."""
    found: dict[tuple[str, ...], int] = {}
    items_of_array: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    open_quote: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if open_quote is not None:
            if open_quote in line:
                open_quote = None
            continue
        header = _HEADER.match(line)
        if header is not None and "=" not in line.split("#", 1)[0]:
            table = _split(header["path"])
            if header[1] == "[[":
                index = items_of_array.get(table, -1) + 1
                items_of_array[table] = index
                table = (*table, str(index))
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key is not None:
            found.setdefault(table + _split(key["path"]), number)
        open_quote = next((quote for quote in _QUOTES if line.count(quote) % 2), None)
    return found


def _split(path: str) -> tuple[str, ...]:
    return tuple(quoted or literal or bare for quoted, literal, bare in _PART.findall(path))
