"""Which session a request belongs to, from what clients say about themselves (spec credentials 4.6, 12.6).

Only asked when session affinity is on. A session's name never leaves the process: it is hashed together with the
caller, so that sessions of different callers never meet.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field

from pluginabi.immutable import Headers

MAX_VALUE: Final = 512
_TEXT_BYTES: Final = 100
"""Of each text that goes into the message hash."""
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_CLAUDE_USER: Final = re.compile(r"_session_([0-9a-fA-F-]+)$")
_HEADERS: Final = (
    ("session-id", "codex"),
    ("session_id", "codex"),
    ("x-session-id", "header"),
    ("x-session-affinity", "affinity"),
    ("x-client-request-id", "clientreq"),
)
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Session(Struct, frozen=True):
    """A session and where its name comes from. `fallback` is the name it had before the first answer."""

    source: str
    name: str
    fallback: str = ""

    def key(self, name: str, *parts: str) -> str:
        """The key of a binding: of the session's name among `parts` (caller, providers, model)."""
        return hashlib.blake2b("\0".join((*parts, name)).encode(), digest_size=16).hexdigest()


class _Body(Struct):
    metadata: Any = None
    session_id: Any = None
    session_id_camel: Any = field(default=None, name="sessionId")
    prompt_cache_key: Any = None
    conversation: Any = None
    conversation_id: Any = None
    system: Any = None
    instructions: Any = None
    system_instruction: Any = field(default=None, name="systemInstruction")
    messages: Raw = field(default_factory=Raw)
    contents: Raw = field(default_factory=Raw)
    input: Raw = field(default_factory=Raw)


_BODY: Final = msgspec.json.Decoder(_Body)
_ITEMS: Final = msgspec.json.Decoder(list[Raw])


def session_of(headers: Headers, body: Callable[[], bytes], *, execution: str = "") -> Session | None:
    """The session of a request; None when nothing tells it apart. `body` is asked for only when no header decides.

    `execution`: what the endpoint ties requests together by, such as a connection.
    """
    if value := _header(headers, "x-claude-code-session-id"):
        return Session("x-claude-code-session-id", f"claude:{value}")
    data = body()
    in_header = next(((name, prefix, value) for name, prefix in _HEADERS if (value := _header(headers, name))), None)
    if in_header is not None and b"user_id" not in data:
        # Only that member of a body comes before a header: a body of megabytes is not decoded in vain.
        return _of_header(*in_header)
    try:
        parsed = _BODY.decode(data)
    except _UNDECODABLE:
        parsed = _Body()
    user = _usable(parsed.metadata.get("user_id")) if isinstance(parsed.metadata, dict) else ""
    if user and (claude := _claude_session(user)):
        return Session("metadata.user_id", f"claude:{claude}")
    if in_header is not None:
        return _of_header(*in_header)
    if named := _named_in_body(parsed, user):
        return named
    return Session("execution", f"execution:{found}") if (found := _usable(execution)) else _by_messages(parsed)


def _named_in_body(body: _Body, user: str) -> Session | None:
    for source, value, prefix in (
        ("session_id", body.session_id, "session"),
        ("sessionId", body.session_id_camel, "session"),
    ):
        if found := _usable(value):
            return Session(source, f"{prefix}:{found}")
    conversation = body.conversation.get("id") if isinstance(body.conversation, dict) else body.conversation
    named = _usable(conversation) or _usable(body.conversation_id)
    if found := _usable(body.prompt_cache_key):
        return Session("prompt_cache_key", f"pck:{found}", f"conv:{named}" if named else "")
    if found := _usable(conversation):
        return Session("conversation", f"conv:{found}")
    if user:
        return Session("metadata.user_id", f"user:{user}")
    if found := _usable(body.conversation_id):
        return Session("conversation_id", f"conv:{found}")
    return None


def _of_header(name: str, prefix: str, value: str) -> Session:
    return Session(name, f"{prefix}:{value}")


def _header(headers: Headers, name: str) -> str:
    values = headers.get(name)
    return _usable(values[0]) if values else ""


def _usable(value: Any) -> str:
    """A value that may name a session: printable text of bounded length."""
    if not isinstance(value, str):
        return ""
    text = value.strip()
    return text if text.isprintable() and len(text) <= MAX_VALUE else ""


def _claude_session(user: str) -> str:
    if found := _CLAUDE_USER.search(user):
        return found[1]
    if user.startswith("{"):
        try:
            return _usable(_member(msgspec.json.decode(user), "session_id"))
        except _UNDECODABLE:
            return ""
    return ""


def _by_messages(body: _Body) -> Session | None:
    """By what the conversation began with. With an answer in it, it is also known by what came before the answer."""
    system, user, answer = _first_texts(body)
    if not (system or user):
        return None
    before = _hash(system, user, "")
    if not answer:
        return Session("messages", before)
    return Session("messages", _hash(system, user, answer), before)


def _hash(system: str, user: str, answer: str) -> str:
    """FNV-1a over the texts, as other gateways do it: their sessions stay where they are."""
    value = _FNV_OFFSET
    for prefix, text in (("sys:", system), ("usr:", user), ("ast:", answer)):
        if text:
            for byte in f"{prefix}".encode() + text.encode()[:_TEXT_BYTES] + b"\n":
                value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return f"msg:{value:016x}"


def _first_texts(body: _Body) -> tuple[str, str, str]:
    """The first system, user and assistant text, in whichever protocol the body is."""
    found: dict[str, str] = {}
    system = body.system[0] if isinstance(body.system, list) and body.system else body.system
    if (
        text := _text(_member(system, "text") or system)
        or _text(body.instructions)
        or _parts_text(body.system_instruction)
    ):
        found["system"] = text
    for item in chain.from_iterable(map(_items, (body.messages, body.contents, body.input))):
        role = _ROLES.get(str(item.get("role")), "")
        if role and role not in found and (text := _text(item.get("content")) or _parts_text(item)):
            found[role] = text
        if "assistant" in found:
            break
    return found.get("system", ""), found.get("user", ""), found.get("assistant", "")


_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
}


def _items(raw: Raw) -> Any:
    """The objects of a list, decoded one by one: the first few are all that counts."""
    if not bytes(raw):
        return
    try:
        items = _ITEMS.decode(raw)
    except _UNDECODABLE:
        if (text := _plain_input(raw)) is not None:
            yield {"role": "user", "content": text}
        return
    for each in items:
        try:
            item = msgspec.json.decode(each)
        except _UNDECODABLE:
            return
        if isinstance(item, dict):
            yield item


def _plain_input(raw: Raw) -> str | None:
    """The `input` of Responses may be one text."""
    try:
        value = msgspec.json.decode(raw)
    except _UNDECODABLE:
        return None
    return value if isinstance(value, str) else None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return _joined(content) if isinstance(content, Sequence) else ""


def _parts_text(item: Any) -> str:
    parts = _member(item, "parts")
    return _joined(parts) if isinstance(parts, list) else ""


def _joined(parts: Sequence[Any]) -> str:
    texts = (_member(part, "text") for part in parts)
    return " ".join(text for text in texts if isinstance(text, str) and text)


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
