"""The decision trace of one request in a form to send and to read: the request, its decisions, its nested requests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from host.observe.logs import redact
from host.observe.trace import Decision, DecisionTrace, RequestTrace


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


class TracedSummary(Struct, frozen=True, kw_only=True):
    """A request in a line: what was asked for, where it went, how it ended."""

    request_id: str
    parent_request_id: str | None = None
    started_at_s: float
    finished: bool
    duration_ms: float
    """Until its last decision."""
    endpoint: str = ""
    protocol: str = ""
    caller: str = ""
    model: str = ""
    """As the client wrote it."""
    upstream_model: str = ""
    stream: bool = False
    routed_by: str = ""
    credential: str = ""
    attempts: int = 0
    outcome: str = ""
    """`succeeded`, `failed`, `rejected`, `canceled`, `refused`; empty while it runs."""
    status: int = 0
    code: str = ""
    failed_open: Sequence[str] = ()
    """`plugin/method` of hooks that failed and were skipped."""


def summary_of(request: RequestTrace) -> TracedSummary:
    """The line of `request`."""
    facts: dict[str, Any] = {}
    attempts = 0
    failed_open: dict[str, None] = {}
    last_ms = 0.0
    for decision in request.decisions:
        last_ms, fields = decision.at_ms, decision.fields
        match decision.kind:
            case "request":
                facts |= _some(fields, "protocol", "endpoint", "model", "stream", "caller")
            case "route":
                facts["routed_by"] = fields.get("plugin_id", "")
            case "attempt":
                attempts += 1
                facts |= {"credential": fields.get("credential", ""), "upstream_model": fields.get("model", "")}
            case "access_denied" | "access_provider_down":
                facts |= {"outcome": "refused", **_some(fields, "status")}
            case "outcome":
                facts |= _some(fields, "outcome", "status", "code")
        if fields.get("failed_open") or fields.get("outcome") == "failed_open":
            failed_open[f"{fields.get('plugin_id')}/{fields.get('method')}"] = None
    return TracedSummary(
        request_id=request.request_id,
        parent_request_id=request.parent_request_id,
        started_at_s=request.started_at_s,
        finished=request.finished,
        duration_ms=last_ms,
        attempts=attempts,
        failed_open=tuple(failed_open),
        **facts,
    )


def _some(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def traced(trace: DecisionTrace, request: RequestTrace) -> TracedRequest:
    """`request` with its descendants, as far as they are remembered."""
    return TracedRequest(
        request_id=request.request_id,
        started_at_s=request.started_at_s,
        finished=request.finished,
        dropped=request.dropped,
        decisions=[_shown(decision) for decision in request.decisions],
        nested=[traced(trace, child) for child in trace.children(request.request_id)],
    )


def _shown(decision: Decision) -> TracedDecision:
    """Without what looks like a secret: messages come from plugins, and from upstreams that quote what they got."""
    fields = {name: redact(value) if isinstance(value, str) else value for name, value in decision.fields.items()}
    return TracedDecision(at_ms=decision.at_ms, kind=decision.kind, fields=fields)


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
