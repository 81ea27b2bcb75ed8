"""Logs and metrics: nothing secret in them, cheap to write, bounded in size."""

import ast
import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import host
from host.config.model import Config
from host.observe.logs import (
    EVENTS,
    REQUEST_ID,
    LogSink,
    RequestLine,
    RequestLog,
    configure_logs,
    mask_query,
    mask_value,
)
from host.observe.metrics import Metrics
from tests.support.logged import logged_lines
from tests.support.web import event, failure, running


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The stream that JSON lines go to; the library's settings are put back afterwards."""
    with logged_lines() as stream:
        yield stream


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    factory = structlog.get_config()["logger_factory"]
    assert isinstance(factory, LogSink)
    factory.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_JSON_object_with_time_level_and_request(lines: io.StringIO) -> None:
    token = REQUEST_ID.set("req-1")
    structlog.get_logger("x").warning("plugin.state", plugin_id="p", path=ValueError)
    REQUEST_ID.reset(token)
    (line,) = written(lines)
    assert {
        "event": "plugin.state",
        "level": "warning",
        "plugin_id": "p",
        "request_id": "req-1",
    }.items() <= line.items()
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("name", ["api_key", "Authorization", "access_token", "client_secret", "password", "cookie"])
def test_fields_with_a_secrets_name_are_masked_on_two_levels(lines: io.StringIO, name: str) -> None:
    structlog.get_logger("x").info("e", **{name: "hunter2"}, headers={name: "hunter2", "accept": "x"}, max_tokens=5)
    (line,) = written(lines)
    assert "hunter2" not in json.dumps(line)
    assert line["headers"]["accept"] == "x"
    assert line["max_tokens"] == 5


def test_an_exception_is_a_text_in_its_line(lines: io.StringIO) -> None:
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        structlog.get_logger("x").exception("task.failed")
    (line,) = written(lines)
    assert "ZeroDivisionError: why" in line["exception"]


def test_lines_of_libraries_come_along(lines: io.StringIO) -> None:
    logging.getLogger("asyncio").warning("slow %s", "task")
    logging.getLogger("asyncio").info("not shown")
    (line,) = written(lines)
    assert (line["event"], line["logger"], line["level"]) == ("slow task", "asyncio", "warning")


def test_a_request_line_has_the_members_of_every_other_line(lines: io.StringIO) -> None:
    RequestLog().write(RequestLine(request_id="r", status=429, duration_ms=1.5, method="POST", path="/v1", error="e"))
    (line,) = written(lines)
    time = line.pop("time")
    assert line == {
        "event": "http.request",
        "level": "warning",
        "request_id": "r",
        "status": 429,
        "duration_ms": 1.5,
        "method": "POST",
        "path": "/v1",
        "error": "e",
    }
    assert len(time) == len("2026-01-01T00:00:00.000Z")


def test_a_request_line_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        RequestLog().write(RequestLine(status=200))
    finally:
        structlog.reset_defaults()
    assert stream.getvalue() == ""


def test_a_terminal_gets_readable_lines() -> None:
    stream = io.StringIO()
    sink = configure_logs(stream=stream, readable=True)
    RequestLog().write(RequestLine(status=200, path="/v1/models"))
    sink.flush()
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    assert "http.request" in stream.getvalue()
    assert "/v1/models" in stream.getvalue()


async def test_lines_are_collected_for_a_moment_and_a_warning_is_written_at_once() -> None:
    flushed = asyncio.Event()

    class Stream(io.StringIO):
        def flush(self) -> None:
            flushed.set()

    stream = Stream()
    sink = LogSink(stream, collect_s=0.001)
    sink.info("one")
    assert stream.getvalue() == ""
    sink.warning("two")
    assert stream.getvalue() == "one\ntwo\n"
    flushed.clear()
    sink.info("three")
    async with asyncio.timeout(20):
        await flushed.wait()
    assert stream.getvalue() == "one\ntwo\nthree\n"


def test_lines_that_waited_are_written_in_pieces_that_no_other_process_on_the_same_pipe_can_tear_apart() -> None:
    pieces: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    sink = LogSink(Stream(), collect_s=60.0)
    copies: list[str] = []
    sink.copy_to = copies.append
    lines = [f"{number}:{'ü' * 200}" for number in range(100)]
    lines[50] = "x" * 5000
    for line in lines:
        sink._pending.append(line)
    sink.flush()
    assert "".join(pieces) == "".join(copies) == "".join(f"{line}\n" for line in lines)
    assert [len(piece) for piece in pieces if len(piece.encode()) > 4096] == [5001], "too long for any, so it is alone"
    assert len(pieces) < 20 and all(piece.endswith("\n") for piece in pieces)


def test_a_broken_stream_loses_lines_but_no_request() -> None:
    stream = io.StringIO()
    sink = LogSink(stream)
    stream.close()
    sink.error("lost")


async def test_the_log_of_a_request_names_the_caller_and_masks_the_query(lines: io.StringIO) -> None:
    async with running() as proxy:
        await proxy.post("/v1/chat/completions?key=sk-abcdefghijk&alt=x", {"model": "m"})
        proxy.gateway.streams(event("{}"), failure("m", code="why", http_status=500))
        await proxy.post("/v1/messages", {"model": "m", "stream": True})
        await proxy.get("/healthz")
        ids = [request.request_id for request in proxy.gateway.requests]
    requests = [line for line in written(lines) if line["event"] == "http.request"]
    assert [line["request_id"] for line in requests] == ids
    assert requests[0]["path"] == "/v1/chat/completions?key=sk-a...hijk&alt=x"
    assert (requests[0]["caller"], requests[0]["client"], requests[0]["status"]) == ("tester", "127.0.0.1", 200)
    assert requests[1]["error"] == "why"
    assert requests[1]["streamed_bytes"] > 0
    assert "abcdefg" not in lines.getvalue()


