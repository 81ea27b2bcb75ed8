"""Legacy text completions on top of chat completions (OpenAI API reference, Completions)."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from host.web.body import invalid
from host.web.frames import CHAT, SseFrames, broken_stream, event_bytes, raw_bytes
from pluginabi.body import StreamItem
from pluginabi.errors import ErrorBody
from pluginapi.protocols.sse import SseEventTooLarge, SseParser

PLACEHOLDER_PROMPT: Final = "Continue."
"""Chat has no empty prompt."""

_KEPT: Final = frozenset({"model", "stop"})
_INTEGERS: Final = frozenset({"max_tokens", "top_logprobs"})
_NUMBERS: Final = frozenset({"temperature", "top_p", "frequency_penalty", "presence_penalty"})
_BOOLEANS: Final = frozenset({"stream", "logprobs", "echo"})


def to_chat(body: bytes) -> bytes:
    """The chat request for a completions request; members that chat does not know are dropped.

    Raises RequestError 400 for a number or flag of another type.
    """
    members = msgspec.json.decode(body, type=dict[str, Raw])
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": _prompt(members.get("prompt"))}]}
    for name, value in members.items():
        if name in _KEPT:
            chat[name] = value
        elif name in _INTEGERS or name in _NUMBERS:
            if bytes(value) != b"null":
                chat[name] = _number(name, value)
        elif name in _BOOLEANS:
            chat[name] = _flag(value) if name != "stream" else bytes(value) == b"true"
    return msgspec.json.encode(chat)


def _prompt(value: Raw | None) -> str:
    if value is None:
        return PLACEHOLDER_PROMPT
    prompt = msgspec.json.decode(value)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt or PLACEHOLDER_PROMPT
    return str(bytes(value), "utf-8") if prompt else PLACEHOLDER_PROMPT


def _number(name: str, value: Raw) -> Raw | int:
    """A number with its bytes; an integer one without a fraction."""
    number = msgspec.json.decode(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise invalid(f"{name!r} must be a number", param=name)
    return int(number) if name in _INTEGERS else value


def _flag(value: Raw) -> bool:
    flag = msgspec.json.decode(value)
    return bool(flag) if isinstance(flag, (bool, int, float)) else False


class _Part(Struct):
    content: Any = None


class _Choice(Struct):
    index: Raw = Raw(b"0")
    message: _Part | None = None
    delta: _Part | None = None
    finish_reason: str | None = None
    logprobs: Raw = Raw(b"null")

    def text(self) -> str:
        part = self.message or self.delta
        return part.content if part is not None and isinstance(part.content, str) else ""


class _Chat(Struct):
    id: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    choices: list[_Choice] | None = None
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_decode_chat: Final = msgspec.json.Decoder(_Chat).decode


def _completion(chat: _Chat) -> Mapping[str, Any]:
    out: dict[str, Any] = {"object": "text_completion"}
    for name in ("id", "created", "model", "usage"):
        value = getattr(chat, name)
        if value is not UNSET and not (name == "usage" and bytes(value) == b"null"):
            out[name] = value
    out["choices"] = [
        {
            "index": choice.index,
            "text": choice.text(),
            "finish_reason": choice.finish_reason,
            "logprobs": choice.logprobs,
        }
        for choice in chat.choices or ()
    ]
    return out


def from_chat(body: bytes) -> bytes:
    """The completion for a chat completion; what is none is returned as it is."""
    try:
        return msgspec.json.encode(_completion(_decode_chat(body)))
    except msgspec.DecodeError:
        return body


def chunk_from_chat(data: bytes) -> bytes | None:
    """The completion chunk for a chat chunk; None when it carries no text, no end and no usage."""
    try:
        chat = _decode_chat(data)
    except msgspec.DecodeError:
        return data
    if chat.error is not UNSET:
        return data
    has_usage = chat.usage is not UNSET and bytes(chat.usage) != b"null"
    if not has_usage and not any(choice.text() or choice.finish_reason for choice in chat.choices or ()):
        return None
    return msgspec.json.encode(_completion(chat))


class CompletionFrames:
    """Writes a chat stream as a completions stream."""

    def __init__(self) -> None:
        self._chat = SseFrames(CHAT)
        self._parser: SseParser | None = None
        self.content_type = self._chat.content_type
        self.ended = False
        self.failure: ErrorBody | None = None

    @property
    def keep_alive(self) -> bytes:
        return self._chat.keep_alive

    def item(self, item: StreamItem) -> bytes:
        if item.raw is not UNSET:
            return self._raw(raw_bytes(item.raw))
        return _frame(event_bytes(item.body)) if item.body is not UNSET else b""

    def last(self, framed: bytes) -> bytes:
        return framed + self.end()

    def end(self) -> bytes:
        if self.ended:
            return b""
        self.ended = True
        rest = b"" if self._parser is None else b"".join(_frame(event.data) for event in self._parser.flush())
        return rest + self._chat.end()

    def error(self, error: ErrorBody) -> bytes:
        self.ended = True
        return self._chat.error(error)

    def _raw(self, chunk: bytes) -> bytes:
        if self._parser is None:
            self._parser = SseParser()
        try:
            events = self._parser.feed(chunk)
        except SseEventTooLarge as error:
            self.failure = broken_stream(str(error))
            return b""
        frames: list[bytes] = []
        for event in events:
            if event.data.strip() == b"[DONE]":
                frames.append(self.end())
                break
            frames.append(_frame(event.data))
        return b"".join(frames)


def _frame(data: bytes) -> bytes:
    chunk = chunk_from_chat(data)
    return b"data: %b\n\n" % chunk if chunk is not None else b""
