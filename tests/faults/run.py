"""`make faults`: every fault under load, one line each; exit status 1 when one of them does not hold."""

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.scenarios import (  # the path of the checkout comes first
    REFUSED_COMMANDS,
    RUNNING_FAULTS,
    START_FAULTS,
    Outcome,
    run_fault,
    run_kills,
    run_refused_command,
    run_start_fault,
)


async def run(work: Callable[[Path], Awaitable[Outcome]]) -> Outcome:
    """One scenario in a short directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="jf-"))
    try:
        return await work(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def line(outcome: Outcome) -> str:
    """One row of the table."""
    errors = ", ".join(f"{count} {code}" for code, count in sorted(outcome.own.items()) if code != "ok") or "none"
    again = f"{max(outcome.ready_again_s) * 1000:6.0f} ms" if outcome.ready_again_s else "        -"
    slowest = f"{outcome.foreign_slowest_s * 1000:6.0f} ms"
    verdict = "ok  " if not outcome.problems else "FAIL"
    calls = outcome.foreign["ok"]
    return f"{verdict} {outcome.name:46} ready again {again}  foreign {calls:6} ok, slowest {slowest}  own: {errors}"


async def main(kills: int, only: str) -> int:
    """Run all scenarios whose name contains `only`."""
    work: list[tuple[str, Callable[[Path], Awaitable[Outcome]]]] = []
    work += [(fault.name, partial(run_fault, fault)) for fault in RUNNING_FAULTS]
    work += [(mode, partial(run_start_fault, mode)) for mode in START_FAULTS]
    work += [(name, partial(run_refused_command, name)) for name in REFUSED_COMMANDS]
    work += [("killed", partial(run_kills, kills))]
    failed = 0
    for name, scenario in work:
        if only not in name:
            continue
        outcome = await run(scenario)
        print(line(outcome), flush=True)
        for problem in outcome.problems:
            failed += 1
            print(f"     {problem}", flush=True)
    print("all faults held" if not failed else f"{failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how often the victim of the last scenario is killed")
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(options.kills, options.only)))
