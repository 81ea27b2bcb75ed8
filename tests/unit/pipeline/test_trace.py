"""The decision trace of a request, and the ring that keeps the latest."""

import pytest

from host.observe.trace import MAX_ENTRIES_PER_REQUEST, DecisionTrace
from pluginabi.errors import PluginError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import ModelRouteResponse
from tests.support.pipeline import FakePlugin, answering, client_request, compat_config, executor, world


async def test_a_request_can_be_explained_afterwards_in_order():
    answers = [PluginError("busy", http_status=503, code="overloaded"), ExecutorResponse()]
    router = FakePlugin(id="router", hooks={"model.route": lambda _: None})
    w = world(executor(lambda _: answers.pop(0)), router, config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request(headers={"Authorization": "Bearer secret"}))
    trace = w.trace.get("r1")
    assert trace is not None
    assert trace.finished
    assert [decision.kind for decision in trace.decisions] == [
        "request",
        "call",
        "no_opinion",
        "resolved",
        "picked",
        "call",
        "attempt",
        "cooldown",
        "picked",
        "call",
        "attempt",
        "outcome",
    ]
    assert w.decisions("attempt")[0]["code"] == "overloaded"
    assert "secret" not in repr(trace)
    times = [decision.at_ms for decision in trace.decisions]
    assert times == sorted(times)


async def test_a_refused_route_is_in_the_trace():
    router = FakePlugin(
        id="router", hooks={"model.route": lambda _: ModelRouteResponse(target_kind="provider", target="nobody")}
    )
    w = world(executor(answering()), router)
    await w.gateway.execute(client_request())
    assert "nobody" in w.decisions("route_refused")[0]["why"]


async def test_nothing_is_recorded_when_it_is_switched_off():
    w = world(executor(answering()), config=compat_config(decision_trace=False))
    await w.gateway.execute(client_request())
    assert len(w.trace) == 0


def test_the_ring_keeps_the_latest_by_count():
    trace = DecisionTrace(max_requests=2)
    for name in "abc":
        trace.finish(trace.begin(name))
    assert trace.get("a") is None
    assert [found.request_id for found in trace.latest(5)] == ["c", "b"]


def test_the_ring_is_bounded_by_bytes_and_keeps_the_newest_even_if_it_is_too_large():
    for bound, kept in ((2500, ["c", "b"]), (100, ["c"])):
        trace = DecisionTrace(max_bytes=bound)
        for name in "abc":
            found = trace.begin(name)
            found.record("call", message="x" * 4000)
            trace.finish(found)
        assert [found.request_id for found in trace.latest(5)] == kept


def test_a_trace_that_was_forgotten_while_it_ran_is_not_counted():
    trace = DecisionTrace(max_requests=1)
    first = trace.begin("a")
    trace.begin("b")
    trace.finish(first)
    assert trace.get("a") is None


def test_a_request_with_too_many_decisions_keeps_the_first_and_counts_the_rest():
    found = DecisionTrace().begin("a")
    for number in range(MAX_ENTRIES_PER_REQUEST + 5):
        found.record("call", number=number)
    assert (len(found.decisions), found.dropped) == (MAX_ENTRIES_PER_REQUEST, 5)


@pytest.mark.parametrize("ended", [False, True])
def test_long_texts_and_lists_are_shortened(ended):
    trace = DecisionTrace()
    found = trace.begin("a")
    found.record("call", message="x" * 10_000, names=["n"] * 10_000)
    if ended:
        trace.finish(found)
        assert len(found.entries[0][2]["message"]) == 512
    fields = found.decisions[0].fields
    assert (len(fields["message"]), len(fields["names"])) == (512, 32)


def test_nested_calls_are_found_by_their_parent():
    trace = DecisionTrace()
    trace.begin("a")
    child = trace.begin("a.1", parent_request_id="a")
    assert trace.children("a") == (child,)


@pytest.mark.parametrize("again", ["a", "b"])
def test_beginning_the_same_request_again_continues_its_trace(again):
    trace = DecisionTrace()
    first = trace.begin("a")
    assert (trace.begin(again) is first) is (again == "a")
