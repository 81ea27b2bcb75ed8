"""The benchmark: Jackfield beside a bare proxy, nginx and other gateways, on two cores of this machine.

    python tests/bench/run.py [--rounds N] [--secs S] [--only NAMES] [--quick]      PEERS=1 adds LiteLLM and Portkey

Core 0 belongs to the proxy under test and its plugins, core 1 to the mock upstream and the load generator. All traffic
stays on 127.0.0.1. The medians go to the terminal and, as one flat object, to build/bench.json. README.md has the rest.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench import calls, lineup, pool, steps, toolchain  # noqa: E402 - the root must be importable first
from tests.bench.lineup import Contestant, Site  # noqa: E402
from tests.bench.measure import LOADS, Bench, Rounds, write_flat  # noqa: E402
from tests.bench.procs import LOAD_CORE, PROXY_CORE, BenchError, ContestantError, Stable, free_port  # noqa: E402
from tests.bench.results import (  # noqa: E402
    FLOORS,
    NOISE_LIMIT,
    FlatResult,
    flatten_runs,
    judge,
    noise_lines,
    step_lines,
    table_lines,
    verdict_lines,
)

DEFAULT_LOADS = ("plain", "stream64")
OTHER_PARTS = ("call", "rss", "cold", "steps", "pool")
PARTS = (*LOADS, *OTHER_PARTS)
ECHO_BODY: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def say(message: str) -> None:
    """One line of progress."""
    print(message, flush=True)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; --help explains the keys too."""
    floors = "\n".join(f"  {floor.key:<50}{floor.direction} {floor.limit:g}" for floor in FLOORS)
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=__doc__,
        epilog=f"floors (reported, never a reason to fail):\n{floors}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds around all contestants (default 3)")
    parser.add_argument("--secs", type=float, default=5.0, help="seconds of each timed run (default 5)")
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help=f"comma-separated parts ({', '.join(PARTS)}; paced64 runs only when named) and contestants "
        f"({', '.join(lineup.CORE_NAMES + lineup.PEER_NAMES)}); default: all parts, all contestants",
    )
    parser.add_argument("--quick", action="store_true", help="one round of 1 s: does it work, not how fast is it")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json", help="default build/bench.json")
    parser.add_argument("--time-limit", type=int, default=1800, metavar="S", help="give up after this (default 1800)")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.secs = 1, 1.0
    if arguments.rounds < 1 or not 0.2 <= arguments.secs <= 120:
        parser.error("--rounds must be at least 1, --secs between 0.2 and 120")
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    arguments.contestants = [name for name in names if name not in PARTS]
    default_parts = DEFAULT_LOADS if arguments.contestants else (*DEFAULT_LOADS, *OTHER_PARTS)
    arguments.parts = [name for name in names if name in PARTS] or list(default_parts)
    return arguments


def assemble(site: Site, wanted: list[str]) -> tuple[list[Contestant], list[str]]:
    """Contestants that can be started here, and the names of those that cannot. Installs what is missing."""
    names = wanted or [*lineup.CORE_NAMES, *(lineup.PEER_NAMES if os.environ.get("PEERS") == "1" else ())]
    contestants: list[Contestant] = []
    skipped: list[str] = []
    for name in names:
        port = free_port()
        match name:
            case "bare":
                contestants.append(lineup.bare(site, port))
            case "jackfield":
                contestants.append(lineup.jackfield(site, port))
            case "jackfield_inprocess":
                contestants.append(lineup.jackfield_inprocess(site, port))
            case "jackfield_json":
                contestants.append(lineup.jackfield_json(site, port))
            case "nginx" if binary := toolchain.find_nginx():
                contestants.append(lineup.nginx(site, port, binary))
            case "litellm" if command := toolchain.find_litellm(site.peers_dir):
                contestants.append(lineup.litellm(site, port, command))
            case "portkey" if script := toolchain.find_portkey(site.peers_dir):
                contestants.append(lineup.portkey(site, port, script))
            case _:
                skipped.append(name)
    return contestants, skipped


def measure_all(
    bench: Bench, arguments: argparse.Namespace, contestants: list[Contestant]
) -> tuple[FlatResult, list[str]]:
    """Every part that was asked for; what failed is told and returned by name."""
    flat: FlatResult = {}
    failed: list[str] = []
    loads = [LOADS[part] for part in arguments.parts if part in LOADS]
    if loads:
        rounds = Rounds(bench=bench, loads=loads, rounds=arguments.rounds, seconds=arguments.secs, say=say)
        runs, failures = rounds.measure(contestants)
        flat |= flatten_runs(runs)
        flat["disturbed_runs"] = sum(run.foreign_share > NOISE_LIMIT for run in runs)
        for line in noise_lines(runs):
            say(f"\n{line}")
        required = {contestant.name for contestant in contestants if contestant.required}
        failed += [name for name in failures if name in required]
        for name in failures.keys() - required:
            toolchain.shout(f"SKIPPED {name}: it failed, see above")
    others = {
        "call": measure_calls,
        "rss": measure_memory,
        "cold": measure_cold_start,
        "steps": measure_steps,
        "pool": measure_pool,
    }
    for part, measure in others.items():
        if part in arguments.parts:
            try:
                flat |= measure(bench, arguments)
            except ContestantError as error:
                failed.append(part)
                say(f"{part}: FAILED: {error}")
    return flat, failed


