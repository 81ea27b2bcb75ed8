"""Watching a stream on its way through: has it ended properly, did it fail in band, what did it use?

Raw bytes are cut at frame boundaries (a client never gets half an event that an error would then follow) and searched
for markers; only frames with a marker are decoded. In JSON text a quote inside a string is always escaped, so
`"usage":{` can only be a member.
"""

import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from host.pipeline.decode import UNDECODABLE
from host.pipeline.usage_of import tier_of_document, usage_of_document
from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from pluginabi.frames import Usage

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
TRUNCATED_CODE: Final = "upstream_stream_truncated"
INVALID_CODE: Final = "upstream_stream_invalid"
RESPONSES_TERMINAL: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.done", "error"}
)
_FRAME_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DONE: Final = re.compile(rb"data: ?\[DONE\]")
_CLAUDE_STOP: Final = re.compile(rb'^event: ?message_stop|"type": ?"message_stop"', re.MULTILINE)
_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Frame(Struct):
    type: Any = None
    error: Any = None
    response: Any = None


_FRAME: Final = msgspec.json.Decoder(_Frame)


class FrameCutter:
    """Hands on raw SSE bytes up to the last blank line; the rest waits. Raises ValueError above 16 MiB per frame."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The complete frames so far; the very object when it ends a frame and nothing waited."""
        if self._held:
            searched = max(len(self._held) - 3, 0)
            data = self._held + data
        else:
            if data.endswith(b"\n\n"):
                return data
            searched = 0
        end = 0
        for mark in _FRAME_ENDS:
            if (found := data.rfind(mark, searched)) >= 0:
                end = max(end, found + len(mark))
        self._held = data[end:]
        if len(self._held) > MAX_FRAME_BYTES:
            raise ValueError("frame too large")
        return data[:end]

    def rest(self) -> bytes:
        """What is left of a frame that was never completed."""
        held, self._held = self._held, b""
        return held


class StreamWatch:
    """What a stream in one protocol has shown so far. Base: a protocol without an end marker."""

    __slots__ = ("_first_usage", "_last_usage", "complete", "error", "last_event", "result", "terminal")

    def __init__(self) -> None:
        self.complete = False
        """The stream may end here."""
        self.terminal = False
        """Nothing may follow."""
        self.error: ErrorBody | None = None
        """The upstream reported a failure in band."""
        self.last_event = ""
        self.result = b""
        """The event that holds the complete answer, in protocols that have one."""
        self._first_usage = b""
        self._last_usage = b""

    def raw(self, data: bytes) -> None:
        """Look at complete frames. Raises ValueError when a frame breaks its protocol."""
        if self._has_usage(data):
            self._keep_usage(data)

    def event(self, name: str | None, data: bytes) -> None:
        """Look at one event. Raises ValueError when it breaks its protocol."""
        if self._has_usage(data):
            self._keep_usage(_as_frame(data))

    def end_error(self) -> ErrorBody | None:
        """What is wrong with a stream that ended just now; None when nothing is."""
        return None

    @property
    def usage(self) -> Usage | None:
        """The tokens the stream reported, the latest numbers winning."""
        merged: dict[str, int] = {}
        for chunk in dict.fromkeys((self._first_usage, self._last_usage)):
            for document in documents(chunk):
                found = usage_of_document(document)
                if found is not None:
                    merged |= {
                        name: value for name, value in msgspec.structs.asdict(found).items() if value is not None
                    }
        return Usage(**merged) if merged else None

    @property
    def service_tier(self) -> str:
        """The tier that the upstream says served it, where it reports the tokens; empty when it says nothing."""
        chunks = dict.fromkeys((self._last_usage, self._first_usage))
        return next((tier for it in chunks for each in documents(it) if (tier := tier_of_document(each))), "")

    def _has_usage(self, data: bytes) -> bool:
        return b'"usage":{' in data or b'"usage": {' in data

    def _keep_usage(self, data: bytes) -> None:
        if not self._first_usage:
            self._first_usage = data
        self._last_usage = data

    def cut_off(self) -> ErrorBody:
        """The error of a stream that ended in the middle of an event."""
        return self._truncated("the end of an event")

    def _truncated(self, expected: str) -> ErrorBody:
        seen = f" (last event: {self.last_event})" if self.last_event else ""
        return ErrorBody(
            message=f"upstream stream closed before {expected}{seen}",
            code=TRUNCATED_CODE,
            http_status=502,
            scope="connection",
            origin="upstream",
        )


