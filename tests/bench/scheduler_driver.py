"""What one pick costs when a scheduler plugin decides: over every carrier, among 100, 1,000 and 10,000 credentials.

    python tests/bench/scheduler_driver.py [--picks 300] [--all]

Prints one JSON object: per carrier and number of credentials the median and the 99th percentile of the whole step
`pick` in microseconds, with everybody free and with nine in ten resting. `--all`: the plugin asks for all candidates.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.credentials.retry import Search
from host.observe.trace import DecisionTrace
from host.pipeline.execute import Gateway
from host.pipeline.pick import pick
from host.pipeline.state import EXECUTE, GatewayState, build_state
from host.runtime.handle import PluginSnapshot
from host.runtime.processes import Processes
from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody
from tests.bench.pool_driver import config, percentile
from tests.support.carriers import CARRIERS, Stage
from tests.support.pipeline import answering, client_request, executor, snapshot
from tests.support.runtime import Bench

SIZES = (100, 1_000, 10_000)
MEASURED = ("inprocess", "json", "grpc")
CODE = """
class P(Plugin):
    async def scheduler_pick(self, request):
        chosen = min(request.candidates, key=lambda candidate: hash((request.request_id, candidate.id)))
        return SchedulerPickResponse(auth_id=chosen.id)
"""


async def measured(bench: Bench, state: GatewayState, picks: int) -> dict[str, float]:
    """Median and 99th percentile."""
    gateway = Gateway(invoker=bench.invoker, state=state, tasks=TaskGroup("bench"), trace=DecisionTrace())
    plan = state.plan("model-0-0", method=EXECUTE, source="openai", wanted="openai")
    times = []
    for number in range(picks + 3):
        ex = gateway.begin(client_request(b"{}", model="model-0-0", request_id=str(number)), EXECUTE)
        began_ns = time.perf_counter_ns()
        await pick(bench.invoker, ex, plan, Search(state.policy))
        times.append((time.perf_counter_ns() - began_ns) / 1000)
        assert ex.trace is not None
        assert ex.trace.decisions[-1].fields["by"] == "p", ex.trace.decisions[-1]
    return {"us": round(median(times[3:]), 1), "p99_us": round(percentile(times[3:], 0.99), 1)}


async def carrier(name: str, directory: Path, picks: int, inputs: Sequence[str]) -> dict[str, Any]:
    """All sizes over one carrier."""
    tasks = TaskGroup("bench")
    holder: list[Processes] = []
    bench = Bench(directory, tasks, process=lambda *args, **kwargs: holder[0](*args, **kwargs))
    holder.append(Processes(callbacks=bench.callbacks, tasks=tasks, timings=ProcessTimings))
    found: dict[str, Any] = {}
    try:
        bench.inprocess_plugin(
            "p",
            CODE,
            manifest=f'{CARRIERS[name][0]}\nentry = "plugin:P"\n[timeouts]\n"scheduler.pick" = 60000\n'
            f'[inputs]\n"scheduler.pick" = {json.dumps(inputs)}\n',
        )
        await Stage(bench, name).apply({}, permissions=())
        ours = snapshot(executor(answering()))
        asked = bench.registry.snapshot.bindings["scheduler.pick"]
        plugins = PluginSnapshot(bindings={**ours.bindings, "scheduler.pick": asked}, plugins=ours.plugins)
        for size in SIZES:
            state = build_state(config(1, size, 1), plugins)
            row = {"free": await measured(bench, state, picks)}
            limited = classify(ErrorBody(http_status=429, retry_after_ms=3_600_000))
            for credential in state.pool.credentials[: size * 9 // 10]:
                state.pool.failed(credential, "model-0-0", limited, cause=NO_CAUSE)
            row["resting"] = await measured(bench, state, picks)
            found[str(size)] = row
    finally:
        await bench.registry.stop()
        await tasks.stop()
        await holder[0].stop()
    return found


async def measure(picks: int, inputs: Sequence[str]) -> dict[str, Any]:
    """Every carrier in turn."""
    found = {}
    for name in MEASURED:
        with tempfile.TemporaryDirectory() as directory:
            found[name] = await carrier(name, Path(directory), picks, inputs)
    return found


def main() -> None:
    """Measure, print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--picks", type=int, default=300)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    inputs = ["candidates:all"] if arguments.all else []
    print(json.dumps(asyncio.run(measure(arguments.picks, inputs))))


if __name__ == "__main__":
    main()
