"""`make hostile`: every attack of a hostile plugin, who refused it, and where that is seen.

Exit status 1 for an attack that came through, or was refused without being seen where it should be; with CI=true also
for what this kernel cannot enforce.
"""

import asyncio
import logging
import os
import sys
from collections import Counter
from pathlib import Path

import structlog
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from host.runtime.confinement import this_kernel  # the path of the checkout comes first
from tests.hostile.trial import BREACH, NOT_ENFORCEABLE, Row, attempt_rows


def line(row: Row) -> str:
    """One row of the table."""
    problem = f"\n      {row.problem}" if row.problem else ""
    return f"{row.verdict:16} {row.guard:11} {row.name:56} {row.outcome:20} {row.reported}{problem}"


async def main() -> int:
    """Print the table as it grows."""
    kernel = this_kernel()
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    print(f"{os.uname().sysname} {os.uname().release}, Landlock {kernel.landlock or 'none'}, as {user}\n", flush=True)
    verdicts: Counter[str] = Counter()
    failed = 0
    async for row in attempt_rows():
        print(line(row), flush=True)
        verdicts[row.verdict] += 1
        strict = row.verdict == NOT_ENFORCEABLE and os.environ.get("CI") == "true"
        failed += row.verdict == BREACH or strict or bool(row.problem and row.verdict != NOT_ENFORCEABLE)
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    print("nothing came through" if not failed else f"{failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main()))