async def test_a_client_that_left_behind_keep_alive_newlines_is_logged_as_gone(lines: io.StringIO) -> None:
    config = Config(nonstream_keepalive_interval=0.02)  # type: ignore[arg-type]
    async with running(config) as proxy:

        async def never() -> None:
            await asyncio.Event().wait()

        proxy.gateway.before = never
        async with asyncio.timeout(20):
            response = await proxy.client.post(proxy.url + "/v1/chat/completions", json={"model": "m"})
            await response.content.readexactly(1)
            response.close()
            await proxy.gateway.cancelled.wait()
    (request,) = [line for line in written(lines) if line["event"] == "http.request"]
    assert request["status"] == 499


@pytest.mark.parametrize(
    ("value", "masked"),
    [("123456789", "1234...6789"), ("12345", "12...45"), ("123", "1...3"), ("12", "12"), ("", "")],
)
def test_a_masked_value_keeps_its_ends(value: str, masked: str) -> None:
    assert mask_value(value) == masked


@pytest.mark.parametrize(
    ("query", "masked"),
    [
        ("key=123456789", "key=1234...6789"),
        ("a=1&AUTH_TOKEN=123456789&keys=5", "a=1&AUTH_TOKEN=1234...6789&keys=5"),
        ("x-api-key[]=123456789", "x-api-key[]=1234...6789"),
        ("my_secret_x=12345", "my_secret_x=12...45"),
        ("key", "key"),
        ("", ""),
    ],
)
def test_secret_query_parameters_are_masked(query: str, masked: str) -> None:
    assert mask_query(query) == masked


LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def test_every_event_that_the_host_logs_is_listed() -> None:
    logged = {
        first.value
        for path in Path(host.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS
        for first in node.args[:1]
        if isinstance(first, ast.Constant) and isinstance(first.value, str)
    }
    assert logged - set(EVENTS) == set()
    assert list(EVENTS) == sorted(EVENTS)


# -- metrics


async def test_requests_durations_and_first_bytes_are_counted() -> None:
    metrics = Metrics()
    metrics.request_started()
    metrics.request_started()
    metrics.request_finished("POST /v1/x", 200, "me", 0.3, 0.002)
    content_type, body = await metrics.render("")
    text = body.decode()
    assert content_type.startswith("text/plain")
    assert 'jackfield_requests_total{caller="me",endpoint="POST /v1/x",status="200"} 1.0' in text
    assert "jackfield_requests_in_flight 1.0" in text
    assert 'jackfield_request_seconds_bucket{endpoint="POST /v1/x",le="0.25"} 0.0' in text
    assert 'jackfield_request_seconds_bucket{endpoint="POST /v1/x",le="0.5"} 1.0' in text
    assert 'jackfield_request_seconds_count{endpoint="POST /v1/x"} 1.0' in text
    assert 'jackfield_first_byte_seconds_bucket{endpoint="POST /v1/x",le="0.005"} 1.0' in text


async def test_plugin_calls_are_counted_by_outcome() -> None:
    metrics = Metrics()
    metrics.plugins.observe("p", "model.route", "ok", 0.0002)
    metrics.plugins.observe("p", "model.route", "timeout", 0.5)
    text = (await metrics.render(""))[1].decode()
    assert 'jackfield_plugin_call_seconds_count{method="model.route",outcome="timeout",plugin="p"} 1.0' in text
    assert 'jackfield_plugin_call_seconds_bucket{le="0.0005",method="model.route",outcome="ok",plugin="p"} 1.0' in text


async def test_openmetrics_is_spoken_when_asked_for() -> None:
    content_type, body = await Metrics().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_callers_without_number_do_not_fill_the_memory() -> None:
    metrics = Metrics()
    for number in range(6000):
        metrics.request_started()
        metrics.request_finished("POST /v1/x", 200, f"caller-{number}", 0.1, None)
        metrics.plugins.observe(f"plugin-{number}", "model.route", "ok", 0.1)
    text = (await metrics.render(""))[1].decode()
    assert text.count("jackfield_requests_total{") <= 5001
    assert 'caller="other",endpoint="POST /v1/x",status="200"} 1000.0' in text
    assert 'jackfield_plugin_call_seconds_count{method="other",outcome="other",plugin="other"} 1000.0' in text


async def test_requests_in_flight_go_back_to_zero_whatever_happens() -> None:
    async with running() as proxy:
        proxy.gateway.answer = ZeroDivisionError()
        await proxy.post("/v1/chat/completions", {"model": "m"})
        await proxy.get("/no/such/path")
        assert proxy.metrics.in_flight == 0


async def test_several_workers_are_one_exposition_with_a_label() -> None:
    class Others:
        number = 2

        async def __call__(self) -> list[tuple[int, str]]:
            other = Metrics()
            other.request_started()
            return [(1, other.text())]

    metrics = Metrics()
    metrics.gather = Others()
    metrics.plugins.observe("p", "model.route", "ok", 0.0002)
    content_type, body = await metrics.render("application/openmetrics-text; version=1.0.0")
    text = body.decode()
    assert content_type.startswith("text/plain")
    assert text.count("# TYPE jackfield_requests_in_flight gauge") == 1
    assert 'jackfield_requests_in_flight{worker="1"} 1.0' in text
    assert 'jackfield_requests_in_flight{worker="2"} 0.0' in text
    labels = 'worker="2",method="model.route",outcome="ok",plugin="p"'
    assert f"jackfield_plugin_call_seconds_count{{{labels}}} 1.0" in text
