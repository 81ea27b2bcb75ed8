"""`make chaos`: one plugin misbehaves while 500 streams run through others; exit status 1 when they notice."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.scenario import FAULTS, Fault, Figures, Options, run_once

MEMORY_MB = 10.0
ADDED_P99_MS = 5.0
READY_AGAIN_S = 1.0


def p99_ms(values_s: list[float]) -> float:
    """Milliseconds within which 99 of 100 lie."""
    ordered = sorted(values_s)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000 if ordered else 0.0


def run_fresh(faults: Sequence[Fault], options: Options) -> Figures:
    """One run in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="jf-"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_once(faults, options, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def row(name: str, runs: list[Figures], calm: list[Figures]) -> tuple[str, list[str]]:
    """A line of the table, and which promises were not kept. Medians over the runs, each against its calm one."""

    def of(value: Callable[[Figures], float]) -> float:
        return median(value(run) for run in runs)

    def added(value: Callable[[Figures], float]) -> float:
        return median(value(run) - value(quiet) for run, quiet in zip(runs, calm, strict=True))

    event, small = (lambda run: p99_ms(run.event_s)), (lambda run: p99_ms(run.small_s))
    ready_s = max((one for run in runs for one in run.ready_again_s), default=0.0)
    growth_mb = median(max(run.rss_kb) - max(quiet.rss_kb) for run, quiet in zip(runs, calm, strict=True)) / 1024
    affected = sum(len(run.affected) for run in runs)
    cpu, waited = of(lambda run: run.host_cpu) * 100, of(lambda run: run.host_waited) * 100
    line = (
        f"{name:16} {affected:8}  {of(event):7.1f} {added(event):+7.1f}  {of(small):7.1f} {added(small):+7.1f}  "
        f"{growth_mb:+7.1f}  {ready_s * 1000 if ready_s else 0:6.0f}  {cpu:4.0f} {waited:5.0f}"
    )
    if (came := of(lambda run: run.own_events)) > 0:
        line += f"   {came:.0f} events of its own came through"
    missed = [run.affected[0] for run in runs if run.affected]
    if added(event) > ADDED_P99_MS:
        missed.append(f"p99 of events {added(event):+.1f} ms")
    if added(small) > ADDED_P99_MS:
        missed.append(f"p99 of small requests {added(small):+.1f} ms")
    if growth_mb > MEMORY_MB:
        missed.append(f"the host grew by {growth_mb:.1f} MB")
    if ready_s > READY_AGAIN_S:
        missed.append(f"ready again after {ready_s:.2f} s")
    return line, missed


HEAD = (
    "                  streams     events: p99 ms    requests: p99 ms   memory   ready    host\n"
    "fault            affected     p99   added      p99   added       MB      ms   cpu% wait%"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=Options().streams)
    parser.add_argument("--seconds", type=float, default=Options().seconds, help="how long each run is measured")
    parser.add_argument("--runs", type=int, default=3, help="medians are over so many")
    parser.add_argument("--only", default="", help="only faults whose name contains this")
    parser.add_argument(
        "--realtime", action="store_true", help="measure on a machine that others use (as root): they have to wait"
    )
    given = parser.parse_args()
    options = Options(streams=given.streams, seconds=given.seconds, realtime=given.realtime)
    faults = [fault for fault in FAULTS if given.only in fault.name]
    calm: list[Figures] = []
    runs: dict[str, list[Figures]] = {fault.name: [] for fault in faults}
    for _ in range(given.runs):
        calm.append(run_fresh((), options))
        for fault in faults:
            runs[fault.name].append(run_fresh((fault,), options))
    print(HEAD)
    print(row("none", calm, calm)[0])
    problems = 0
    for fault in faults:
        line, missed = row(fault.name, runs[fault.name], calm)
        print(line)
        problems += len(missed)
        for what in missed:
            print(f"    MISSED {what}")
    print("the others noticed nothing" if not problems else f"{problems} promises were not kept")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
