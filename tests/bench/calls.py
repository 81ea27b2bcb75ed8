"""Comparing a call to a plugin process with one line to an echo process: starts call_driver.py in turns."""

import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, Final

from tests.bench.lineup import Site
from tests.bench.procs import LOAD_CORE, PROXY_CORE, ContestantError, child_environment
from tests.bench.results import FlatResult, significant

KINDS: Final = ("echo", "plugin")


def measure(site: Site, *, rounds: int, seconds: float, say: Callable[[str], None]) -> FlatResult:
    """Medians of both, and of the quotient within each round. Raises ContestantError when a driver fails.

    The keys without a suffix have both processes on the proxy's core, as in the gateway under test: that is what the
    two cost. With the child on the other core waking it up is added to both, and the quotient comes out smaller.
    """
    flat: FlatResult = {}
    for suffix, child_core in (("", PROXY_CORE), ("_two_cores", LOAD_CORE)):
        echo_us, plugin_us, quotients = [], [], []
        for round_number in range(1, rounds + 1):
            echo, plugin = (_drive(site, kind, seconds, child_core) for kind in KINDS)
            echo_us.append(echo["p50_us"])
            plugin_us.append(plugin["p50_us"])
            quotients.append(plugin["p50_us"] / echo["p50_us"])
            say(
                f"round {round_number}: one 1 KB call, p50: plugin {plugin['p50_us']:.0f} us, "
                f"bare echo {echo['p50_us']:.0f} us, child on core {child_core}"
            )
        flat[f"json_call_vs_bare_echo{suffix}"] = significant(median(quotients))
        flat[f"json_call_us{suffix}"] = significant(median(plugin_us))
        flat[f"bare_echo_us{suffix}"] = significant(median(echo_us))
    return flat


def _drive(site: Site, kind: str, seconds: float, child_core: int) -> dict[str, Any]:
    leash = str(site.work_dir / "leash")
    argv = [leash, str(PROXY_CORE), sys.executable, str(site.bench_dir / "call_driver.py"), kind, str(seconds)]
    done = subprocess.run(
        [*argv, leash, str(child_core)],
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
