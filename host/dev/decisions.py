"""One request as a small tree: what each plugin was asked and what came of it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from host.dev.screen import Screen
from host.observe.explain import TracedDecision, TracedRequest

_HEAD: Final = frozenset({"request", "outcome"})
"""Shown in the first line."""
_INTERNAL: Final = frozenset({"plugin_id", "method", "duration_ms", "outcome", "number"})
_SAID: Final[Mapping[str, str]] = {
    "no_opinion": "no opinion",
    "route": "{target_kind} {target} {target_model}: {reason}",
    "terminated": "ends the request with {status}",
    "picked": "{credential}: {reason}",
    "attempt": "{label}: {status} {code}",
}


class Row(Struct, frozen=True):
    """One call, or one decision without a call."""

    at_ms: float
    what: str
    plugin_id: str
    took_ms: float | None
    said: str


def show_request(screen: Screen, request: TracedRequest, *, plugin_id: str, line: Mapping[str, Any]) -> None:
    """Print the tree; `line` is the log line of the request. Rows of the plugin that is developed stand out."""
    screen.plain(_head(screen, request, line))
    for row in rows_of(request):
        text = f"{row.what:<34} {row.plugin_id:<16} {_ms(row.took_ms):>10}  {row.said}".rstrip()
        is_own = row.plugin_id == plugin_id
        mark = screen.styled(">", "green") if is_own else " "
        screen.plain(f"         {mark} " + screen.styled(text, "bold" if is_own else "dim"))


def _head(screen: Screen, request: TracedRequest, line: Mapping[str, Any]) -> str:
    facts = {name: value for decision in request.decisions for name, value in decision.fields.items()}
    status = int(line.get("status", 0))
    model = next((it.fields.get("model") for it in request.decisions if it.kind == "request"), "") or ""
    error = line.get("error") or facts.get("code") or ""
    styled = screen.styled(str(status), "green" if status < 400 else "red")
    told = [f"{line.get('method')} {line.get('path')}", str(model), styled, str(error)]
    told += [f"in {line.get('duration_ms')} ms", screen.styled(f"id {request.request_id}", "dim")]
    at = screen.styled(time.strftime("%H:%M:%S", time.localtime(request.started_at_s)), "dim")
    return f"\n{at} " + "  ".join(part for part in told if part)


def rows_of(request: TracedRequest) -> Iterator[Row]:
    """A row for each call, together with what was decided because of it, and for each other decision."""
    decisions = [it for it in request.decisions if it.kind not in _HEAD]
    at = 0
    while at < len(decisions):
        decision = decisions[at]
        at += 1
        if decision.kind != "call":
            # The calls of a stream hook are told of together.
            what = str(decision.fields.get("method", "")) if decision.kind == "calls" else decision.kind
            yield _row(decision, what, said_of(decision))
            continue
        following = decisions[at] if at < len(decisions) else None
        said = "" if decision.fields.get("outcome") == "ok" else _failure(decision.fields)
        if following is not None and _belongs(following, decision):
            at += 1
            said = "; ".join(part for part in (said, said_of(following)) if part)
        yield _row(decision, str(decision.fields.get("method", "call")), said)
    for nested in request.nested:
        for row in rows_of(nested):
            yield Row(row.at_ms, f"  {row.what}", row.plugin_id, row.took_ms, row.said)


def _row(decision: TracedDecision, what: str, said: str) -> Row:
    fields = decision.fields
    by = fields.get("by", "") if decision.kind == "picked" else ""
    return Row(decision.at_ms, what, str(fields.get("plugin_id") or by), fields.get("duration_ms"), said)


def _belongs(decision: TracedDecision, call: TracedDecision) -> bool:
    """Whether a decision is what came of the call before it."""
    method, fields = call.fields.get("method"), decision.fields
    by = fields.get("plugin_id", fields.get("by"))
    if decision.kind == "call" or by != call.fields.get("plugin_id"):
        return False
    return bool(fields.get("method", method) == method)


def said_of(decision: TracedDecision) -> str:
    """A decision in words; fields that are not known by name as they are."""
    fields = dict(decision.fields)
    if decision.kind == "intercepted":
        return _changes(fields)
    pattern = _SAID.get(decision.kind)
    if pattern is None:
        return "  ".join(f"{name}={_text(value)}" for name, value in fields.items() if _is_told(name, value))
    named = {name: _text(fields.get(name)) for name in ("target_kind", "target", "target_model", "reason")}
    named |= {name: _text(fields.get(name)) for name in ("status", "credential", "label", "code")}
    return " ".join(pattern.format(**named).split()).replace(" :", ":").strip(" :")


def _changes(fields: Mapping[str, Any]) -> str:
    """What an interceptor changed."""
    parts = [
        f"{name.replace('_', ' ')} {_text(fields[name])}" for name in ("headers", "clear_headers") if fields.get(name)
    ]
    before, after = fields.get("body_size_before"), fields.get("body_size")
    if before is not None and after is not None:
        parts.append(f"body {before} -> {after} bytes")
    return ", ".join(parts)


def _failure(fields: Mapping[str, Any]) -> str:
    told = [str(fields.get("outcome", ""))]
    told += [f"{name}={_text(value)}" for name, value in fields.items() if _is_told(name, value)]
    return " ".join(told)


def _is_told(name: str, value: Any) -> bool:
    return name not in _INTERNAL and value is not None and value is not False and value != "" and value != []


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(item) for item in value)
    return str(value)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"