class ChatWatch(StreamWatch):
    """OpenAI chat: `[DONE]` ends it; some upstreams forget that after the finish reason."""

    __slots__ = ()

    def raw(self, data: bytes) -> None:
        if is_done(data):
            self.complete = self.terminal = True
        elif not self.complete and (b'"finish_reason":"' in data or b'"finish_reason": "' in data):
            self.complete = True
        if b'"error"' in data:
            self._look_for_error(data)
        if b'"usage":{' in data or b'"usage": {' in data:
            self._keep_usage(data)

    def event(self, name: str | None, data: bytes) -> None:
        # An executor that yields events ends the stream by ending it; `[DONE]` is not an item.
        self.complete = True
        if b'"error"' in data:
            self._look_for_error(_as_frame(data))
        super().event(name, data)

    def end_error(self) -> ErrorBody | None:
        return None if self.complete else self._truncated("its end marker")

    def _look_for_error(self, data: bytes) -> None:
        for document in documents(data):
            if document.get("error") and not document.get("choices"):
                self.error = in_band_error(document["error"], document, "openai")
                self.complete = self.terminal = True


class ClaudeWatch(StreamWatch):
    """Anthropic Messages: `message_stop`, or an `error` event."""

    __slots__ = ()

    def raw(self, data: bytes) -> None:
        if b"message_stop" in data and _CLAUDE_STOP.search(data):
            self.complete = self.terminal = True
        elif b'"error"' in data:
            for document in documents(data):
                self._look(document)
        if b'"usage":{' in data or b'"usage": {' in data:
            self._keep_usage(data)

    def event(self, name: str | None, data: bytes) -> None:
        kind = name or ""
        if not kind or kind in ("message_stop", "error"):
            found = decode_frame(data)
            kind = found.type if isinstance(found.type, str) else kind
        self.last_event = kind
        if kind == "message_stop":
            self.complete = self.terminal = True
        elif kind == "error":
            for document in documents(_as_frame(data)):
                self._look(document)
        super().event(name, data)

    def end_error(self) -> ErrorBody | None:
        return None if self.complete else self._truncated("message_stop")

    def _look(self, document: dict[str, Any]) -> None:
        if document.get("type") == "error":
            self.error = in_band_error(document.get("error"), document, "claude")
            self.complete = self.terminal = True


class ResponsesWatch(StreamWatch):
    """OpenAI Responses: a terminal event is required, and every data line group must be JSON."""

    __slots__ = ()

    def raw(self, data: bytes) -> None:
        for block in _blocks(data):
            name, payload = _fields(block)
            if payload is not None and payload != b"[DONE]":
                self._look(name, payload)
            elif name == "error":
                self.complete = True
        if b'"usage":{' in data or b'"usage": {' in data:
            self._keep_usage(data)

    def event(self, name: str | None, data: bytes) -> None:
        self._look(name, data)
        super().event(name, data)

    def end_error(self) -> ErrorBody | None:
        return None if self.complete else self._truncated("a terminal event")

    def _look(self, name: str | None, payload: bytes) -> None:
        try:
            kind = decode_frame(payload, strict=True).type
        except UNDECODABLE:
            preview = str(payload[:512], "utf-8", "replace")
            raise ValueError(f'invalid SSE data JSON (len={len(payload)}): "{preview}"') from None
        # When event name and type disagree, an error on either side wins.
        kind = "error" if name == "error" else kind if isinstance(kind, str) else name or ""
        self.last_event = kind
        if kind in RESPONSES_TERMINAL:
            self.complete = self.terminal = True
            self.result = payload
            if kind in ("error", "response.failed"):
                document = msgspec.json.decode(payload)
                source = document.get("response", document) if isinstance(document, dict) else {}
                error = source.get("error") if isinstance(source, dict) else None
                self.error = in_band_error(error or document, document, "openai-response")


