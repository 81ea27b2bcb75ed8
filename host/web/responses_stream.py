"""The event stream of the Responses API: checked event by event, repaired, and always ended by one terminal event."""

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct

from host.observe.logs import redact
from host.web.answer import EVENT_STREAM_TYPE
from host.web.frames import KEEP_ALIVE_COMMENT, broken_stream, event_bytes, raw_bytes
from host.web.render_errors import MAX_MESSAGE_CHARS, MAX_NAME_CHARS, responses_error
from pluginabi.body import StreamItem, is_json
from pluginabi.errors import ErrorBody
from pluginabi.immutable import Headers
from pluginapi.protocols.sse import SseEvent, SseEventTooLarge, SseParser, format_event

_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.done", "error"})
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_EXCERPT_BYTES: Final = 512
_CODEX_NAMES: Final = ("codex_cli_rs", "codex_vscode", "codex_desktop", "codex desktop", "codex-tui", "codex_exec")


def is_codex_client(headers: Headers) -> bool:
    """Whether the client treats an `error` event as a broken connection and wants `response.failed` instead."""
    words = [*headers.get("user-agent", ()), *headers.get("originator", ())]
    return any(word.lower().startswith(_CODEX_NAMES) for word in words)


class _Event(Struct):
    """The members that decide; undecoded, and empty when absent."""

    type: Raw = Raw()
    sequence_number: Raw = Raw()
    output_index: Raw = Raw()
    item: Raw = Raw()
    response: Raw = Raw()


class _ResponseOutput(Struct):
    output: Raw = Raw()


class _ItemType(Struct):
    type: str = ""


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_output: Final = msgspec.json.Decoder(_ResponseOutput).decode
_decode_item_type: Final = msgspec.json.Decoder(_ItemType).decode
_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode


class OutputItems:
    """Remembers finished output items, to fill a `response.completed` that came without its output."""

    __slots__ = ("_indexed", "_unindexed")

    def __init__(self) -> None:
        self._indexed: dict[int, Raw] = {}
        self._unindexed: list[Raw] = []

    def add(self, item: Raw, output_index: Raw) -> None:
        """Remember an item that has a type; a later one with the same index replaces it."""
        try:
            typed = bool(_decode_item_type(item).type.strip())
        except msgspec.DecodeError:
            typed = False
        if not typed:
            return
        # A view would keep the whole event alive.
        kept = Raw(bytes(item))
        index = bytes(output_index)
        if index.isdigit():
            self._indexed[int(index)] = kept
        else:
            self._unindexed.append(kept)

    def repaired(self, data: bytes, response: Raw) -> bytes:
        """`data` (a `response.completed`) with the remembered items when its output is missing or empty."""
        items = [self._indexed[index] for index in sorted(self._indexed)] + self._unindexed
        if not items:
            return data
        try:
            output = bytes(_decode_output(response).output).strip()
            if output and output.replace(b" ", b"").replace(b"\n", b"") != b"[]":
                return data
            members = _decode_members(response)
            event = _decode_members(data)
        except msgspec.DecodeError:
            return data
        members["output"] = Raw(b"[" + b",".join(bytes(item) for item in items) + b"]")
        event["response"] = Raw(msgspec.json.encode(members))
        return msgspec.json.encode(event)


