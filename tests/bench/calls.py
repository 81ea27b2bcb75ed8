"""Comparing a call to a plugin process with one line to an echo process: starts call_driver.py in turns."""

import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, Final

from tests.bench.lineup import Site
from tests.bench.procs import PROXY_CORE, ContestantError, child_environment
from tests.bench.results import FlatResult, significant

KINDS: Final = ("echo", "plugin")


def measure(site: Site, *, rounds: int, seconds: float, say: Callable[[str], None]) -> FlatResult:
    """Medians of both, and of the quotient within each round. Raises ContestantError when a driver fails."""
    echo_us, plugin_us, quotients = [], [], []
    for round_number in range(1, rounds + 1):
        echo, plugin = (_drive(site, kind, seconds) for kind in KINDS)
        echo_us.append(echo["p50_us"])
        plugin_us.append(plugin["p50_us"])
        quotients.append(plugin["p50_us"] / echo["p50_us"])
        say(
            f"round {round_number}: one 1 KB call, p50: plugin {plugin['p50_us']:.0f} us, "
            f"bare echo {echo['p50_us']:.0f} us"
        )
    return {
        "json_call_vs_bare_echo": significant(median(quotients)),
        "json_call_us": significant(median(plugin_us)),
        "bare_echo_us": significant(median(echo_us)),
    }


def _drive(site: Site, kind: str, seconds: float) -> dict[str, Any]:
    argv = [str(site.work_dir / "leash"), str(PROXY_CORE), sys.executable, str(site.bench_dir / "call_driver.py")]
    done = subprocess.run(
        [*argv, kind, str(seconds)],
        capture_output=True,
        timeout=seconds + 60,
        env=child_environment({"PYTHONPATH": str(site.root)}),
        cwd=site.work_dir,
        check=False,
    )
    if done.returncode != 0:
        raise ContestantError(f"the {kind} driver failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
