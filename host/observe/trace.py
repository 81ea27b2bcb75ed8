"""The decision trace: why a request went where it went (design: Decision trace). A bounded ring in memory.

Entries hold names, sizes and statuses, never secrets and never bodies.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, field

MAX_REQUESTS: Final = 2000
MAX_BYTES: Final = 8 * 1024 * 1024
MAX_ENTRIES_PER_REQUEST: Final = 512
"""A request with more decisions than this (a stream whose hook fails on each item) keeps its first ones."""
_ENTRY_BYTES: Final = 200
"""What an entry costs beside long texts: dict, floats, references, names."""
SHORT_TEXT: Final = 64
MAX_TEXT: Final = 512
MAX_LIST: Final = 32


class Decision(Struct, frozen=True):
    """One decision, `at_ms` after the request began."""

    at_ms: float
    kind: str
    fields: Mapping[str, Any]


class Shape:
    """A kind of decision that always has the same fields: only their values are written down, in this order."""

    __slots__ = ("kind", "names")

    def __init__(self, kind: str, *names: str) -> None:
        self.kind: Final = kind
        self.names: Final = names


class RequestTrace(Struct, eq=False):
    """The decisions of one request, in order. Append-only."""

    request_id: str
    started_at_s: float
    """Wall clock."""
    parent_request_id: str | None = None
    entries: list[tuple[float, str | Shape, Any]] = field(default_factory=list)
    """Time, kind and fields of each decision, as texts to values or, by `Shape`, as values only."""
    dropped: int = 0
    finished: bool = False
    size_bytes: int = 0
    """What it keeps in memory, estimated; 0 while it runs."""
    has_long: bool = False
    """There may be a long text in it, which somebody outside of this process chose."""
    _started_s: float = field(default_factory=time.perf_counter)

    def record(self, kind: str, /, **fields: Any) -> None:
        """Append one decision. Values are texts, numbers, or short lists of them."""
        if len(self.entries) >= MAX_ENTRIES_PER_REQUEST:
            self.dropped += 1
            return
        if fields.get("outcome") != "ok" and _has_long(fields):
            # A plugin call that went well holds names of the host's own only. Any other text is cut at once: until
            # the request ends a plugin could pile up hundreds of long ones.
            self.has_long = True
            fields = _shortened(fields)
        self.entries.append((time.perf_counter(), kind, fields))

    def note(self, shape: Shape, *values: Any) -> None:
        """As `record`, for what is decided in every request."""
        if len(self.entries) >= MAX_ENTRIES_PER_REQUEST:
            self.dropped += 1
            return
        self.entries.append((time.perf_counter(), shape, values))

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions so far, texts shortened."""
        return tuple(
            Decision(round((at - self._started_s) * 1000, 3), kind, {name: _short(it) for name, it in fields.items()})
            for at, kind, fields in map(_spelled_out, self.entries)
        )

    def close(self) -> int:
        """The request ended: shorten long texts and lists, and estimate the bytes that stay in memory."""
        self.finished = True
        size = _ENTRY_BYTES * (len(self.entries) + 1)
        if self.has_long:
            self.entries = [(at, kind, _shortened(fields)) for at, kind, fields in self.entries]
            size += sum(_text_bytes(fields) for _, _, fields in self.entries)
        self.size_bytes = size
        return size


class DecisionTrace:
    """The traces of the latest requests, by request id. Bounded by count and by bytes."""

    def __init__(self, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._traces: OrderedDict[str, RequestTrace] = OrderedDict()
        self._bytes = 0

    def begin(self, request_id: str, *, parent_request_id: str | None = None) -> RequestTrace:
        """The trace of a request; asking again for the same id continues it."""
        trace = self._traces.get(request_id)
        if trace is None:
            trace = RequestTrace(request_id, time.time(), parent_request_id)
            self._traces[request_id] = trace
            while len(self._traces) > self._max_requests:
                self._forget_oldest()
        trace.finished = False
        return trace

    def finish(self, trace: RequestTrace) -> None:
        """The request ended: its size counts from now on, and the oldest make room for it."""
        counted = trace.size_bytes
        size = trace.close()
        if self._traces.get(trace.request_id) is not trace:
            return
        self._bytes += size - counted
        while self._bytes > self._max_bytes and len(self._traces) > 1:
            self._forget_oldest()

    def get(self, request_id: str) -> RequestTrace | None:
        """The trace of a request, running or ended; None when it is unknown or forgotten."""
        return self._traces.get(request_id)

    def latest(self, count: int) -> tuple[RequestTrace, ...]:
        """The newest requests, newest first."""
        return tuple(trace for trace, _ in zip(reversed(self._traces.values()), range(count), strict=False))

    def children(self, request_id: str) -> tuple[RequestTrace, ...]:
        """Nested calls that plugins made for this request."""
        return tuple(trace for trace in self._traces.values() if trace.parent_request_id == request_id)

    def __len__(self) -> int:
        return len(self._traces)

    def _forget_oldest(self) -> None:
        _, oldest = self._traces.popitem(last=False)
        self._bytes -= oldest.size_bytes


def _spelled_out(entry: tuple[float, str | Shape, Any]) -> tuple[float, str, Mapping[str, Any]]:
    at, kind, fields = entry
    return (
        (at, kind.kind, dict(zip(kind.names, fields, strict=True))) if isinstance(kind, Shape) else (at, kind, fields)
    )


def _has_long(fields: Mapping[str, Any]) -> bool:
    for value in fields.values():
        if (value.__class__ is str or value.__class__ is list) and len(value) > SHORT_TEXT:
            return True
    return False


def _shortened(fields: Any) -> Any:
    if isinstance(fields, tuple):
        return tuple(map(_short, fields))
    return {name: _short(value) for name, value in fields.items()}


def _text_bytes(fields: Any) -> int:
    values = fields if isinstance(fields, tuple) else fields.values()
    return sum(len(value) for value in values if isinstance(value, (str, list)))


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return value[: MAX_TEXT - 1] + "…"
    if isinstance(value, list) and len(value) > MAX_LIST:
        return value[:MAX_LIST]
    return value