def measure_calls(bench: Bench, arguments: argparse.Namespace) -> FlatResult:
    """One call to a plugin process against one line to an echo process."""
    return calls.measure(bench.site, rounds=arguments.rounds, seconds=min(3.0, arguments.secs), say=say)


def measure_memory(bench: Bench, arguments: argparse.Namespace) -> FlatResult:
    """Resident memory after 10,000 requests (1,000 with --quick)."""
    requests = 1000 if arguments.quick else 10_000
    flat = bench.memory_after(lineup.jackfield(bench.site, free_port()), requests)
    say(
        f"memory after {requests:,} requests: {flat['rss_mb']} MB in the host, {flat['rss_mb_all_processes']} MB in all"
    )
    if flat["grpc_loaded"]:
        toolchain.shout("grpc is loaded although no plugin uses it")
    return flat


def measure_cold_start(bench: Bench, arguments: argparse.Namespace) -> FlatResult:
    """Exec to first 200 from the demo model, and of the bare proxy for comparison."""
    samples = 1 if arguments.quick else 5
    port = free_port()
    bare_s = bench.cold_start_s(lineup.bare(bench.site, port), LOADS["plain"].body(), samples=samples)
    seconds = bench.cold_start_s(lineup.demo(bench.site, free_port()), ECHO_BODY, samples=samples)
    say(f"cold start: {seconds:.3f} s (bare proxy {bare_s:.3f} s)")
    return {"cold_start_s": round(seconds, 3), "cold_start_s_bare": round(bare_s, 3)}


def measure_steps(bench: Bench, arguments: argparse.Namespace) -> FlatResult:
    """Where the time of a request and of a stream event goes."""
    return steps.measure(bench, seconds=arguments.secs)


def measure_pool(bench: Bench, arguments: argparse.Namespace) -> FlatResult:
    """Choosing among ten thousand credentials."""
    return pool.measure(bench.site, say=say)


def report(flat: FlatResult, arguments: argparse.Namespace) -> None:
    """Table, floors and the file."""
    say("")
    for line in table_lines(flat, lineup.CORE_NAMES + lineup.PEER_NAMES, LOADS):
        say(line)
    for prefix, title in (("step_us", "us per plain request"), ("sse_step_us", "us per stream event")):
        for line in step_lines(flat, prefix, title):
            say(line)
    for line in verdict_lines(judge(flat)):
        say(line)
    write_flat(arguments.output, flat)
    say(f"\nwritten: {arguments.output}")


def prepare() -> Site:
    """Folders, programs and the port of the mock upstream. Raises BenchError on a machine with one core."""
    if not {PROXY_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise BenchError(
            f"cores {PROXY_CORE} and {LOAD_CORE} are needed; this process may use {os.sched_getaffinity(0)}"
        )
    site = Site(
        root=ROOT,
        work_dir=ROOT / "build" / "bench",
        peers_dir=ROOT / "build" / "bench-peers",
        upstream_port=free_port(),
    )
    site.work_dir.mkdir(parents=True, exist_ok=True)
    site.peers_dir.mkdir(parents=True, exist_ok=True)
    toolchain.build_native(site.bench_dir / "native", site.work_dir)
    return site


def _give_up(number: int, _frame: FrameType | None) -> None:
    raise BenchError("the time limit is over" if number == signal.SIGALRM else "told to stop")


def main(argv: list[str]) -> int:
    """Exit status: 0 when all was measured, whatever the floors say; 1 when the harness or a contestant failed."""
    arguments = parse_arguments(argv)
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _give_up)
    signal.alarm(arguments.time_limit)
    began = time.monotonic()
    stable: Stable | None = None
    try:
        lineup.check_names(arguments.contestants)
        site = prepare()
        stable = Stable(leash=site.work_dir / "leash", log_dir=site.work_dir)
        contestants, skipped = assemble(site, arguments.contestants)
        os.sched_setaffinity(0, {LOAD_CORE})
        bench = Bench(site, stable)
        bench.start_upstream()
        flat, failed = measure_all(bench, arguments, contestants)
        flat |= {
            "rounds": arguments.rounds,
            "secs": arguments.secs,
            "quick": int(arguments.quick),
            "skipped": ",".join(skipped),
            "failed": ",".join(failed),
            "took_s": round(time.monotonic() - began, 1),
        }
        report(flat, arguments)
        return 1 if failed else 0
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        signal.alarm(0)
        if stable is not None:
            stable.stop_all()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