class ResponsesFrames:
    """Writes a Responses stream: whole, valid events only, and nothing after the terminal one."""

    content_type = EVENT_STREAM_TYPE
    keep_alive = KEEP_ALIVE_COMMENT

    def __init__(self, *, codex_client: bool = False) -> None:
        self.ended = False
        self.failure: ErrorBody | None = None
        self._codex_client = codex_client
        self._parser: SseParser | None = None
        self._open_line = b""
        self._items = OutputItems()
        self._last_event = ""
        self._last_sequence = Raw()

    def item(self, item: StreamItem) -> bytes:
        if item.raw is not UNSET:
            return self._raw(raw_bytes(item.raw))
        if item.body is UNSET:
            return b""
        return self._event(SseEvent(item.event or "", event_bytes(item.body)))

    def last(self, framed: bytes) -> bytes:
        return framed

    def end(self) -> bytes:
        out = b""
        if self._parser is not None and not self.ended:
            # An event that was cut off is dropped unless only its blank line is missing.
            out = b"".join(
                self._event(event) for event in self._parser.flush() if event.data == b"[DONE]" or is_json(event.data)
            )
        if self.failure is None and not self.ended:
            seen = f"the last event was {self._last_event!r}" if self._last_event else "no event was seen"
            self.failure = broken_stream(f"the stream closed before a terminal event; {seen}")
        self.ended = True
        return out if self.failure is not None else out + b"\n"

    def error(self, error: ErrorBody) -> bytes:
        self.ended = True
        payload = responses_error(error, self._next_sequence())
        return b"\n" + self._failed(payload) if self._codex_client else b"\n" + _error_event(payload)

    def _raw(self, chunk: bytes) -> bytes:
        if self._parser is None:
            self._parser = SseParser()
        if chunk.startswith(b":") and not self._parser.pending_bytes and _is_comment(chunk):
            # An upstream that thinks for long keeps the connection open with these, the client's included.
            return chunk
        try:
            events = self._parser.feed(self._separated(chunk))
        except SseEventTooLarge as error:
            self.failure = broken_stream(str(error))
            return b""
        frames: list[bytes] = []
        for event in events:
            frames.append(self._event(event))
            if self.ended or self.failure is not None:
                break
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _separated(self, chunk: bytes) -> bytes:
        """`chunk` behind the line end that an executor which forwards single lines left out.

        Only behind a line that is complete in itself, so that a cut inside a JSON string stays a cut.
        """
        open_line = self._open_line
        if open_line and chunk.lstrip(b" \t").startswith(_FIELDS):
            if open_line.startswith(b"data:"):
                if open_line[5:].strip() == b"[DONE]" or is_json(open_line[5:]):
                    chunk, open_line = b"\n\n" + chunk, b""
            elif open_line.startswith((b"event:", b"id:", b"retry:")):
                chunk, open_line = b"\n" + chunk, b""
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        self._open_line = chunk[end:] if end else open_line + chunk
        return chunk

    def _event(self, event: SseEvent) -> bytes:
        name, data = event
        if data.strip() == b"[DONE]":
            return b"data: [DONE]\n\n"
        try:
            fields = _decode_event(data)
        except msgspec.ValidationError:
            # Valid JSON, but no object: nothing of ours.
            fields = _Event()
        except msgspec.DecodeError:
            excerpt = redact(str(data[:_EXCERPT_BYTES], "utf-8", "replace"))
            self.failure = broken_stream(f"the upstream sent {len(data)} bytes that are no JSON: {excerpt}")
            return b""
        kind = str(bytes(fields.type)[1:-1], "utf-8", "replace")
        self._last_event = kind or name or ""
        if fields.sequence_number:
            self._last_sequence = Raw(bytes(fields.sequence_number))
        if kind == "error" or name == "error":
            return self._upstream_error(data)
        if kind == "response.output_item.done":
            self._items.add(fields.item, fields.output_index)
        elif kind in _TERMINAL:
            self.ended = True
            if kind == "response.completed":
                data = self._items.repaired(data, fields.response)
            elif kind == "response.failed":
                data = _sanitised_failure(data)
        if name == "":
            name = kind
        return format_event(name, data)

    def _upstream_error(self, data: bytes) -> bytes:
        self.ended = True
        payload = _sanitised_error(data, self._next_sequence())
        return self._failed(payload) if self._codex_client else _error_event(payload)

    def _failed(self, payload: dict[str, Any]) -> bytes:
        error = {"type": payload.get("error_type") or "server_error", "code": payload["code"]}
        failed = {
            "type": "response.failed",
            "sequence_number": payload["sequence_number"],
            "response": {"status": "failed", "error": {**error, "message": payload["message"]}},
        }
        return format_event("response.failed", msgspec.json.encode(failed))

    def _next_sequence(self) -> int:
        sequence = bytes(self._last_sequence)
        return int(sequence) + 1 if sequence.isdigit() else 0


def _error_event(payload: dict[str, Any]) -> bytes:
    shown = {key: value for key, value in payload.items() if key != "error_type"}
    return format_event("error", msgspec.json.encode(shown))


def _is_comment(chunk: bytes) -> bool:
    """Whether whole lines and nothing but comments are in `chunk`."""
    return chunk.endswith(b"\n\n") and all(line.startswith(b":") for line in chunk.splitlines() if line)


def _short(value: Any, limit: int) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return redact(value.strip())[:limit] if isinstance(value, str) else ""


def _sanitised_error(data: bytes, sequence_number: int) -> dict[str, Any]:
    """What of an upstream's error event a client may see: type, code, message and param, short and without secrets."""
    document = msgspec.json.decode(data)
    source = document if isinstance(document, dict) else {}
    inner = source.get("error")
    if isinstance(inner, dict):
        source = {**source, **inner}
    payload: dict[str, Any] = {
        "type": "error",
        "code": _short(source.get("code"), MAX_NAME_CHARS) or "unknown_error",
        "message": _short(source.get("message"), MAX_MESSAGE_CHARS) or "the upstream reported an error",
        "sequence_number": sequence_number,
    }
    kind = _short(source.get("type"), MAX_NAME_CHARS)
    if kind and kind != "error":
        payload["error_type"] = kind
    if param := _short(source.get("param"), MAX_NAME_CHARS):
        payload["param"] = param
    given = document.get("sequence_number") if isinstance(document, dict) else None
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        payload["sequence_number"] = given
    return payload


def _sanitised_failure(data: bytes) -> bytes:
    """A `response.failed` with its error shortened and cleaned; the rest keeps its bytes."""
    try:
        event = _decode_members(data)
        response = _decode_members(event["response"])
        error = msgspec.json.decode(response["error"])
    except (msgspec.DecodeError, KeyError):
        return data
    if not isinstance(error, dict):
        return data
    clean = {
        name: _short(error[name], MAX_MESSAGE_CHARS if name == "message" else MAX_NAME_CHARS)
        for name in ("type", "code", "message", "param")
        if error.get(name) is not None
    }
    response["error"] = Raw(msgspec.json.encode(clean))
    event["response"] = Raw(msgspec.json.encode(response))
    return msgspec.json.encode(event)
