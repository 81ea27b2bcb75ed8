"""What a recording never holds, and what it holds in another form."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from host.observe.logs import redact

REDACTED: Final = "[redacted]"
SECRET_TEXT: Final = "[secret]"
_HEADER_FIELDS: Final = frozenset({"headers", "request_headers", "response_headers", "query"})
_HEADER_WORDS: Final = ("auth", "cookie", "token", "secret", "api-key", "apikey", "api_key", "password", "signature")
_MEMBER_WORDS: Final = ("api_key", "apikey", "secret", "password", "authorization", "cookie", "private_key")
_BODY_FORMS: Final = frozenset({"json", "text", "base64"})
_BODY_FIELDS: Final = frozenset({"body", "client_body", "request_body", "raw"})
_URL_SECRET: Final = re.compile(
    r"([?&](?:key|[^=&#]*(?:token|secret|api[-_]?key|auth|password|signature)[^=&#]*)=)[^&#]+", re.IGNORECASE
)
_SHAPE_MEMBERS: Final = frozenset(
    {
        *("model", "role", "type", "name", "id", "object", "format", "effort", "level", "status", "event"),
        *("tool_choice", "tool_call_id", "tool_use_id", "call_id", "service_tier", "user_agent", "detail"),
        *("finish_reason", "finishReason", "stop_reason", "code"),
    }
)
"""Members whose texts stay when bodies are redacted: what a body is, not what it says."""
_SECRET_MIN_CHARACTERS: Final = 6
"""Shorter secrets are not searched for: they would be found everywhere."""


class Redactor:
    """Redacts the lines of one recording; placeholders of credential handles are the same throughout it.

    `secrets` are texts that must not appear anywhere. With `bodies` the texts inside of bodies go too, but their shape
    stays.
    """

    def __init__(self, *, secrets: Callable[[], Iterable[str]] = tuple, bodies: bool = False) -> None:
        self.masked = 0
        """Values replaced so far."""
        self._secrets: Final = secrets
        self._bodies: Final = bodies
        self._handles: dict[str, str] = {}

    def plain(self, encoded: bytes) -> Any:
        """JSON (params, an answer) as plain values without secrets."""
        return self._member("", msgspec.json.decode(encoded))

    def line(self, value: Any) -> bytes:
        """A line of the recording: the last look for texts that must not appear anywhere."""
        text = msgspec.json.encode(value)
        for secret in self._secrets():
            if len(secret) >= _SECRET_MIN_CHARACTERS:
                text = text.replace(msgspec.json.encode(secret)[1:-1], SECRET_TEXT.encode())
        return text

    def _member(self, name: str, value: Any) -> Any:
        """A member of a payload, outside of bodies."""
        if name in _HEADER_FIELDS and isinstance(value, Mapping):
            return {key: self._header(key, values) for key, values in value.items()}
        if name in _BODY_FIELDS and isinstance(value, Mapping) and value.keys() <= _BODY_FORMS:
            return {form: self._body(form, content) for form, content in value.items()}
        if name == "body_parts" and isinstance(value, Mapping):
            return {pointer: self._inside(pointer.rpartition("/")[2], part) for pointer, part in value.items()}
        if name == "handle" or (name == "credential" and isinstance(value, str)):
            return self._handle(value)
        if name == "storage":
            return self._mask(value)
        if isinstance(value, str) and _is_secret(name):
            return self._mask(value)
        if isinstance(value, Mapping):
            return {key: self._member(key, member) for key, member in value.items()}
        if isinstance(value, list):
            return [self._member("", item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _header(self, name: str, values: Any) -> Any:
        folded = name.lower()
        if folded == "key" or any(word in folded for word in _HEADER_WORDS):
            return [self._mask(value) for value in values]
        return [self._text(value) for value in values]

    def _body(self, form: str, content: Any) -> Any:
        if form == "json":
            return self._inside("", content)
        if self._bodies:
            return self._shape(content) if form == "text" else ""
        return self._text(content)

    def _inside(self, name: str, value: Any) -> Any:
        """A value inside of a body."""
        if isinstance(value, Mapping):
            return {key: self._inside(key, member) for key, member in value.items()}
        if isinstance(value, list):
            return [self._inside(name, item) for item in value]
        if not isinstance(value, str):
            return value
        if _is_secret(name):
            return self._mask(value)
        return self._shape(value) if self._bodies and name not in _SHAPE_MEMBERS else self._text(value)

    def _shape(self, text: str) -> str:
        if not text or text.startswith("[redacted"):
            return text
        self.masked += 1
        return f"[redacted: {len(text)} characters]"

    def _text(self, text: str) -> str:
        replaced = redact(_URL_SECRET.sub(rf"\1{REDACTED}", text) if "://" in text else text)
        self.masked += replaced != text
        return replaced

    def _mask(self, value: Any) -> Any:
        if value in (None, "", REDACTED):
            return value
        self.masked += 1
        return REDACTED

    def _handle(self, handle: str) -> str:
        if handle.startswith("credential-"):
            return handle
        return self._handles.setdefault(handle, f"credential-{len(self._handles) + 1}")


def _is_secret(name: str) -> bool:
    """Whether a member of this name holds a secret, when it holds a text."""
    folded = name.lower().replace("-", "_")
    return folded.endswith("token") or any(word in folded for word in _MEMBER_WORDS)
