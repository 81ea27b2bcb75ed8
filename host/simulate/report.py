"""What a simulation tells: numbers per policy, as a table or as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from host.simulate.oracle import Best
from host.simulate.run import Played
from host.simulate.workload import Arrival


class PolicyReport(Struct, frozen=True, kw_only=True):
    """One policy. Times are virtual."""

    policy: str
    served: int
    failed: int
    """Requests that ended with an error for the client."""
    per_minute: float
    """Served requests per minute of the scenario's duration."""
    client_errors: Mapping[str, int]
    """Errors that clients saw, by status."""
    tries: int
    wasted: int
    """Tries that failed."""
    wasted_by_status: Mapping[str, int]
    """`connection`: refused."""
    wait_mean_ms: float
    """Of served requests, from their arrival until the try began that served them."""
    wait_p99_ms: float
    total_mean_ms: float
    """Of served requests, until the answer."""
    total_p99_ms: float
    regret: int
    """Requests that the oracle serves beyond this."""
    regret_share: float
    moves: int
    """How often a session was served by another credential than the time before."""
    picks_refused: int
    """Answers of the plugin that named nobody who could be taken."""
    served_by: Mapping[str, int]


class SimulationReport(Struct, frozen=True, kw_only=True):
    """All policies over the same requests."""

    scenario: str
    seed: int
    duration_s: float
    requests: int
    oracle_served: int
    oracle_wait_mean_ms: float
    policies: Sequence[PolicyReport]


def policy_report(name: str, played: Played, best: Best, duration_s: float) -> PolicyReport:
    """The numbers of one policy."""
    good = [it for it in played.answers if it.served_by]
    bad = Counter(str(it.status) for it in played.answers if not it.served_by)
    wasted = Counter(str(it.status) if it.status else "connection" for it in played.tries if it.status != 200)
    waits_ms = sorted((it.tried_s - it.request.at_s) * 1000 for it in good)
    totals_ms = sorted((it.end_s - it.request.at_s) * 1000 for it in good)
    regret = best.served - len(good)
    return PolicyReport(
        policy=name,
        served=len(good),
        failed=len(played.answers) - len(good),
        per_minute=round(len(good) / duration_s * 60, 2),
        client_errors=dict(sorted(bad.items())),
        tries=len(played.tries),
        wasted=sum(wasted.values()),
        wasted_by_status=dict(sorted(wasted.items())),
        wait_mean_ms=_mean(waits_ms),
        wait_p99_ms=_p99(waits_ms),
        total_mean_ms=_mean(totals_ms),
        total_p99_ms=_p99(totals_ms),
        regret=regret,
        regret_share=round(regret / best.served, 4) if best.served else 0.0,
        moves=_moves([(it.request, it.served_by) for it in good]),
        picks_refused=played.refused_picks,
        served_by=dict(sorted(Counter(it.served_by for it in good).items())),
    )


def table(report: SimulationReport) -> str:
    """One column per policy."""
    rows: list[tuple[str, list[str]]] = [("", [it.policy for it in report.policies])]

    def row(title: str, values: Sequence[object]) -> None:
        rows.append((title, [str(value) for value in values]))

    found = report.policies
    row("served", [it.served for it in found])
    row("served per minute", [it.per_minute for it in found])
    row("errors to clients", [it.failed for it in found])
    for status in sorted({status for it in found for status in it.client_errors}):
        row(f"  {status}", [it.client_errors.get(status, 0) for it in found])
    row("tries", [it.tries for it in found])
    row("wasted tries", [it.wasted for it in found])
    for status in sorted({status for it in found for status in it.wasted_by_status}):
        row(f"  {status}", [it.wasted_by_status.get(status, 0) for it in found])
    row("wait, mean", [_time(it.wait_mean_ms) for it in found])
    row("wait, p99", [_time(it.wait_p99_ms) for it in found])
    row("answer, mean", [_time(it.total_mean_ms) for it in found])
    row("answer, p99", [_time(it.total_p99_ms) for it in found])
    row("session moves", [it.moves for it in found])
    if any(it.picks_refused for it in found):
        row("picks refused", [it.picks_refused for it in found])
    row("regret", [f"{it.regret} ({it.regret_share:.1%})" for it in found])
    left = max(len(title) for title, _ in rows)
    widths = [max(len(values[index]) for _, values in rows) for index in range(len(found))]
    head = (
        f"{report.scenario}: {report.requests} requests in {_time(report.duration_s * 1000)}, seed {report.seed}; "
        f"the oracle serves {report.oracle_served}"
    )
    lines = [
        (title.ljust(left) + "".join(f"  {it:>{width}}" for it, width in zip(values, widths, strict=True))).rstrip()
        for title, values in rows
    ]
    return "\n".join([head, "", *lines])


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 1) if values else 0.0


def _p99(values: Sequence[float]) -> float:
    """Nearest rank, of sorted values."""
    return round(values[-(-len(values) * 99 // 100) - 1], 1) if values else 0.0


def _moves(served: Sequence[tuple[Arrival, str]]) -> int:
    last: dict[str, str] = {}
    moves = 0
    for request, credential in served:
        if request.session:
            moves += last.get(request.session, credential) != credential
            last[request.session] = credential
    return moves


def _time(value_ms: float) -> str:
    if value_ms < 1000:
        return f"{value_ms:.0f} ms"
    return f"{value_ms / 1000:.2f} s" if value_ms < 60_000 else f"{value_ms / 60_000:.1f} min"
