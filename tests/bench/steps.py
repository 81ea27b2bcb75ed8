"""Where the time of a request goes: the gateway under sampled_host.py, points turned into microseconds per step."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.bench import lineup
from tests.bench.measure import LOADS, Bench, Load
from tests.bench.procs import BenchError, ContestantError, cpu_s, free_port, process_tree
from tests.bench.results import FlatResult, step_times

KEY_PREFIXES = {"plain": "step_us", "stream64": "sse_step_us"}


def measure(bench: Bench, *, seconds: float) -> FlatResult:
    """Microseconds of processor time per step: `step_us_<step>` per plain request, `sse_step_us_<step>` per event.

    Raises ContestantError when the gateway does not start or answers wrongly.
    """
    flat: FlatResult = {}
    for load_name, prefix in KEY_PREFIXES.items():
        load = LOADS[load_name]
        points, cpu_us = _sample(bench, load, seconds)
        times = step_times(points, cpu_us_each=cpu_us / max(1, load.events))
        flat |= {f"{prefix}_{step}": time_us for step, time_us in times.items()}
    return flat


def _sample(bench: Bench, load: Load, seconds: float) -> tuple[Mapping[str, int], float]:
    """Points per step under the load, and the processor time per response meanwhile."""
    output = bench.site.work_dir / "steps.json"
    output.unlink(missing_ok=True)
    plain = lineup.jackfield(bench.site, free_port(), name="jackfield_sampled")
    launcher = [sys.executable, str(bench.site.bench_dir / "sampled_host.py"), str(output)]
    server = bench.start(replace(plain, argv=[*launcher, *plain.argv[plain.argv.index("serve") :]]))
    try:
        bench.load(plain, load, seconds=min(1.0, seconds / 4))
        os.kill(server.pid, signal.SIGUSR1)
        before_s = cpu_s(process_tree(server.pid))
        counted = bench.load(plain, load, seconds=seconds)
        used_s = cpu_s(process_tree(server.pid)) - before_s
    finally:
        bench.stable.stop(server)
    if not counted["responses"]:
        raise ContestantError(f"no good answers under the sampler: {counted}")
    return _read_points(output), used_s * 1e6 / counted["responses"]


def _read_points(path: Path) -> Mapping[str, int]:
    try:
        points: Mapping[str, int] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"the sampler left no points: {error}") from error
    return points