class GeminiWatch(StreamWatch):
    """Gemini has no end marker: the end of the answer is the end. Every chunk brings usage; the last counts."""

    __slots__ = ()

    def raw(self, data: bytes) -> None:
        self.complete = True
        if b'"usageMetadata"' in data:
            self._last_usage = data
        if b'"error"' in data:
            self._look_for_error(data)

    def event(self, name: str | None, data: bytes) -> None:
        self.raw(_as_frame(data))

    def _look_for_error(self, data: bytes) -> None:
        for document in documents(data):
            if document.get("error") and "candidates" not in document:
                self.error = in_band_error(document["error"], document, "gemini")
                self.terminal = True


def watch_for(protocol: str) -> StreamWatch:
    """A fresh watch for a stream in `protocol`."""
    match protocol:
        case "openai":
            return ChatWatch()
        case "claude":
            return ClaudeWatch()
        case "openai-response":
            return ResponsesWatch()
        case "gemini":
            return GeminiWatch()
        case _:
            return StreamWatch()


def in_band_error(error: Any, document: Any, protocol: str) -> ErrorBody:
    """The error object for a failure that an upstream reported inside of a stream."""
    details = error if isinstance(error, dict) else {}
    kind = details.get("type")
    code = details.get("code")
    candidates = (code, details.get("status_code"), details.get("http_status"))
    status = next((value for value in candidates if isinstance(value, int) and 400 <= value <= 599), 0)
    status = status or _STATUS_OF_TYPE.get(str(kind), 0) or _STATUS_OF_TYPE.get(str(code), 0) or 502
    message = details.get("message") or (error if isinstance(error, str) else "")
    texts = (code, kind, details.get("status"))
    return ErrorBody(
        message=str(message) or "upstream reported an error",
        code=next((value for value in texts if isinstance(value, str) and value), "upstream_error"),
        http_status=status,
        body=Body.from_value(document),
        body_protocol=protocol,
        origin="upstream",
    )


def is_done(data: bytes) -> bool:
    """Whether complete frames hold OpenAI's end marker."""
    at = data.find(b"[DONE]")
    while at >= 0:
        # By the literal first: a search by pattern visits every byte of a large chunk.
        line_start = max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at)) + 1
        if _DONE.match(data, line_start) is not None:
            return True
        at = data.find(b"[DONE]", at + 1)
    return False


def documents(chunk: bytes) -> list[dict[str, Any]]:
    """The JSON objects of the complete frames in `chunk`; anything else is left out."""
    found = []
    for block in _blocks(chunk):
        _, payload = _fields(block)
        if payload is None:
            continue
        try:
            document = msgspec.json.decode(payload)
        except UNDECODABLE:
            continue
        if isinstance(document, dict):
            found.append(document)
    return found


def decode_frame(data: bytes, *, strict: bool = False) -> Any:
    """Type, error and response of one event's JSON. Without `strict` anything else is an empty frame."""
    try:
        return _FRAME.decode(data)
    except msgspec.ValidationError:
        return _Frame()
    except UNDECODABLE:
        if strict:
            raise
        return _Frame()


def _as_frame(data: bytes) -> bytes:
    """An event's JSON as the data of one frame; a line end in it is white space."""
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"data: " + data


def _blocks(data: bytes) -> list[bytes]:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return [block for block in data.split(b"\n\n") if block]


def _fields(block: bytes) -> tuple[str | None, bytes | None]:
    """Event name and joined data of one frame."""
    name: str | None = None
    lines: list[bytes] = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = str(line[6:].strip(), "utf-8", "replace") or None
    return name, b"\n".join(lines) if lines else None
