"""`make upgrade`: a plugin is replaced 100 times during 100,000 requests; exit status 1 when one of them is lost."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.upgrade.scenario import CARRIERS, MAX_GENERATIONS, Options, Report, run_upgrades


def percentile_ms(values_s: list[float], share: float) -> float:
    """Milliseconds below which that share of the values lies."""
    ordered = sorted(values_s)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


def lines(options: Options, report: Report) -> list[str]:
    """The figures."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.upgrades.items()))
    rate = report.requests / report.duration_s if report.duration_s else 0.0
    calm, busy = report.calm_s, report.busy_s
    return [
        f"carrier            {options.carrier}",
        f"requests           {report.requests}, of which {report.streams} streams; {rate:.0f} per second",
        f"upgrades           {report.upgrades.total()} ({kinds})",
        f"                   {report.waited} had to wait for an older generation's streams",
        f"lost               {report.lost}",
        f"duplicated         {report.duplicated}",
        f"failed             {report.failed}",
        f"without upgrades   p50 {percentile_ms(calm, 0.5):.1f} ms, p99 {percentile_ms(calm, 0.99):.1f} ms",
        f"with upgrades      p50 {percentile_ms(busy, 0.5):.1f} ms, p99 {percentile_ms(busy, 0.99):.1f} ms",
        f"generations alive  at most {report.generations_max} (limit {MAX_GENERATIONS})",
        f"memory of the host {report.rss_before_kb / 1024:.1f} MB before, {report.rss_after_kb / 1024:.1f} MB after",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carrier", choices=sorted(CARRIERS), default=Options().carrier)
    for field in fields(Options):
        if field.type is int:
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=int, default=getattr(Options(), field.name))
    options = Options(**vars(parser.parse_args()))
    directory = Path(tempfile.mkdtemp(prefix="jf-"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(run_upgrades(options, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print("\n".join(lines(options, report)))
    for problem in report.problems:
        print(f"PROBLEM {problem}")
    print("no request was lost" if not report.problems else f"{len(report.problems)} problems")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
