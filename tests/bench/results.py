"""From single measurements to the flat result, its floors and the printed table. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

FlatValue = float | int | str
FlatResult = dict[str, FlatValue]

YARDSTICK: Final = "bare"
LOAD_BOUND_BELOW: Final = 0.85
# More than this much foreign work on the proxy's core and a run says more about the neighbours than about the proxy.
NOISE_LIMIT: Final = 0.10


@dataclass(frozen=True, kw_only=True)
class Run:
    """One timed run of one contestant under one load."""

    contestant: str
    load: str
    round_number: int
    responses_per_s: float
    latency_p50_us: float
    latency_p99_us: float
    cpu_us_per_response: float
    events_per_response: int
    foreign_share: float
    """Part of the proxy's core that others used meanwhile, 0 to 1."""
    own_share: float
    """Part of the time the proxy was computing."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A promise about one key of the result."""

    key: str
    limit: float
    direction: Literal["at least", "at most"]

    def holds(self, value: float) -> bool:
        """Whether the value keeps the promise; the limit itself does."""
        return value >= self.limit if self.direction == "at least" else value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one floor; value is None when nothing was measured."""

    floor: Floor
    value: float | None

    @property
    def word(self) -> str:
        """ok, MISSED or not measured."""
        if self.value is None:
            return "not measured"
        return "ok" if self.floor.holds(self.value) else "MISSED"


FLOORS: Final = (
    Floor(key="plain_vs_bare", limit=0.70, direction="at least"),
    Floor(key="stream64_vs_bare", limit=0.80, direction="at least"),
    Floor(key="plain_inprocess_router_and_interceptor_vs_bare", limit=0.60, direction="at least"),
    Floor(key="plain_json_router_vs_bare", limit=0.45, direction="at least"),
    Floor(key="json_call_vs_bare_echo", limit=1.5, direction="at most"),
    Floor(key="rss_mb", limit=90.0, direction="at most"),
    Floor(key="cold_start_s", limit=1.5, direction="at most"),
    Floor(key="pool_pick_failing_us", limit=30.0, direction="at most"),
    Floor(key="pool_pick_tenth_us", limit=30.0, direction="at most"),
    Floor(key="pool_pick_most_us", limit=30.0, direction="at most"),
    Floor(key="pool_pick_all_us", limit=30.0, direction="at most"),
    Floor(key="pool_start_s", limit=2.0, direction="at most"),
    Floor(key="pool_config_start_s", limit=2.0, direction="at most"),
    Floor(key="pool_reload_ms", limit=100.0, direction="at most"),
    Floor(key="pool_config_reload_ms", limit=100.0, direction="at most"),
    Floor(key="pool_config_reload_added_ms", limit=100.0, direction="at most"),
    Floor(key="pool_edit_patch_ms", limit=200.0, direction="at most"),
)

RATIO_KEYS: Final = {
    ("jackfield", "plain"): "plain_vs_bare",
    ("jackfield", "stream64"): "stream64_vs_bare",
    ("jackfield_inprocess", "plain"): "plain_inprocess_router_and_interceptor_vs_bare",
    ("jackfield_json", "plain"): "plain_json_router_vs_bare",
}


def significant(value: float) -> float:
    """The value with four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def median_ratio(runs: Sequence[Run], *, contestant: str, load: str, yardstick: str = YARDSTICK) -> float | None:
    """Median over the rounds of the contestant's rate divided by the yardstick's in the same round.

    The quotient is taken before the median, because the runs of one round are neighbours in time: what slows the
    machine down for a while slows both. Rounds in which somebody else used the core count only when there are no
    others. None when no round has both.
    """
    by_place = {(run.contestant, run.round_number): run for run in runs if run.load == load}
    pairs = [
        (run, by_place[yardstick, round_number])
        for (name, round_number), run in by_place.items()
        if name == contestant and (yardstick, round_number) in by_place
    ]
    quiet = [pair for pair in pairs if max(run.foreign_share for run in pair) <= NOISE_LIMIT]
    return median(own.responses_per_s / base.responses_per_s for own, base in quiet or pairs) if pairs else None


def median_cpu_ratio(runs: Sequence[Run], *, contestant: str, load: str, yardstick: str = YARDSTICK) -> float | None:
    """Like median_ratio, by processor time per answer: what the ratio of rates would be with the core to oneself."""
    costs = {(run.contestant, run.round_number): run.cpu_us_per_response for run in runs if run.load == load}
    quotients = [
        costs[yardstick, round_number] / cost
        for (name, round_number), cost in costs.items()
        if name == contestant and (yardstick, round_number) in costs
    ]
    return median(quotients) if quotients else None


def _of(runs: Iterable[Run], contestant: str, load: str) -> list[Run]:
    return [run for run in runs if run.contestant == contestant and run.load == load]


