"""What only the account that made it can read: response ids, conversations, encrypted reasoning (Responses API).

Seen in an answer, it is bound to the credential; found in a request, it says which credential must serve it. Sent to
another account it is refused, and the conversation is lost. Only hashes are kept.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field

TTL_S: Final = 30 * 24 * 3600.0
"""As long as the vendor keeps responses."""
MAX_REFERENCES: Final = 64
"""Of one request or answer, the latest first."""
_MARKS: Final = (b'"previous_response_id"', b'"encrypted_content"', b'"conversation"', b'"item_reference"', b'"rs_')
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Item(Struct):
    type: Any = None
    id: Any = None
    encrypted_content: Any = None


class _Answer(Struct):
    id: Any = None
    conversation: Any = None
    output: Raw = field(default_factory=Raw)


class _Event(Struct):
    response: _Answer | None = None


class _Request(Struct):
    previous_response_id: Any = None
    conversation: Any = None
    input: Raw = field(default_factory=Raw)


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_EVENT: Final = msgspec.json.Decoder(_Event)
_REQUEST: Final = msgspec.json.Decoder(_Request)
_ITEMS: Final = msgspec.json.Decoder(list[_Item])


def references_in(body: bytes) -> list[str]:
    """What a request of the Responses API refers to, the most binding first; empty when it stands alone."""
    if not any(mark in body for mark in _MARKS):
        return []
    try:
        request = _REQUEST.decode(body)
    except _UNDECODABLE:
        return []
    found = [request.previous_response_id, _conversation(request.conversation)]
    found += reversed(list(_of_items(request.input)))
    return _keys(found)


def made_by_answer(body: bytes) -> list[str]:
    """What an answer of the Responses API brings into being."""
    try:
        return _made(_ANSWER.decode(body))
    except _UNDECODABLE:
        return []


def made_by_event(data: bytes) -> list[str]:
    """What the event at the end of a stream says the stream brought into being."""
    try:
        event = _EVENT.decode(data)
    except _UNDECODABLE:
        return []
    return _made(event.response) if event.response is not None else []


def _made(answer: _Answer) -> list[str]:
    return _keys([answer.id, _conversation(answer.conversation), *reversed(list(_of_items(answer.output)))])


def _of_items(raw: Raw) -> Iterator[Any]:
    """Encrypted contents, and the ids of items that are only stored upstream."""
    if not bytes(raw):
        return
    try:
        items = _ITEMS.decode(raw)
    except _UNDECODABLE:
        return
    for item in items:
        if isinstance(item.encrypted_content, str) and item.encrypted_content:
            yield item.encrypted_content
        elif item.type in ("item_reference", "reasoning"):
            yield item.id


def _conversation(value: Any) -> Any:
    return value.get("id") if isinstance(value, dict) else value


def _keys(values: list[Any]) -> list[str]:
    texts = dict.fromkeys(value for value in values if isinstance(value, str) and value)
    return [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in list(texts)[:MAX_REFERENCES]]
