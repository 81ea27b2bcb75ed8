"""Small scenarios whose numbers can be worked out by hand, and everything that a scenario file can get wrong."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from host.cli import main
from host.config.load import ConfigError
from host.simulate.clock import VirtualTime
from host.simulate.oracle import oracle
from host.simulate.policies import Policy, PolicyError, built_in, plugin
from host.simulate.report import PolicyReport, SimulationReport
from host.simulate.scenario import load_scenario, parse_scenario, shipped
from host.simulate.simulation import simulate, simulate_command
from host.simulate.workload import arrivals

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
EVEN = {"per-minute": 6, "arrivals": "even"}
"""A request every ten seconds, the first at 0."""


def text_of(*credentials: dict[str, Any], gateway: Any = None, work: Any = None, **provider: Any) -> str:
    """One minute with one provider; JSON is YAML."""
    return json.dumps(
        {
            "duration": "1m",
            "gateway": gateway or {},
            "providers": [
                {"name": "acme", "latency": "1s", "error-latency": 0, **provider, "credentials": credentials}
            ],
            "workload": [{**EVEN, **(work or {})}],
        }
    )


async def report_of(text: str, *policies: Policy, **options: Any) -> SimulationReport:
    return await simulate(parse_scenario(text, file="s.yaml"), policies or [built_in("rr")], **options)


async def one(text: str, *policies: Policy) -> tuple[int, PolicyReport]:
    report = await report_of(text, *policies)
    return report.oracle_served, report.policies[0]


async def test_a_quota_of_three_serves_three_of_six_and_is_asked_once_too_often() -> None:
    best, found = await one(text_of({"name": "a", "quotas": [{"requests": 3}]}))
    assert (best, found.served, found.regret) == (3, 3, 0)
    assert (found.tries, found.wasted_by_status) == (4, {"429": 1})
    # The fourth got the upstream's 429; for the others the credential rested until the reset.
    assert found.client_errors == {"429": 3}


async def test_whoever_may_wait_is_served_after_the_reset_by_policy_and_oracle_alike() -> None:
    gateway = {"request-retry": 1, "max-retry-interval": "60s"}
    report = await report_of(text_of({"name": "a", "quotas": [{"requests": 3}]}, gateway=gateway))
    (found,) = report.policies
    assert (report.oracle_served, found.served, found.wasted) == (6, 6, 1)
    # The oracle waits 30, 20 and 10 s; the gateway up to 2 s longer, so that not all come back at once.
    assert report.oracle_wait_mean_ms == 10_000
    assert 10_000 < found.wait_mean_ms <= 11_000
    assert 30_000 <= found.wait_p99_ms <= 32_000


async def test_the_oracle_waits_as_long_as_all_rounds_together_may() -> None:
    gateway = {"request-retry": 3, "max-retry-interval": "60s"}
    text = text_of({"name": "a", "quotas": [{"requests": 1}]}, gateway=gateway, work={"per-minute": 240, "to": "1s"})
    best, found = await one(text)
    assert found.served > 2, "a request waits once before each round"
    assert (best, found.regret) == (4, 4 - found.served)


async def test_ten_thousand_keys_are_asked_as_far_as_they_are_free_and_serve_what_they_have() -> None:
    text = text_of(
        {"name": "k", "count": 10_000, "quotas": [{"requests": 1}]},
        work={"per-minute": 1200, "arrivals": "poisson"},
    )
    scenario = parse_scenario(text, file="s.yaml")
    said: list[tuple[str, int, int]] = []
    requests = arrivals(scenario, 1)
    best = oracle(scenario, requests, 1, progress=lambda *how_far: said.append(how_far))
    assert best.served == len(requests) > 1000
    assert said[-1] == ("oracle", len(requests) - 1, len(requests))


async def test_a_plugin_that_never_answers_ends_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.simulate.run.MAX_TIMEOUTS", 2)
    file = tmp_path / "hanging.py"
    file.write_text(
        "import asyncio\nfrom pluginapi import Plugin\n\n\nclass Hanging(Plugin):\n"
        "    async def scheduler_pick(self, request):\n        await asyncio.Event().wait()\n"
    )
    with pytest.raises(PolicyError, match=r"Hanging: scheduler\.pick gave no answer in time, 2 times in a row"):
        await one(text_of({"name": "a"}, {"name": "b"}), plugin(f"{file}:Hanging"))


async def test_what_a_plugin_answers_and_nobody_can_take_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        "from pluginapi import Plugin, SchedulerPickResponse\n\n\nclass Wrong(Plugin):\n"
        "    async def scheduler_pick(self, request):\n        return SchedulerPickResponse(auth_id='acme/c')\n"
    )
    policies = built_in("rr"), plugin(f"{file}:Wrong")
    plain, wrong = (await report_of(text_of({"name": "a"}, {"name": "b"}), *policies)).policies
    assert (plain.picks_refused, wrong.picks_refused, wrong.served) == (0, 6, 6)


async def test_a_quota_of_tokens_counts_sizes() -> None:
    best, found = await one(text_of({"name": "a", "quotas": [{"tokens": 2500}]}, work={"tokens": 1000}))
    assert (best, found.served) == (2, 2)


async def test_windows_begin_where_the_scenario_says() -> None:
    quota = {"requests": 1, "per": "20s", "start": "10s"}
    # Windows: before 10 s, 10-30, 30-50, from 50 on; the arrivals 0, 10, 30, 50 are the first in theirs.
    best, _ = await one(text_of({"name": "a", "quotas": [quota]}))
    assert best == 4


async def test_a_short_refusal_that_sets_a_credential_aside_for_long_is_regretted() -> None:
    best, found = await one(text_of({"name": "a", "outages": [{"from": 0, "to": "10s", "status": 401}]}))
    assert (best, found.served, found.regret, found.tries) == (5, 0, 5, 1)
    assert found.client_errors == {"401": 1, "503": 5}


async def test_a_failed_credential_is_replaced_and_back_after_its_rest() -> None:
    credentials = {"name": "a", "outages": [{"from": 0, "to": "5s"}]}, {"name": "b"}
    best, found = await one(
        text_of(*credentials, gateway={"transient-error-cooldown-seconds": 25}), built_in("fill-first")
    )
    assert (best, found.served, found.wasted_by_status) == (6, 6, {"503": 1})
    assert found.served_by == {"acme/a": 3, "acme/b": 3}


async def test_turns_go_by_weight_and_by_priority() -> None:
    weighted = text_of({"name": "a", "weight": 2}, {"name": "b"})
    _, found = await one(weighted, built_in("wrr"))
    assert found.served_by == {"acme/a": 4, "acme/b": 2}
    _, found = await one(text_of({"name": "a", "count": 2}, {"name": "b", "priority": 1}))
    assert found.served_by == {"acme/b": 6}


async def test_sessions_stay_with_affinity_and_move_without() -> None:
    work = {"sessions": 1}
    _, without = await one(text_of({"name": "a", "count": 3}, work=work))
    affine = {"routing": {"session-affinity": True}}
    _, kept = await one(text_of({"name": "a", "count": 3}, work=work, gateway=affine))
    assert (without.moves, kept.moves) == (5, 0)


async def test_a_long_answer_proves_nothing_about_a_limit_that_was_met_after_it_began() -> None:
    text = text_of(
        {"name": "k", "count": 4, "quotas": [{"requests": 60}]},
        work={"per-minute": 480, "arrivals": "poisson"},
        latency="2s..12s",
    )
    first, second = [(await report_of(text)).policies[0] for _ in range(2)]
    assert first == second
    assert (first.served, first.wasted) == (240, 4), "each key is asked once after its last request of the minute"


async def test_chance_is_the_same_for_the_same_seed_and_every_policy_and_differs_with_the_seed() -> None:
    text = text_of(
        {"name": "a", "count": 4, "quotas": [{"requests": 30}]},
        gateway={"request-retry": 2, "max-retry-interval": "5s"},
        work={"per-minute": 200, "arrivals": "poisson", "tokens": "lognormal 500 5000"},
        **{"error-rates": {"500": 0.1, "0": 0.05}, "latency": "0.5s..2s"},
    )
    first, again = [msgspec.json.encode(await report_of(text, built_in("wrr"), built_in("rr"))) for _ in range(2)]
    other = msgspec.json.encode(await report_of(text, built_in("wrr"), built_in("rr"), seed=2))
    assert first == again
    assert first != other
    assert b'"connection"' in first and b'"500"' in first


async def test_a_class_in_a_file_decides_and_what_it_leaves_goes_by_the_scenarios_strategy(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from pluginapi import *\n\n"
        "class Last(Plugin):\n"
        "    async def scheduler_pick(self, request):\n"
        "        if self.config.get('shy'):\n"
        "            return None\n"
        "        return SchedulerPickResponse(auth_id=request.candidates[-1].id)\n"
    )
    text = text_of({"name": "a"}, {"name": "b"}, gateway={"routing": {"strategy": "fill-first"}})
    _, found = await one(text, plugin(f"{file}:Last"))
    assert (found.policy, found.served_by) == ("Last", {"acme/b": 6})
    _, found = await one(text, plugin(f"{file}:Last", {"shy": True}))
    assert found.served_by == {"acme/a": 6}


def test_a_class_with_an_id_of_its_own_is_tried_too_and_its_failures_do_not_mix_with_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from pluginapi import *\n\n"
        "class Mine(Plugin):\n"
        "    id, version = 'mine', '2.0.0'\n\n"
        "    async def scheduler_pick(self, request):\n"
        "        raise ValueError('no idea')\n"
    )
    (tmp_path / "few.yaml").write_text(text_of({"name": "a"}, work={"per-minute": 60}))
    done = simulate_command(
        str(tmp_path / "few.yaml"),
        strategies=(),
        plugins=(f"{file}:Mine",),
        plugin_config=None,
        compare=False,
        seed=None,
        as_json=True,
    )
    out, err = capsys.readouterr()
    assert done == 0
    assert msgspec.json.decode(out)["policies"][0]["policy"] == "Mine"
    assert err.count("plugin.exception") == 20
    assert err.endswith("… and 40 more lines\n")


async def test_a_plugin_folder_runs_as_the_process_that_it_is() -> None:
    pinned = plugin(str(EXAMPLES / "pinned-scheduler"), {"auth_id": "acme/b"})
    _, found = await one(text_of({"name": "a"}, {"name": "b"}), pinned)
    assert (found.policy, found.served_by) == ("pinned-scheduler", {"acme/b": 6})


@pytest.mark.parametrize("text", ["nowhere", "nowhere.py:Policy", str(EXAMPLES)])
def test_a_plugin_that_is_not_there_is_named(text: str) -> None:
    with pytest.raises(PolicyError, match=r"nowhere|plugin\.toml"):
        plugin(text)


async def test_a_plugin_without_a_scheduler_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from pluginapi import *\n\nclass Nothing(Plugin):\n    pass\n")
    with pytest.raises(PolicyError, match=r"Nothing: "):
        await one(text_of({"name": "a"}), plugin(f"{file}:Nothing"))


GOOD = """\
duration: 1m
providers:
  - name: acme
    credentials:
      - name: a
        quotas:
          - requests: 3
