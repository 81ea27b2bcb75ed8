"""Events with which a stream begins and that say nothing yet.

On request they are held back, so that an overload that an upstream reports after them is still an ordinary failure
(spec credentials 12.10).
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET

from host.pipeline.decode import UNDECODABLE
from host.pipeline.scan import documents
from pluginabi.body import StreamItem

MAX_HELD_BYTES: Final = 64 * 1024
"""Of a beginning that is longer, nothing more is held back."""
_TYPES: Final = frozenset(
    {
        *("message_start", "content_block_start", "ping"),
        *("response.created", "response.queued", "response.in_progress"),
    }
)


def size_of(item: StreamItem) -> int:
    """Bytes of an item."""
    body = item.raw if item.raw is not UNSET else item.body
    return 0 if body is UNSET else len(body.to_bytes())


def is_handshake(item: StreamItem) -> bool:
    """Whether there is nothing of the answer in it. Gemini's streams begin with the answer."""
    found = documents(item.raw.to_bytes()) if item.raw is not UNSET else _event(item)
    return bool(found) and all(_says_nothing(document) for document in found)


def _event(item: StreamItem) -> list[dict[str, Any]]:
    if item.body is UNSET:
        return []
    try:
        document = msgspec.json.decode(item.body.to_bytes())
    except UNDECODABLE:
        return []
    return [document] if isinstance(document, dict) else []


def _says_nothing(document: dict[str, Any]) -> bool:
    choices = document.get("choices")
    if isinstance(choices, list):
        return bool(choices) and all(map(_is_role_only, choices))
    kind = document.get("type")
    return isinstance(kind, str) and kind in _TYPES


def _is_role_only(choice: Any) -> bool:
    """The first chunk of a chat: a role, and members that are empty."""
    if not isinstance(choice, dict) or choice.get("finish_reason"):
        return False
    delta = choice.get("delta")
    return isinstance(delta, dict) and not any(value for name, value in delta.items() if name != "role")