def flatten_runs(runs: Sequence[Run]) -> FlatResult:
    """The keys that come from the HTTP runs.

    For every pair measured: `<load>_per_s_<contestant>`, `<load>_p50_us_…`, `<load>_p99_us_…` and the processor time
    per response, or per event when the load streams; that of plain Jackfield also stands without a suffix.
    """
    flat: FlatResult = {}
    for contestant, load in dict.fromkeys((run.contestant, run.load) for run in runs):
        group = _of(runs, contestant, load)
        flat[f"{load}_per_s_{contestant}"] = significant(median(run.responses_per_s for run in group))
        flat[f"{load}_p50_us_{contestant}"] = significant(median(run.latency_p50_us for run in group))
        flat[f"{load}_p99_us_{contestant}"] = significant(median(run.latency_p99_us for run in group))
        busy_share = median(min(1.0, run.own_share + run.foreign_share) for run in group)
        flat[f"{load}_core_busy_{contestant}"] = round(busy_share, 3)
        cpu_us = median(run.cpu_us_per_response / max(1, run.events_per_response) for run in group)
        cpu_key = {"plain": "cpu_us_per_request", "stream64": "cpu_us_per_sse_event"}.get(load, f"cpu_us_{load}")
        flat[f"{cpu_key}_{contestant}"] = significant(cpu_us)
        if contestant == "jackfield":
            flat[cpu_key] = significant(cpu_us)
        ratio = median_ratio(runs, contestant=contestant, load=load)
        ratio_key = RATIO_KEYS.get((contestant, load), f"{load}_{contestant}_vs_bare")
        if ratio is not None and contestant != YARDSTICK:
            flat[ratio_key] = significant(ratio)
        cpu_ratio = median_cpu_ratio(runs, contestant=contestant, load=load)
        if cpu_ratio is not None and contestant != YARDSTICK:
            flat[f"{load}_cpu_{contestant}_vs_bare"] = significant(cpu_ratio)
    return flat


def noise_lines(runs: Sequence[Run]) -> list[str]:
    """A warning when others used the core in some of the runs."""
    noisy = sum(run.foreign_share > NOISE_LIMIT for run in runs)
    if not noisy:
        return []
    return [f"NOTE {noisy} of {len(runs)} runs were disturbed by others on the proxy's core: trust `by CPU` more.", ""]


def step_times(points: Mapping[str, int], *, cpu_us_each: float) -> dict[str, float]:
    """A sampler's points as shares of the processor time of one request or event, most expensive first."""
    total = sum(points.values())
    ordered = sorted(points.items(), key=lambda item: (-item[1], item[0]))
    return {step: round(cpu_us_each * count / total, 2) for step, count in ordered if total}


def step_lines(flat: Mapping[str, FlatValue], prefix: str, title: str) -> list[str]:
    """The steps of one kind of request in one paragraph; nothing when none were measured."""
    shown = [f"{key.removeprefix(f'{prefix}_')} {value}" for key, value in flat.items() if key.startswith(f"{prefix}_")]
    return [f"{title}: {', '.join(shown)}", ""] if shown else []


def judge(flat: Mapping[str, FlatValue]) -> list[Verdict]:
    """One verdict per floor, in the order of FLOORS."""
    verdicts = []
    for floor in FLOORS:
        value = flat.get(floor.key)
        verdicts.append(Verdict(floor=floor, value=float(value) if value is not None else None))
    return verdicts


def verdict_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """One line per floor for the terminal."""
    lines = []
    for verdict in verdicts:
        shown = "-" if verdict.value is None else f"{verdict.value:g}"
        promise = f"{verdict.floor.direction} {verdict.floor.limit:g}"
        lines.append(f"{verdict.word:<13}{verdict.floor.key:<50}{shown:>10}   ({promise})")
    return lines


def table_lines(flat: Mapping[str, FlatValue], contestants: Iterable[str], loads: Iterable[str]) -> list[str]:
    """The medians as a table, one block per load and one line per contestant."""
    lines: list[str] = []
    names = list(contestants)
    for load in loads:
        measured = [name for name in names if f"{load}_per_s_{name}" in flat]
        if not measured:
            continue
        cpu_key = {"plain": "cpu_us_per_request", "stream64": "cpu_us_per_sse_event"}.get(load, f"cpu_us_{load}")
        cpu_title = "CPU us/request" if load == "plain" else "CPU us/event"
        title = f"{load:<24}{'per s':>10}{'vs bare':>10}{'by CPU':>10}{'p50 us':>12}{'p99 us':>12}{cpu_title:>17}"
        lines += [title, "-" * len(title)]
        for name in measured:
            ratio = flat.get(RATIO_KEYS.get((name, load), f"{load}_{name}_vs_bare"), 1.0 if name == YARDSTICK else "-")
            by_cpu = flat.get(f"{load}_cpu_{name}_vs_bare", 1.0 if name == YARDSTICK else "-")
            shown = "".join(
                f"{value:>10.2f}" if isinstance(value, float) else f"{value:>10}" for value in (ratio, by_cpu)
            )
            load_bound = float(flat[f"{load}_core_busy_{name}"]) < LOAD_BOUND_BELOW
            mark = "   limited by the load" if load_bound else ""
            lines.append(
                f"{name:<24}{flat[f'{load}_per_s_{name}']:>10,.0f}{shown}{flat[f'{load}_p50_us_{name}']:>12,.0f}"
                f"{flat[f'{load}_p99_us_{name}']:>12,.0f}{flat[f'{cpu_key}_{name}']:>17,.1f}{mark}"
            )
        lines.append("")
    return lines
