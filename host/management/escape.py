"""Texts of plugins made harmless for a page that inserts them without care (spec plugin-abi 7.7)."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

_ENTITIES: Final = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;", "'": "&#39;", '"': "&#34;"})
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"(\s*:)?')
"""A string of a valid JSON document, and whether it is a member's name."""
_HARMLESS: Final = re.compile(rb"""[^<>&'\\]*""")


def escape_text(text: str) -> str:
    """The five characters that mean something in HTML, as entities."""
    return text.translate(_ENTITIES)


def escape_values(value: Any) -> Any:
    """Every text in plain values, names of members excepted."""
    if isinstance(value, str):
        return escape_text(value)
    if isinstance(value, Mapping):
        return {name: escape_values(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_values(item) for item in value]
    return value


def escape_json(body: bytes) -> bytes:
    """The same for a JSON document, whose numbers, names, order and spaces stay; anything else stays as it is."""
    if _HARMLESS.fullmatch(body):
        return body
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    return _STRING.sub(_escaped, body)


def looks_like_json(content_type: str, body: bytes) -> bool:
    """By its type, or by how it begins."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json") or body.lstrip()[:1] in (b"{", b"[")


def _escaped(match: re.Match[bytes]) -> bytes:
    token = match[0]
    if match[1] is not None:
        return token
    text: str = msgspec.json.decode(token)
    escaped = escape_text(text)
    return token if escaped == text else msgspec.json.encode(escaped)