workload:
  - per-minute: 6
"""


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("requests: 3", "request: 3", "s.yaml:7: unknown key `providers.credentials.quotas.request`"),
        ("requests: 3", "per: 1m", "s.yaml:7: `providers[0].credentials[0].quotas[0]`: says neither"),
        ("requests: 3", "requests: many", "s.yaml:7: `providers[0].credentials[0].quotas[0].requests`: expected"),
        ("duration: 1m", "duration: soon", "s.yaml:1: `duration`: 'soon' is no duration"),
        ("per-minute: 6", "per-minute: 0", "s.yaml:9: `workload[0].per-minute`: must be above 0"),
        ("per-minute: 6", "per-minute: 1e7", "s.yaml:8: `workload`: about 10000000 requests"),
        ("per-minute: 6", "{per-minute: 6, tokens: some}", "`workload[0].tokens`: 'some' is no number"),
        ("per-minute: 6", "{per-minute: 6, tokens: 9..2}", "the lower end comes first"),
        ("name: acme", "{name: acme, latency: lognormal 0s 1s}", "the median must be above 0"),
        ("- name: a\n", "- name: a\n        error-rates: {'200': 0.1}\n", "is a status from 400 to 599"),
        ("- name: a\n", "- name: a\n        outages: [{from: 5s, to: 5s}]\n", "must be later than `from`"),
        ("- name: a\n", "- name: a\n      - name: a\n", "s.yaml:6: `providers[0].credentials[1].name`: 'a' is there"),
        ("providers:", "gateway:\n  routing:\n    strategy: best\nproviders:", "s.yaml:4: `gateway.routing.strategy`"),
        ("name: acme", "{name: acme, models: [x]}", "no provider has the model 'm'"),
    ],
)
def test_a_mistake_is_told_with_its_line(before: str, after: str, problem: str) -> None:
    if after.startswith("{name: acme, "):
        after = after.strip("{}").replace(", ", "\n    ", 1)
    if after.startswith("{per-minute: 6, "):
        after = after.strip("{}").replace(", ", "\n    ")
    with pytest.raises(ConfigError) as raised:
        parse_scenario(GOOD.replace(before, after, 1), file="s.yaml")
    assert problem in str(raised.value)


def test_the_shipped_scenarios_are_valid_and_say_what_they_are() -> None:
    assert len(shipped()) >= 5
    assert all(load_scenario(path).description for path in shipped().values())


def test_the_command_compares_lists_and_refuses(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(GOOD)
    run = CliRunner().invoke
    compared = run(main, ["simulate", str(file), "--compare", "--json"])
    assert compared.exit_code == 0, compared.output
    document = json.loads(compared.stdout)
    assert [it["policy"] for it in document["policies"]] == ["round-robin", "weighted-round-robin", "fill-first"]
    shown = run(main, ["simulate", str(file), "--policy", "ff", "--seed", "4"])
    assert shown.stdout.startswith("tiny: ") and "seed 4" in shown.stdout and "fill-first" in shown.stdout
    listed = run(main, ["simulate", "--list"])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(shipped())
    file.write_text(GOOD.replace("workload", "workloads"))
    refused = run(main, ["simulate", str(file)])
    assert refused.exit_code == 2
    assert f"{file}:8: unknown key `workloads`" in refused.stderr
    assert run(main, ["simulate", "outage", "--policy", "best"]).exit_code == 2


async def test_virtual_time_goes_to_whoever_is_next_and_hands_on_what_was_raised() -> None:
    time, seen = VirtualTime(), list[tuple[str, float]]()

    async def waiter(name: str, *delays_s: float) -> None:
        for delay_s in delays_s:
            await time.sleep(delay_s)
            seen.append((name, time.now_s))

    time.at(0.0, lambda: waiter("a", 10.0, 3600.0))
    time.at(5.0, lambda: waiter("b", 5.0, 1.0))
    await time.run()
    assert seen == [("a", 10.0), ("b", 10.0), ("b", 11.0), ("a", 3610.0)]

    async def broken() -> None:
        await time.sleep(1.0)
        raise ValueError("broken")

    time.at(4000.0, broken)
    with pytest.raises(ValueError, match="broken"):
        await time.run()
