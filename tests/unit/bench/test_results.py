"""The statistics and the report of the benchmark suite, with made-up measurements."""

import json

import pytest

from tests.bench.measure import write_flat
from tests.bench.results import (
    FLOORS,
    Run,
    flatten_runs,
    judge,
    median_cpu_ratio,
    median_ratio,
    noise_lines,
    step_times,
    table_lines,
    verdict_lines,
)
from tests.bench.sampled_host import ROOT, step_of_file


def run_of(
    contestant: str,
    round_number: int,
    per_s: float,
    *,
    load: str = "plain",
    cpu_us: float = 100.0,
    own_share: float = 1.0,
    foreign_share: float = 0.0,
) -> Run:
    return Run(
        contestant=contestant,
        load=load,
        round_number=round_number,
        responses_per_s=per_s,
        latency_p50_us=10.0,
        latency_p99_us=20.0,
        cpu_us_per_response=cpu_us,
        events_per_response=64 if load == "stream64" else 0,
        foreign_share=foreign_share,
        own_share=own_share,
    )


def test_ratio_is_the_median_of_the_quotients_within_each_round():
    runs = [run_of("bare", 1, 1000), run_of("bare", 2, 100), run_of("bare", 3, 1000)]
    runs += [run_of("jackfield", 1, 900), run_of("jackfield", 2, 80), run_of("jackfield", 3, 500)]
    assert median_ratio(runs, contestant="jackfield", load="plain") == pytest.approx(0.8)


def test_ratio_ignores_rounds_in_which_one_side_is_missing():
    runs = [run_of("bare", 1, 1000), run_of("jackfield", 1, 700), run_of("jackfield", 2, 5000)]
    assert median_ratio(runs, contestant="jackfield", load="plain") == pytest.approx(0.7)


def test_ratio_without_a_common_round_is_absent():
    assert median_ratio([run_of("jackfield", 1, 700)], contestant="jackfield", load="plain") is None


def test_result_has_the_promised_keys_and_only_scalars():
    runs = [
        run_of(name, number, 1000, load=load)
        for name in ("bare", "jackfield", "jackfield_inprocess", "jackfield_json", "nginx")
        for load in ("plain", "stream64")
        for number in (1, 2, 3)
    ]
    flat = flatten_runs(runs)
    assert {
        "plain_vs_bare",
        "stream64_vs_bare",
        "plain_inprocess_router_and_interceptor_vs_bare",
        "plain_json_router_vs_bare",
        "cpu_us_per_request",
        "cpu_us_per_sse_event",
        "cpu_us_per_request_bare",
        "cpu_us_per_sse_event_nginx",
    } <= flat.keys()
    assert all(isinstance(value, float | int | str) for value in flat.values())


def test_cpu_of_a_stream_is_told_per_event():
    flat = flatten_runs([run_of("bare", 1, 10, load="stream64", cpu_us=640.0)])
    assert flat["cpu_us_per_sse_event_bare"] == 10.0


def test_floor_holds_at_its_limit_in_both_directions():
    verdicts = {verdict.floor.key: verdict.word for verdict in judge({floor.key: floor.limit for floor in FLOORS})}
    assert set(verdicts.values()) == {"ok"}


def test_missed_and_unmeasured_floors_are_told_apart():
    words = {verdict.floor.key: verdict.word for verdict in judge({"plain_vs_bare": 0.69, "rss_mb": 90.1})}
    assert words["plain_vs_bare"] == words["rss_mb"] == "MISSED"
    assert words["cold_start_s"] == "not measured"


def test_report_names_every_floor_and_every_measured_contestant():
    flat = flatten_runs([run_of("bare", 1, 1000), run_of("nginx", 1, 7000)])
    lines = verdict_lines(judge(flat))
    assert [line.split()[-4] if "not measured" not in line else line.split()[2] for line in lines] == [
        floor.key for floor in FLOORS
    ]
    table = "\n".join(table_lines(flat, ["bare", "jackfield", "nginx"], ["plain", "stream64"]))
    assert "bare" in table and "nginx" in table and "7.00" in table
    assert "jackfield" not in table and "stream64" not in table


def test_file_is_one_flat_json_object(tmp_path):
    path = tmp_path / "build" / "bench.json"
    write_flat(path, {"rss_mb": 61.5, "skipped": "nginx"})
    assert json.loads(path.read_text()) == {"rss_mb": 61.5, "skipped": "nginx"}


def test_rate_that_the_load_limited_is_marked_in_the_table():
    flat = flatten_runs([run_of("bare", 1, 1000), run_of("nginx", 1, 7000, own_share=0.6)])
    marked = [line for line in table_lines(flat, ["bare", "nginx"], ["plain"]) if "limited by the load" in line]
    assert [line.split()[0] for line in marked] == ["nginx"]


def test_ratio_leaves_out_rounds_in_which_others_used_the_core():
    runs = [run_of("bare", 1, 1000), run_of("jackfield", 1, 800)]
    runs += [run_of("bare", 2, 1000, foreign_share=0.5), run_of("jackfield", 2, 1900)]
    runs += [run_of("bare", 3, 1000), run_of("jackfield", 3, 100, foreign_share=0.9)]
    assert median_ratio(runs, contestant="jackfield", load="plain") == pytest.approx(0.8)


def test_ratio_uses_disturbed_rounds_when_there_are_no_others():
    runs = [run_of("bare", 1, 1000), run_of("jackfield", 1, 800, foreign_share=0.9)]
    assert median_ratio(runs, contestant="jackfield", load="plain") == pytest.approx(0.8)


def test_cpu_ratio_is_above_one_for_the_cheaper_contestant():
    runs = [run_of("bare", 1, 1000, cpu_us=200.0), run_of("jackfield", 1, 10, cpu_us=100.0)]
    assert median_cpu_ratio(runs, contestant="jackfield", load="plain") == pytest.approx(2.0)


def test_points_become_shares_of_the_processor_time():
    times = step_times({"web": 1, "flow": 3}, cpu_us_each=200.0)
    assert list(times.items()) == [("flow", 150.0), ("web", 50.0)]
    assert step_times({}, cpu_us_each=200.0) == {}


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("host/pipeline/route.py", "route"),
        ("host/pipeline/execute.py", "flow"),
        ("host/web/server.py", "web"),
        ("tests/bench/plugins/bench-router/plugin.py", "plugin"),
        ("tests/bench/run.py", None),
    ],
)
def test_a_source_file_belongs_to_the_step_with_the_longest_path(path, step):
    assert step_of_file(str(ROOT / path)) == step


def test_library_code_belongs_to_the_step_it_serves():
    assert step_of_file("/usr/lib/python3/site-packages/aiohttp/web_protocol.py") == "http_server"
    assert step_of_file("/usr/lib/python3/asyncio/events.py") is None


def test_a_core_that_others_kept_busy_does_not_count_as_limited_by_the_load():
    flat = flatten_runs([run_of("bare", 1, 1000, own_share=0.5, foreign_share=0.5)])
    assert not any("limited" in line for line in table_lines(flat, ["bare"], ["plain"]))


def test_disturbed_runs_are_told():
    assert "1 of 2 runs" in noise_lines([run_of("bare", 1, 1), run_of("bare", 2, 1, foreign_share=0.3)])[0]
    assert noise_lines([run_of("bare", 1, 1)]) == []
