"""What the log tells of credentials that fail, and of requests for which there is none."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from host.config.model import Config
from host.errors import RequestError
from host.observe.brake import MAX_SUBJECTS, LineBrake
from host.observe.logs import current_sink
from host.pipeline.request import Demands
from host.pipeline.told import MAX_NAMED, MAX_TEXT
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import ModelRouteResponse
from tests.support.logged import logged_lines
from tests.support.pipeline import (
    Clock,
    FakePlugin,
    World,
    answering,
    client_request,
    compat_config,
    executor,
    read_all,
    streaming,
    world,
)

EVENTS = ("upstream.failed", "credential.none_free")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged_lines() as stream:
        yield stream


def told(lines: io.StringIO, event: str) -> list[dict[str, Any]]:
    sink = current_sink()
    assert sink is not None
    sink.flush()
    return [entry for line in lines.getvalue().splitlines() if (entry := json.loads(line))["event"] == event]


def error(status: int, code: str = "upstream_error", message: str = "no", **fields: Any) -> PluginError:
    return PluginError(ErrorBody(message=message, code=code, http_status=status, origin="upstream", **fields))


def failing(*errors: PluginError | PluginTransportError, config: Config | None = None) -> World:
    """A gateway whose upstream raises these errors, one after the other, and then answers."""
    left = list(errors)
    answer = answering()
    return world(executor(lambda request: left.pop(0) if left else answer(request)), config=config)


async def refused(w: World, **fields: Any) -> None:
    with pytest.raises((PluginError, PluginTransportError, RequestError)):
        await w.gateway.execute(client_request(**fields))


async def test_a_failed_attempt_is_told_with_the_credential_and_how_long_it_rests(lines: io.StringIO) -> None:
    w = failing(error(429, "rate_limit_exceeded", "slow down", retry_after_ms=40_000), config=two_keys())
    await w.gateway.execute(client_request())
    [line] = told(lines, "upstream.failed")
    credential = min(w.gateway.state.pool.credentials, key=lambda it: it.id)
    assert line.pop("duration_ms") >= 0
    del line["time"]
    assert line == {
        "event": "upstream.failed",
        "level": "warning",
        "request_id": "r1",
        "provider": "openai-compatible-acme",
        "credential": credential.id,
        "label": credential.label,
        "plugin_id": "upstream",
        "model": "m",
        "status": 429,
        "code": "rate_limit_exceeded",
        "fault": "quota",
        "attempt": 1,
        "reason": "slow down",
        "rest_s": 40.0,
        "rests_for": "quota",
    }


def two_keys(**fields: Any) -> Config:
    return compat_config(keys=("k1", "k2"), **fields)


async def test_a_request_that_succeeds_writes_nothing(lines: io.StringIO) -> None:
    await failing().gateway.execute(client_request())
    assert told(lines, "upstream.failed") == []
    assert lines.getvalue() == ""


async def test_what_a_client_got_wrong_is_no_warning_and_repeats_none_of_its_words(lines: io.StringIO) -> None:
    await refused(failing(error(400, "invalid_prompt", "you wrote: my diary")))
    [line] = told(lines, "upstream.failed")
    assert line["level"] == "info"
    assert "diary" not in lines.getvalue()


async def test_a_key_that_the_upstream_quotes_is_not_in_the_log(lines: io.StringIO) -> None:
    config = compat_config(keys=("zebra-stripes-77",))
    await refused(failing(error(401, "invalid_api_key", "no such key: zebra-stripes-77"), config=config))
    [line] = told(lines, "upstream.failed")
    assert line["reason"].startswith("no such key:")
    assert "zebra-stripes-77" not in lines.getvalue()


async def test_a_key_that_the_upstream_quotes_is_not_in_the_decision_trace(lines: io.StringIO) -> None:
    config = compat_config(keys=("zebra-stripes-77",))
    w = failing(error(401, "invalid_api_key", "no such key: zebra-stripes-77"), config=config)
    await refused(w)
    assert [call["message"] for call in w.decisions("call")] == ["no such key: ***"]


async def test_a_plugin_that_died_is_told_as_such_and_its_credential_does_not_rest(lines: io.StringIO) -> None:
    await refused(failing(PluginTransportError("upstream", "executor.execute", phase="exit", cause="signal 9")))
    [line] = told(lines, "upstream.failed")
    assert (line["fault"], line["status"]) == ("plugin", 502)
    assert "rest_s" not in line


async def test_a_stream_that_breaks_off_late_is_told(lines: io.StringIO) -> None:
    chunk = {"choices": [{"delta": {"content": "a"}}]}
    w = world(executor(stream=streaming(chunk, error(500, "overloaded"))))
    with pytest.raises(PluginError):
        await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    [line] = told(lines, "upstream.failed")
    assert (line["status"], line["rests_for"]) == (500, "transient")


async def test_a_key_that_is_quoted_in_mid_stream_reaches_neither_the_client_nor_the_log(lines: io.StringIO) -> None:
    chunk = {"choices": [{"delta": {"content": "a"}}]}
    broken = error(500, "overloaded", "key zebra-stripes-77 is busy")
    w = world(executor(stream=streaming(chunk, broken)), config=compat_config(keys=("zebra-stripes-77",)))
    with pytest.raises(PluginError, match="busy") as raised:
        await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    assert "zebra" not in raised.value.body.message
    assert told(lines, "upstream.failed")[0]["reason"] == "key *** is busy"


async def test_the_failure_of_a_plugin_that_a_router_chose_is_told(lines: io.StringIO) -> None:
    target = FakePlugin(id="own", hooks={"executor.execute": lambda _: error(503)}, providers=["own"], executor=None)
    router = FakePlugin(
        id="router", hooks={"model.route": lambda _: ModelRouteResponse(target_kind="executor", target="own")}
    )
    w = world(router, target, executor(answering()))
    await refused(w)
    [line] = told(lines, "upstream.failed")
    assert (line["plugin_id"], line["status"]) == ("own", 503)


async def test_when_nobody_can_be_picked_the_log_says_why_for_each_credential(lines: io.StringIO) -> None:
    w = failing(
        error(429, "rate_limit_exceeded", retry_after_ms=40_000), error(401, "invalid_api_key"), config=two_keys()
    )
    await refused(w)
    await refused(w, request_id="r2")
    first, second = sorted(credential.id for credential in w.gateway.state.pool.credentials)
    [line] = told(lines, "credential.none_free")
    assert line["level"] == "warning"
    assert (line["request_id"], line["code"], line["status"]) == ("r2", "auth_unavailable", 503)
    assert (line["model"], line["providers"], line["candidates"]) == ("m", ["openai-compatible-acme"], 2)
    assert line["back_in_s"] == 40.0
    assert [entry.replace(" (acme)", "") for entry in line["credentials"]] == [
        f"{first}: quota (status 429 rate_limit_exceeded), back in 40 s",
        f"{second}: unauthorized (status 401 invalid_api_key), back in 1800 s",
    ]


async def test_of_many_credentials_a_few_are_named_and_the_others_counted(lines: io.StringIO) -> None:
    keys = tuple(f"key-{number}" for number in range(30))
    w = failing(*(error(429, retry_after_ms=40_000) for _ in keys), config=compat_config(keys=keys))
    await refused(w)
    await refused(w)
    [line] = told(lines, "credential.none_free")
    assert len(line["credentials"]) == MAX_NAMED
    assert line["others"] == {"quota": 30 - MAX_NAMED}


async def test_of_a_pinned_request_only_the_pinned_credential_is_told(lines: io.StringIO) -> None:
    w = failing(error(429, retry_after_ms=40_000), config=two_keys())
    pinned = w.gateway.state.pool.credentials[1].id
    demands = Demands(pinned_auth_id=pinned)
    await refused(w, demands=demands)
    await refused(w, demands=demands)
    [line] = told(lines, "credential.none_free")
    assert len(line["credentials"]) == 1
    assert line["credentials"][0].startswith(f"{pinned}")


async def test_a_storm_of_requests_for_a_resting_model_is_one_line_until_time_has_passed(lines: io.StringIO) -> None:
    w = failing(error(429, retry_after_ms=40_000))
    clock = Clock()
    w.gateway.state.pool.health.lines = LineBrake(clock=clock)
    for _ in range(200):
        await refused(w)
    assert len(told(lines, "credential.none_free")) == 1
    clock.now_s += 10
    await refused(w)
    assert told(lines, "credential.none_free")[1]["lines_held_back"] == 198


async def test_the_name_of_a_model_that_a_client_made_up_is_neither_kept_nor_told_in_full(lines: io.StringIO) -> None:
    to_acme = ModelRouteResponse(target_kind="provider", target="openai-compatible-acme")
    router = FakePlugin(id="router", hooks={"model.route": lambda _: to_acme})
    w = world(router, executor(lambda _: error(500, "c" * 5000)))
    for _ in range(2):
        await refused(w, model="x" * 256)
    assert [len(line["model"]) for event in EVENTS for line in told(lines, event)] == [MAX_TEXT, MAX_TEXT]
    assert len(repr(w.gateway.state.pool.health.lines._shown_s)) < 2000


async def test_answers_with_an_error_status_are_told_like_errors(lines: io.StringIO) -> None:
    w = world(executor(lambda _: ExecutorResponse(status=500)))
    await refused(w)
    assert told(lines, "upstream.failed")[0]["status"] == 500


def test_a_brake_lets_a_burst_of_subjects_pass_and_no_more_and_forgets_the_oldest() -> None:
    clock = Clock()
    brake = LineBrake(every_s=10, burst=3, clock=clock)
    assert [brake.lets_pass(subject) for subject in "abcda"] == [True, True, True, False, False]
    assert (brake.held_back(), brake.held_back()) == (2, 0)
    clock.now_s += 10
    assert [brake.lets_pass(subject) for subject in "dd"] == [True, False]
    many = LineBrake(burst=MAX_SUBJECTS + 1, clock=clock)
    assert all(many.lets_pass(number) for number in range(MAX_SUBJECTS + 1))
    assert len(many._shown_s) == MAX_SUBJECTS
