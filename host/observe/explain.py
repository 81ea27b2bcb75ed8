"""The decision trace of one request in a form to send and to read: the request, its decisions, its nested requests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from host.observe.trace import DecisionTrace, RequestTrace


class TracedDecision(Struct, frozen=True, kw_only=True):
    """One decision, `at_ms` after the request began."""

    at_ms: float
    kind: str
    fields: Mapping[str, Any]


class TracedRequest(Struct, frozen=True, kw_only=True):
    """A request and the nested requests its plugins made."""

    request_id: str
    started_at_s: float
    finished: bool
    dropped: int = 0
    """Decisions beyond the limit for one request."""
    decisions: Sequence[TracedDecision] = ()
    nested: Sequence["TracedRequest"] = ()


def traced(trace: DecisionTrace, request: RequestTrace) -> TracedRequest:
    """`request` with its descendants, as far as they are remembered."""
    return TracedRequest(
        request_id=request.request_id,
        started_at_s=request.started_at_s,
        finished=request.finished,
        dropped=request.dropped,
        decisions=[TracedDecision(at_ms=d.at_ms, kind=d.kind, fields=d.fields) for d in request.decisions],
        nested=[traced(trace, child) for child in trace.children(request.request_id)],
    )


def tree_lines(request: TracedRequest, *, indent: str = "") -> Iterator[str]:
    """The tree, one line a decision: when, what, and what was decided."""
    state = "" if request.finished else " (still running)"
    yield f"{indent}request {request.request_id}{state}"
    nested = {child.request_id: child for child in request.nested}
    for decision in request.decisions:
        yield f"{indent}  {decision.at_ms:9.2f} ms  {decision.kind:<16} {_fields(decision.fields)}".rstrip()
        child = nested.pop(str(decision.fields.get("request_id")), None) if decision.kind == "nested" else None
        if child is not None:
            yield from tree_lines(child, indent=f"{indent}    ")
    for child in nested.values():
        yield from tree_lines(child, indent=f"{indent}    ")
    if request.dropped:
        yield f"{indent}  and {request.dropped} more decisions that were not kept"


def _fields(fields: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={_value(value)}" for name, value in fields.items() if _is_worth_showing(value))


def _is_worth_showing(value: Any) -> bool:
    return not (isinstance(value, (str, list, tuple, dict)) and not value) and value is not None and value is not False


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return repr(text) if " " in text else text
