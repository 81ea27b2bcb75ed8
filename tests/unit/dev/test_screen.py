"""What `plugins dev` prints: rows of decisions, lines of events, and which files count."""

import io
import os
from pathlib import Path

import pytest
import structlog

from host.dev.decisions import rows_of, said_of, show_request
from host.dev.lines import DevLog
from host.dev.screen import Screen
from host.dev.watch import digest, is_source, stamp
from host.observe.explain import TracedDecision, TracedRequest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def decided(kind: str, at_ms: float = 0.0, **fields: object) -> TracedDecision:
    return TracedDecision(at_ms=at_ms, kind=kind, fields=fields)


def call(plugin_id: str, method: str, *, outcome: str = "ok", **fields: object) -> TracedDecision:
    return decided("call", plugin_id=plugin_id, method=method, outcome=outcome, duration_ms=1.25, **fields)


def request(*decisions: TracedDecision, nested: tuple[TracedRequest, ...] = ()) -> TracedRequest:
    return TracedRequest(request_id="r1", started_at_s=0.0, finished=True, decisions=decisions, nested=nested)


def test_a_call_and_what_came_of_it_are_one_row():
    rows = list(
        rows_of(
            request(
                decided("request", model="m"),
                call("a", "model.route"),
                decided("no_opinion", plugin_id="a", method="model.route"),
                call("b", "model.route"),
                decided("route", plugin_id="b", target_kind="executor", target="echo", reason="because"),
                call("s", "scheduler.pick"),
                decided("picked", credential="c1", by="s", reason="sticky"),
                call("e", "executor.execute"),
                decided("attempt", plugin_id="e", label="key", status=200, code=""),
                decided("outcome", outcome="succeeded", status=200),
            )
        )
    )
    assert [(row.what, row.plugin_id, row.said) for row in rows] == [
        ("model.route", "a", "no opinion"),
        ("model.route", "b", "executor echo: because"),
        ("scheduler.pick", "s", "c1: sticky"),
        ("executor.execute", "e", "key: 200"),
    ]
    assert {row.took_ms for row in rows} == {1.25}


def test_decisions_without_a_call_failures_and_nested_requests_have_rows_of_their_own():
    rows = list(
        rows_of(
            request(
                decided("resolved", model="m", providers=["a", "b"], lanes=2),
                decided("picked", credential="c1", by="round-robin", reason=""),
                call("g", "request.intercept_before", outcome="failed_open", code="boom", error=None),
                decided("calls", plugin_id="f", method="response.intercept_stream_chunk", calls=3, duration_ms=2.0),
                nested=(request(call("n", "model.route")),),
            )
        )
    )
    assert [(row.what, row.plugin_id, row.said) for row in rows] == [
        ("resolved", "", "model=m  providers=a, b  lanes=2"),
        ("picked", "round-robin", "c1"),
        ("request.intercept_before", "g", "failed_open code=boom"),
        ("response.intercept_stream_chunk", "f", "calls=3"),
        ("  model.route", "n", ""),
    ]


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (decided("terminated", plugin_id="g", status=403), "ends the request with 403"),
        (
            decided("intercepted", headers=["x-a", "x-b"], body_size_before=5, body_size=9),
            "headers x-a, x-b, body 5 -> 9 bytes",
        ),
        (decided("intercepted", clear_headers=["x-a"]), "clear headers x-a"),
        (decided("thinking", plugin_id="t", suffix="high", applied=True), "suffix=high  applied=True"),
    ],
)
def test_a_decision_is_said_in_words(decision, said):
    assert said_of(decision) == said


def test_rows_of_the_plugin_that_is_developed_stand_out_on_a_terminal_and_are_marked_without(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = {}
    for stream in (io.StringIO(), Terminal()):
        line = {"method": "POST", "path": "/v1", "status": 502, "duration_ms": 3.0, "error": "plugin_crashed"}
        decisions = request(decided("request", model="m"), call("mine", "model.route"), call("other", "model.route"))
        show_request(Screen(stream), decisions, plugin_id="mine", line=line)
        shown[stream.isatty()] = stream.getvalue().splitlines()
    _, head, mine, other = shown[False]
    assert head.endswith("POST /v1  m  502  plugin_crashed  in 3.0 ms  id r1")
    assert mine.startswith("         > model.route") and other.startswith("           model.route")
    _, head, mine, other = shown[True]
    assert "\x1b[31m502\x1b[0m" in head and "\x1b[1mmodel.route" in mine and "\x1b[2mmodel.route" in other


def test_further_lines_of_an_event_stand_below_its_text():
    stream = io.StringIO()
    Screen(stream, clock=lambda: 0.0).event("p", "first\nsecond")
    first, second = stream.getvalue().splitlines()
    assert second.index("second") == first.index("first")


def test_a_screen_that_nobody_reads_any_more_is_no_error():
    stream = io.StringIO()
    screen = Screen(stream)
    stream.close()
    screen.plain("lost")


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("main.go", True),
        ("src/main.rs", True),
        ("target/debug/x.d", False),
        ("__pycache__/a.pyc", False),
        (".git/index", False),
        ("main.go.swp", False),
        ("plugin.new", False),
    ],
)
def test_what_tools_write_beside_the_sources_does_not_count(path, counts):
    assert is_source(Path(path)) is counts


def test_a_file_that_was_only_touched_has_not_changed(tmp_path):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "target").mkdir()
    before = digest(tmp_path), stamp(tmp_path)
    (tmp_path / "target" / "a").write_text("built")
    assert (digest(tmp_path), stamp(tmp_path)) == before
    os.utime(tmp_path / "a.py", (1, 1))
    assert digest(tmp_path) == before[0] and stamp(tmp_path) != before[1]
    (tmp_path / "a.py").write_text("2")
    assert digest(tmp_path) != before[0]


def test_what_the_tree_of_a_request_shows_is_not_told_as_a_line_too():
    out = io.StringIO()
    log = DevLog(Screen(out), "mine", {})
    for event in ("upstream.failed", "credential.none_free", "credential.not_written"):
        with pytest.raises(structlog.DropEvent):
            log(None, "warning", {"event": event, "level": "warning", "plugin_id": "mine"})
    assert "credential.not_written" in out.getvalue()
    assert "upstream.failed" not in out.getvalue()
    assert "credential.none_free" not in out.getvalue()
