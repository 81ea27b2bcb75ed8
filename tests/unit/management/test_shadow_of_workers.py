"""A plugin's row for all workers: each has a shadow of its own, and the list shows one."""

from typing import Any

from host.management.peers import Answer, _one_plugin


def shadow(**fields: Any) -> dict[str, Any]:
    counts = {"equal": 0, "different": 0, "error": 0, "timeout": 0, "dropped": 0}
    empty = {"state": "ready", "refused": {}, "methods": {}, "examples": [], "last_error": ""}
    return {**empty, **counts, **fields}


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "p", "state": "ready", "reason": "", **fields}


def test_the_counts_of_all_workers_are_sums_and_examples_are_in_order_of_time():
    first = shadow(equal=2, methods={"model.route": {"equal": 2}}, examples=[{"at": "2"}], refused={"host.kv.set": 1})
    second = shadow(
        equal=1,
        different=4,
        methods={"model.route": {"equal": 1, "different": 3}, "scheduler.pick": {"different": 1}},
        examples=[{"at": "1"}, {"at": "3"}],
        refused={"host.kv.set": 2},
        last_error="broke",
    )
    joined = _one_plugin(1, row(shadow=first), [Answer(2, 200, row(shadow=second))])["shadow"]
    assert (joined["equal"], joined["different"], joined["last_error"]) == (3, 4, "broke")
    assert joined["methods"] == {"model.route": {"equal": 3, "different": 3}, "scheduler.pick": {"different": 1}}
    assert joined["examples"] == [{"at": "1"}, {"at": "2"}, {"at": "3"}]
    assert joined["refused"] == {"host.kv.set": 3}


def test_a_shadow_that_is_not_ready_in_one_worker_is_shown_as_such():
    broken = shadow(state="backoff", reason="it ended")
    joined = _one_plugin(1, row(shadow=shadow()), [Answer(2, 200, row(shadow=broken))])["shadow"]
    assert (joined["state"], joined["reason"]) == ("backoff", "it ended")


def test_a_plugin_without_a_shadow_has_none_in_any_worker():
    assert _one_plugin(1, row(shadow=None), [Answer(2, 200, row(shadow=None))])["shadow"] is None
