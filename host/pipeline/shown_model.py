"""The model's name in answers, where the operator wants clients to read the one they asked for (`force-mapping`).

Only the members `model`, `modelVersion`, `response.model`, `response.modelVersion` and `message.model` change; every
other byte stays. Nothing of this runs for a model without `force-mapping`.
"""

import re
from typing import Final, Self

import msgspec
from msgspec import UNSET, Raw, Struct

from host.pipeline.decode import UNDECODABLE
from host.pipeline.execution import Content
from host.pipeline.patch import merge_members
from host.pipeline.scan import MAX_FRAME_BYTES
from pluginabi.body import Body, StreamItem

_HINT: Final = b'"model'
_NAMES: Final = ("model", "modelVersion")


class _Inner(Struct):
    model: Raw = Raw()
    modelVersion: Raw = Raw()


class _Outer(Struct):
    model: Raw = Raw()
    modelVersion: Raw = Raw()
    response: Raw = Raw()
    message: Raw = Raw()


_OUTER: Final = msgspec.json.Decoder(_Outer)
_INNER: Final = msgspec.json.Decoder(_Inner)


class ShownModel:
    """Writes one name into the answers of one attempt. Keeps what is left of an array between two calls of `raw`."""

    __slots__ = ("_array", "_name")

    def __init__(self, model: str, *, is_array: bool = False) -> None:
        """`is_array`: raw items are a JSON array in arbitrary pieces, not whole frames."""
        self._name: Final = msgspec.json.encode(model)
        self._array: Final = ArrayCutter() if is_array else None

    @classmethod
    def of(cls, model: str, *, is_array: bool = False) -> Self | None:
        """None for no name: answers stay as they are."""
        return cls(model, is_array=is_array) if model else None

    def document(self, data: bytes) -> bytes:
        """A JSON document; the same object when it names no model."""
        if _HINT not in data:
            return data
        try:
            found = _OUTER.decode(data)
            changes = self._changes(found)
            inner = {}
            for name, raw in (("response", bytes(found.response)), ("message", bytes(found.message))):
                if raw.startswith(b"{") and (nested := self._changes(_INNER.decode(raw))):
                    inner[name] = _patch(nested)
        except UNDECODABLE:
            return data
        return merge_members(data, changes | inner) if changes or inner else data

    def body(self, body: Body) -> Body:
        """A body; the same object when it names no model."""
        data = body.to_bytes()
        changed = self.document(data)
        return body if changed is data else Body.from_bytes(changed)

    def item(self, item: StreamItem) -> StreamItem:
        """An event."""
        if item.body is UNSET:
            return item
        body = self.body(item.body)
        return item if body is item.body else StreamItem(event=item.event, body=body)

    def raw(self, data: bytes) -> bytes:
        """Complete SSE frames, or a piece of an array. Raises ValueError for an element above 16 MiB."""
        if self._array is not None:
            return b"".join(map(self.document, self._array.feed(data)))
        if _HINT not in data:
            return data
        out: list[bytes] = []
        event: list[bytes] = []
        for line in data.splitlines(keepends=True):
            if line.startswith(b"data:"):
                event.append(line)
                continue
            out += self._data_lines(event)
            event = []
            out.append(line)
        return b"".join(out + self._data_lines(event))

    def _changes(self, found: _Outer | _Inner) -> dict[str, bytes]:
        given = ((name, bytes(getattr(found, name))) for name in _NAMES)
        return {name: self._name for name, value in given if value.startswith(b'"') and value != self._name}

    def _data_lines(self, lines: list[bytes]) -> list[bytes]:
        """The lines of one event's data. Where they change, line breaks stay where they were."""
        if not lines:
            return lines
        parts = [_DATA_LINE.fullmatch(line) for line in lines]
        payload = b"\n".join(part["data"] for part in parts if part is not None)
        changed = self.document(payload)
        if changed is payload:
            return lines
        values = changed.split(b"\n")
        if len(values) != len(parts):
            return [b"data: " + value + b"\n" for value in values]
        return [part["name"] + value + part["end"] for part, value in zip(parts, values, strict=True) if part]


_DATA_LINE: Final = re.compile(rb"(?P<name>data: ?)(?P<data>[^\r\n]*)(?P<end>[\r\n]*)")
_TOKEN: Final = re.compile(rb'["\\{}\[\]]')


class ArrayCutter:
    """Cuts a JSON array that comes in pieces into its elements, and what stands between them."""

    __slots__ = ("_base", "_depth", "_held", "_in_text", "_searched")

    def __init__(self) -> None:
        self._held = b""
        self._searched = self._depth = 0
        self._base = 0
        """How deep elements stand: 1 in an array; a document that is an object is one element."""
        self._in_text = False

    def feed(self, data: bytes) -> list[bytes]:
        """What is complete by now, in order. Raises ValueError when an element is above 16 MiB."""
        held = self._held + data
        position, start, pieces = self._searched, 0, []
        while (token := _TOKEN.search(held, position)) is not None:
            mark, position = token.group(), token.end()
            if mark == b"\\":
                position += 1
            elif mark == b'"':
                self._in_text = not self._in_text
            elif not self._in_text and self._step(mark):
                at = token.start() if mark == b"{" else position
                pieces.append(held[start:at])
                start = at
        if self._depth <= self._base:
            pieces.append(held[start:])
            start = len(held)
        self._held = held[start:]
        self._searched = max(position, len(held)) - start
        if len(self._held) > MAX_FRAME_BYTES:
            raise ValueError("frame too large")
        return pieces

    @property
    def is_whole(self) -> bool:
        """Whether what came may end here: nothing is left open."""
        return not self._depth

    def _step(self, mark: bytes) -> bool:
        """Follow a bracket; whether an element begins or ends there."""
        if mark in b"{[":
            if not self._depth:
                self._base = mark == b"["
            self._depth += 1
            return mark == b"{" and self._depth == self._base + 1
        self._depth -= 1
        return mark == b"}" and self._depth == self._base


def shown_content(content: Content, model: str) -> Content:
    """A complete answer that names `model`; the same object when it names none, or that."""
    changed = ShownModel(model).document(content.data)
    return content if changed is content.data else Content(changed)


def _patch(members: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in members.items()) + b"}"
