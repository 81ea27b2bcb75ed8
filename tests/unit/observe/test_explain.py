"""The decision trace as a tree."""

import msgspec

from host.observe.explain import TracedRequest, traced, tree_lines
from host.observe.trace import DecisionTrace


def example() -> TracedRequest:
    trace = DecisionTrace()
    outer = trace.begin("outer")
    outer.record("route", plugin_id="r", target="echo", reason="two words", empty="", nothing=None)
    outer.record("nested", plugin_id="p", request_id="inner")
    inner = trace.begin("inner", parent_request_id="outer")
    inner.record("outcome", status=200, providers=["a", "b"])
    trace.finish(inner)
    outer.record("outcome", status=503)
    return traced(trace, outer)


def test_a_nested_request_stands_below_the_decision_that_made_it():
    lines = list(tree_lines(example()))
    assert [line.split()[2 if " ms " in line else 0] for line in lines] == [
        "request",
        "route",
        "nested",
        "request",
        "outcome",
        "outcome",
    ]
    assert lines[3].startswith("    request inner") and lines[0] == "request outer (still running)"


def test_empty_fields_are_left_out_and_texts_with_spaces_are_quoted():
    route = list(tree_lines(example()))[1]
    assert route.endswith("plugin_id=r  target=echo  reason='two words'")


def test_what_travels_over_the_socket_reads_the_same_on_the_other_side():
    request = example()
    received = msgspec.convert(msgspec.json.decode(msgspec.json.encode(request)), TracedRequest)
    assert list(tree_lines(received)) == list(tree_lines(request))


def test_decisions_beyond_the_limit_are_counted():
    trace = DecisionTrace()
    request = trace.begin("r")
    for _ in range(600):
        request.record("call")
    assert list(tree_lines(traced(trace, request)))[-1] == "  and 88 more decisions that were not kept"
