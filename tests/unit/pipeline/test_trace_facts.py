"""What the decision trace says: who was asked, what they answered, what they changed, how long it took."""

from typing import Any

import pytest

from host.observe.explain import summary_of, traced
from host.observe.trace import MAX_TEXT, DecisionTrace
from pluginabi.body import Body
from pluginabi.errors import PluginError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptResponse, StreamInterceptResponse
from pluginabi.payloads.routing import ModelRouteResponse, SchedulerPickResponse
from tests.support.pipeline import (
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

CHUNK = "response.intercept_stream_chunk"


def plugin(name: str, method: str, answer: Any = None, **fields: Any) -> FakePlugin:
    respond = answer if callable(answer) else lambda _: answer
    return FakePlugin(id=name, hooks={method: respond}, **fields)


def facts(w: World, kind: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(fields.get(name) for name in names) for fields in w.decisions(kind)]


async def test_every_router_that_was_asked_is_there_with_its_answer() -> None:
    decides = ModelRouteResponse(target_kind="provider", target="openai-compatible-acme", reason="cheaper")
    w = world(
        executor(answering()),
        plugin("abstains", "model.route", priority=3),
        plugin("wrong", "model.route", ModelRouteResponse(target_kind="moon"), priority=2),
        plugin("decides", "model.route", decides, priority=1),
        plugin("late", "model.route", decides),
    )
    await w.gateway.execute(client_request())
    asked = [fields["plugin_id"] for fields in w.decisions("call") if fields["method"] == "model.route"]
    assert asked == ["abstains", "wrong", "decides"]
    assert facts(w, "no_opinion", "plugin_id", "method") == [("abstains", "model.route")]
    assert facts(w, "route_refused", "plugin_id") == [("wrong",)]
    assert facts(w, "route", "plugin_id", "target", "reason") == [("decides", "openai-compatible-acme", "cheaper")]


async def test_a_pick_names_the_candidates_whoever_picked_and_an_attempt_the_label_of_its_credential() -> None:
    w = world(executor(answering()), config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    [picked] = w.decisions("picked")
    assert picked["credential"] in picked["candidates"] and len(picked["candidates"]) == 2
    assert facts(w, "attempt", "label", "status") == [("acme", 200)]

    chooses = plugin("s", "scheduler.pick", lambda request: SchedulerPickResponse(auth_id=request.candidates[1].id))
    w = world(executor(answering()), chooses, config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    [picked] = w.decisions("picked")
    assert (picked["by"], picked["credential"]) == ("s", picked["candidates"][1])


async def test_a_change_is_names_of_headers_and_sizes_and_never_a_value() -> None:
    delta = RequestInterceptResponse(
        headers={"x-new": ["the value"]}, clear_headers=("x-old",), body=Body.from_value({"model": "m", "secret": 1})
    )
    w = world(executor(answering()), plugin("i", "request.intercept_before", delta))
    request = client_request(headers={"X-Old": "gone", "Authorization": "Bearer sk-client-secret"})
    await w.gateway.execute(request)
    [changed] = w.decisions("intercepted")
    assert (changed["headers"], changed["cleared"]) == (["x-new"], ["x-old"])
    assert (changed["body_size_before"], changed["body_size"]) == (len(request.body), 24)
    shown = repr(w.trace.get("r1"))
    assert "the value" not in shown and "gone" not in shown and "sk-client" not in shown


async def test_a_hook_that_failed_and_was_skipped_is_failed_open_and_never_ok() -> None:
    broken = plugin("guard", "request.intercept_before", PluginError("no", http_status=503, code="down"))
    w = world(executor(answering()), broken)
    await w.gateway.execute(client_request())
    [call] = [fields for fields in w.decisions("call") if fields["plugin_id"] == "guard"]
    assert (call["outcome"], call["cause"], call["status"]) == ("failed_open", "error", 503)
    trace = w.trace.get("r1")
    assert trace is not None
    assert summary_of(trace).failed_open == ("guard/request.intercept_before",)


async def test_an_answer_that_cannot_be_used_is_failed_open_too() -> None:
    both = RequestInterceptResponse(body=Body(text="x"), patch=b"{}")  # type: ignore[arg-type]
    w = world(executor(answering()), plugin("i", "request.intercept_before", both))
    await w.gateway.execute(client_request())
    trace = w.trace.get("r1")
    assert trace is not None
    assert summary_of(trace).failed_open == ("i/request.intercept_before",)


async def test_the_calls_of_a_stream_hook_are_one_line_with_their_sum() -> None:
    def respond(request: Any) -> StreamInterceptResponse | None:
        if request.index == -1:
            return StreamInterceptResponse(headers={"x-seen": ["1"]})
        if not request.items:
            return None
        keep = request.items[0].body.value()["t"] != "b"
        return StreamInterceptResponse(items=request.items if keep else ())

    script = [{"t": "a"}, {"t": "b"}, {"t": "c"}]
    w = world(executor(stream=streaming(*script)), plugin("i", CHUNK, respond))
    await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    [line] = w.decisions("calls")
    assert (line["plugin_id"], line["method"], line["calls"]) == ("i", CHUNK, 5)
    assert (line["items_in"], line["items_out"], line["changed"]) == (3, 2, 3)
    assert line["duration_ms"] >= 0
    assert facts(w, "intercepted", "method", "headers") == [(CHUNK, ["x-seen"])]


async def test_a_stream_hook_that_changes_nothing_says_so() -> None:
    w = world(executor(stream=streaming({"t": "a"})), plugin("i", CHUNK))
    await read_all(await w.gateway.execute_stream(client_request(stream=True)))
    assert facts(w, "calls", "items_in", "items_out", "changed") == [(1, 1, 0)]
    assert w.decisions("intercepted") == []


async def test_a_summary_says_what_was_asked_for_where_it_went_and_how_it_ended() -> None:
    answers = [PluginError("busy", http_status=429, code="rate_limited"), ExecutorResponse()]
    w = world(executor(lambda _: answers.pop(0)), config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    trace = w.trace.get("r1")
    assert trace is not None
    found = summary_of(trace)
    assert (found.model, found.upstream_model, found.caller) == ("m", "m", "tester")
    assert (found.attempts, found.outcome, found.status, found.finished) == (2, "succeeded", 200, True)
    assert found.credential and found.duration_ms >= 0 and found.failed_open == ()


@pytest.mark.parametrize("text", ["Bearer sk-abcdefghijklmnop", "api_key=abcdefgh", "sk-abcdefghijklmnop"])
def test_what_looks_like_a_secret_is_not_shown(text: str) -> None:
    ring = DecisionTrace()
    request = ring.begin("r")
    request.record("call", plugin_id="p", message=f"the upstream says: {text}")
    shown = traced(ring, request).decisions[0].fields["message"]
    assert shown.startswith("the upstream says: ") and "abcdefgh" not in shown


def test_a_long_text_is_cut_when_it_is_written_down_not_when_the_request_ends() -> None:
    request = DecisionTrace().begin("r")
    request.record("call", outcome="failed_open", message="x" * 1_000_000)
    assert len(request.entries[0][2]["message"]) == MAX_TEXT
