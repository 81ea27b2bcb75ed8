"""Starting, reloading and picking with 10,000 credentials and 2,000 models: runs pool_driver.py on the proxy's core."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.bench.lineup import Site
from tests.bench.procs import PROXY_CORE, ContestantError, child_environment
from tests.bench.results import FlatResult, significant

REPORTED = (
    *("start_s", "reload_ms", "pick_us", "pick_p99_us", "pick_failing_us", "pick_failing_p99_us", "listing_ms"),
    *("pick_tenth_us", "pick_most_us", "pick_all_us"),
)


def measure(site: Site, *, say: Callable[[str], None]) -> FlatResult:
    """The worse of both shapes for each key. Raises ContestantError when the driver fails."""
    argv = [str(site.work_dir / "leash"), str(PROXY_CORE), sys.executable, str(site.bench_dir / "pool_driver.py")]
    done = subprocess.run(
        argv,
        capture_output=True,
        timeout=300,
        env=child_environment({"PYTHONPATH": str(site.root)}),
        cwd=site.work_dir,
        check=False,
    )
    if done.returncode != 0:
        raise ContestantError(f"the pool driver failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    shapes: dict[str, dict[str, Any]] = json.loads(done.stdout)
    for name, found in shapes.items():
        say(
            f"pool, {name}: start {found['start_s']:.2f} s, reload of one key {found['reload_ms']:.0f} ms, "
            f"pick {found['pick_us']:.1f} us (p99 {found['pick_p99_us']:.0f}), while one in ten fails "
            f"{found['pick_failing_us']:.1f} us (p99 {found['pick_failing_p99_us']:.0f}), "
            f"while a tenth, most, all rest {found['pick_tenth_us']:.1f}, {found['pick_most_us']:.1f}, "
            f"{found['pick_all_us']:.1f} us"
        )
    file, edits = found_by("pool_config.py", argv[:-1], site), found_by("config_edits.py", argv[:-1], site)
    say(
        f"pool, config: start {file['start_s']:.2f} s, reload of one key that changed {file['reload_ms']:.0f} ms, "
        f"that was added {file['reload_added_ms']:.0f} ms, with its file read"
    )
    say("edits of the file: " + ", ".join(f"{name.removesuffix('_ms')} {took:.0f} ms" for name, took in edits.items()))
    return {
        **{f"pool_edit_{key}": significant(value) for key, value in edits.items()},
        **{f"pool_config_{key}": significant(value) for key, value in file.items()},
        **_worst(shapes),
    }


def found_by(script: str, launch: list[str], site: Site) -> dict[str, float]:
    """What a script measures. Raises ContestantError."""
    argv = [*launch, str(site.bench_dir / script)]
    environment = child_environment({"PYTHONPATH": str(site.root)})
    done = subprocess.run(argv, capture_output=True, timeout=120, env=environment, cwd=site.work_dir, check=False)
    if done.returncode != 0:
        raise ContestantError(f"{script} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _worst(shapes: dict[str, dict[str, Any]]) -> FlatResult:
    return {f"pool_{key}": significant(max(found[key] for found in shapes.values())) for key in REPORTED}
