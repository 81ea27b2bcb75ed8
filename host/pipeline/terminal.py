"""Ending a stream early in its own protocol: the events a client needs to see when a hook says `end`.

Sources: OpenAI API reference (chat chunks, Responses events), Anthropic API reference (streaming events), Gemini API
reference (GenerateContentResponse).
"""

from typing import Any

import msgspec

from host.pipeline.decode import UNDECODABLE
from pluginabi.body import Body, StreamItem


class Closer:
    """Follows the events sent; `closing` makes the ones that are missing. Base: a protocol without an end event."""

    def saw(self, event: str | None, data: bytes) -> None:
        """An event went to the client."""

    def closing(self) -> list[StreamItem]:
        """The events that end the stream now, in order."""
        return []


class ChatCloser(Closer):
    """A chunk with a finish reason; web writes `[DONE]`."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._finished = False

    def saw(self, event: str | None, data: bytes) -> None:
        if self._finished or (self._last and b'"finish_reason"' not in data):
            return
        document = _object(data)
        self._last = {name: document[name] for name in ("id", "object", "created", "model") if name in document}
        choices = document.get("choices")
        if isinstance(choices, list):
            self._finished = any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices)

    def closing(self) -> list[StreamItem]:
        if self._finished or not self._last:
            return []
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        return [_event(None, {**self._last, "choices": [choice]})]


class ClaudeCloser(Closer):
    """Closes the open block, then `message_delta` and `message_stop`."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._started = self._delta_sent = self._stopped = False

    def saw(self, event: str | None, data: bytes) -> None:
        if event == "content_block_delta":
            return
        document = _object(data)
        match document.get("type"):
            case "message_start":
                self._started = True
            case "content_block_start":
                self._open.append(int(document.get("index", 0)))
            case "content_block_stop":
                self._open = [index for index in self._open if index != document.get("index")]
            case "message_delta":
                self._delta_sent = True
            case "message_stop" | "error":
                self._stopped = True

    def closing(self) -> list[StreamItem]:
        if self._stopped or not self._started:
            return []
        events = [_named({"type": "content_block_stop", "index": index}) for index in self._open]
        if not self._delta_sent:
            delta = {"stop_reason": "end_turn", "stop_sequence": None}
            events.append(_named({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 0}}))
        return [*events, _named({"type": "message_stop"})]


class ResponsesCloser(Closer):
    """`response.incomplete` with the response object as last seen."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._sequence = -1
        self._stopped = False

    def saw(self, event: str | None, data: bytes) -> None:
        document = _object(data)
        if isinstance(document.get("sequence_number"), int):
            self._sequence = document["sequence_number"]
        if isinstance(document.get("response"), dict):
            self._response = document["response"]
        if document.get("type") in ("response.completed", "response.incomplete", "response.failed", "error"):
            self._stopped = True

    def closing(self) -> list[StreamItem]:
        if self._stopped or not self._response:
            return []
        details = {"reason": "content_filter"}
        response = {**self._response, "status": "incomplete", "incomplete_details": details}
        document = {
            "type": "response.incomplete",
            "sequence_number": self._sequence + 1,
            "response": response,
        }
        return [_named(document)]


class GeminiCloser(Closer):
    """A chunk with a finish reason."""

    def __init__(self) -> None:
        self._finished = self._started = False

    def saw(self, event: str | None, data: bytes) -> None:
        self._started = True
        self._finished = self._finished or b'"finishReason"' in data

    def closing(self) -> list[StreamItem]:
        if self._finished or not self._started:
            return []
        candidate = {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP", "index": 0}
        return [_event(None, {"candidates": [candidate]})]


def closer_for(protocol: str) -> Closer:
    """A fresh closer for a stream in `protocol`."""
    match protocol:
        case "openai":
            return ChatCloser()
        case "claude":
            return ClaudeCloser()
        case "openai-response":
            return ResponsesCloser()
        case "gemini":
            return GeminiCloser()
        case _:
            return Closer()


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except UNDECODABLE:
        return {}
    return document if isinstance(document, dict) else {}


def _named(document: dict[str, Any]) -> StreamItem:
    return _event(document["type"], document)


def _event(name: str | None, document: dict[str, Any]) -> StreamItem:
    return StreamItem(event=name, body=Body.from_value(document))
