"""The measurements over HTTP: checking answers, timed runs in rounds, memory after many requests, cold start."""

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.bench.lineup import CLIENT_KEY, Contestant, Site
from tests.bench.procs import (
    LOAD_CORE,
    PROXY_CORE,
    BenchError,
    ContestantError,
    Server,
    Stable,
    core_busy_s,
    cpu_s,
    has_mapped,
    process_tree,
    rss_mb,
)
from tests.bench.results import NOISE_LIMIT, FlatResult, Run, significant

PATH: Final = "/v1/chat/completions"
PLAIN_MARK: Final = '"object":"chat.completion"'
PROMPT: Final = "Summarise the following report of an incident in three sentences, for a reader who was not there. " * 8
REPEATS: Final = 2
# A slow contestant needs time for so many answers on each connection before its rate is steady.
ANSWERS_PER_CONNECTION: Final = 4
LONGEST_RUN_S: Final = 30.0
FAILURE_KEYS: Final = ("bad_status", "bad_body", "no_done", "wrong_events", "connection_errors", "unfinished")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the load generator does: events is 0 for plain answers."""

    name: str
    model: str
    events: int
    connections: int = 64

    def body(self) -> dict[str, Any]:
        """The chat completion every client sends, about 1 KB."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": "You are a careful assistant."},
                {"role": "user", "content": PROMPT},
            ],
            "temperature": 0.7,
            "max_tokens": 256,
        }
        return body | ({"stream": True} if self.events else {})


LOADS: Final = {
    load.name: load
    for load in (
        Load(name="plain", model="bench-64", events=0),
        Load(name="stream64", model="bench-64", events=64),
        Load(name="paced64", model="bench-64-paced", events=64),
    )
}


def ask(contestant: Contestant, body: dict[str, Any], *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """One request outside of any measurement: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=timeout_s)
    try:
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {CLIENT_KEY}",
            **dict(contestant.headers),
        }
        connection.request("POST", PATH, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answers_well(contestant: Contestant, body: dict[str, Any]) -> bool:
    """Whether one request gets a 200 now; False also while nobody listens."""
    try:
        return ask(contestant, body)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def check_answers(contestant: Contestant) -> None:
    """One answer of each kind must be right before anything is timed. Raises ContestantError with the answer."""
    status, body = ask(contestant, LOADS["plain"].body())
    if status != 200 or b"Every line ends in a socket" not in body:
        raise ContestantError(f"{contestant.name} answered {status}: {body[:400]!r}")
    status, body = ask(contestant, LOADS["stream64"].body())
    events = sum(line.startswith(b"data:") and b"[DONE]" not in line for line in body.splitlines())
    if status != 200 or b"data: [DONE]" not in body or (contestant.exact_events and events != 64):
        raise ContestantError(
            f"{contestant.name} streamed {status}, {events} events: {body[:200]!r} ... {body[-200:]!r}"
        )


class Bench:
    """One benchmark on one site: owns the mock upstream and starts contestants through the stable."""

    def __init__(self, site: Site, stable: Stable) -> None:
        self.site = site
        self.stable = stable
        self.upstream: Server | None = None

    def start_upstream(self) -> None:
        """Start the mock upstream on the load core."""
        upstream = self.stable.start(
            "upstream",
            [str(self.site.work_dir / "upstream"), str(self.site.upstream_port)],
            core=LOAD_CORE,
            cwd=self.site.work_dir,
        )

        def is_ready() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", self.site.upstream_port, timeout=2)
            try:
                connection.request("GET", "/v1/models")
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        try:
            upstream.wait_until(is_ready, timeout_s=5.0)
        except ContestantError as error:
            raise BenchError(str(error)) from error
        self.upstream = upstream

    def start(self, contestant: Contestant, *, environment: dict[str, str] | None = None) -> Server:
        """Start a contestant on the proxy core and check its answers.

        Raises ContestantError, with nothing left running.
        """
        server = self.stable.start(
            contestant.name,
            contestant.argv,
            core=PROXY_CORE,
            cwd=contestant.cwd,
            environment={**contestant.environment, **(environment or {})},
        )
        try:
            body = LOADS["plain"].body()
            server.wait_until(lambda: answers_well(contestant, body), timeout_s=contestant.ready_timeout_s)
            check_answers(contestant)
        except (ContestantError, OSError, http.client.HTTPException) as error:
            self.stable.stop(server)
            raise ContestantError(str(error)) from error
        return server

    def load(
        self, contestant: Contestant, load: Load, *, seconds: float, max_requests: int = 0, grace_s: float = 20.0
    ) -> dict[str, Any]:
        """Run the load generator against the contestant and return what it counted."""
        body_path = self.site.work_dir / f"{load.name}.json"
        body_path.write_text(json.dumps(load.body()))
        argv = [
            *(str(self.site.work_dir / "leash"), str(LOAD_CORE), str(self.site.work_dir / "loadgen")),
            *("--port", str(contestant.port), "--path", PATH, "--body", str(body_path)),
            *("--connections", str(load.connections), "--seconds", f"{seconds:g}", "--grace", f"{grace_s:g}"),
            *("--max-requests", str(max_requests), "--header", f"Authorization: Bearer {CLIENT_KEY}"),
        ]
        for name, value in contestant.headers:
            argv += ["--header", f"{name}: {value}"]
        argv += _expectations(contestant, load)
        done = subprocess.run(argv, capture_output=True, timeout=seconds + grace_s + 30, check=False)
        if done.returncode != 0:
            raise BenchError(f"the load generator failed: {done.stderr.decode(errors='replace')}")
        counted: dict[str, Any] = json.loads(done.stdout)
        return counted

    def timed_run(
        self, contestant: Contestant, server: Server, load: Load, *, round_number: int, seconds: float
    ) -> Run:
        """One measured run after a short warm-up, repeated when others kept the proxy's core busy.

        Raises ContestantError when any answer was wrong.
        """
        warm = self.load(contestant, load, seconds=min(1.0, seconds / 4))
        if warm["rps"] * seconds < ANSWERS_PER_CONNECTION * load.connections:
            seconds = max(seconds, min(LONGEST_RUN_S, 10 * seconds))
        for attempt in range(REPEATS + 1):
            members = process_tree(server.pid)
            busy_before_s, cpu_before_s, began = core_busy_s(PROXY_CORE), cpu_s(members), time.perf_counter()
            counted = self.load(contestant, load, seconds=seconds)
            elapsed_s = time.perf_counter() - began
            used_s = cpu_s(members) - cpu_before_s
            foreign_share = max(0.0, (core_busy_s(PROXY_CORE) - busy_before_s - used_s) / elapsed_s)
            _refuse_failures(contestant, load, counted)
            if foreign_share <= NOISE_LIMIT or attempt == REPEATS:
                break
        return Run(
            contestant=contestant.name,
            load=load.name,
            round_number=round_number,
            responses_per_s=counted["rps"],
            latency_p50_us=counted["latency_p50_us"],
            latency_p99_us=counted["latency_p99_us"],
            cpu_us_per_response=used_s * 1e6 / counted["responses"],
            events_per_response=load.events,
            foreign_share=foreign_share,
            own_share=min(1.0, used_s / elapsed_s),
        )

    def memory_after(self, contestant: Contestant, requests: int) -> FlatResult:
        """Resident memory of a fresh gateway after so many requests, one in ten of them a stream."""
        server = self.start(contestant)
        try:
            for load, count in ((LOADS["plain"], requests - requests // 10), (LOADS["stream64"], requests // 10)):
                counted = self.load(contestant, load, seconds=120, max_requests=count)
                _refuse_failures(contestant, load, counted)
            tree = process_tree(server.pid)
            return {
                "rss_mb": significant(rss_mb([server.pid])),
                "rss_mb_all_processes": significant(rss_mb(tree)),
                "processes": len(tree),
                "grpc_loaded": int(has_mapped(server.pid, "cygrpc")),
            }
        finally:
            self.stable.stop(server)

    def cold_start_s(self, contestant: Contestant, body: dict[str, Any], *, samples: int) -> float:
        """Median seconds from exec to the first 200, after one start that fills the page cache."""
        taken_s = []
        for sample in range(samples + 1):
            server = self.stable.start(
                contestant.name,
                contestant.argv,
                core=PROXY_CORE,
                cwd=contestant.cwd,
                environment=contestant.environment,
            )
            try:
                seconds = server.wait_until(
                    lambda: answers_well(contestant, body), timeout_s=contestant.ready_timeout_s
                )
            finally:
                self.stable.stop(server)
            if sample > 0:
                taken_s.append(seconds)
        return median(taken_s)


def _expectations(contestant: Contestant, load: Load) -> list[str]:
    if load.events == 0:
        return ["--expect", PLAIN_MARK] if contestant.exact_events else []
    return ["--events", str(load.events if contestant.exact_events else -1)]


def _refuse_failures(contestant: Contestant, load: Load, counted: dict[str, Any]) -> None:
    failures = {key: counted[key] for key in FAILURE_KEYS if counted[key]}
    if failures or not counted["responses"]:
        status = f", first bad status {counted['first_bad_status']}" if counted["bad_status"] else ""
        raise ContestantError(
            f"{contestant.name} under {load.name}: {counted['responses']} good answers, {failures}{status}"
        )


@dataclass(kw_only=True)
class Rounds:
    """All timed runs of all contestants, in rounds that go around everybody."""

    bench: Bench
    loads: Sequence[Load]
    rounds: int
    seconds: float
    say: Callable[[str], None]

    def measure(self, contestants: Sequence[Contestant]) -> tuple[list[Run], dict[str, str]]:
        """Every run, and for each contestant that failed what happened; a contestant that failed once is out."""
        runs: list[Run] = []
        failed: dict[str, str] = {}
        for round_number in range(1, self.rounds + 1):
            together = [each for each in contestants if each.shares_round and each.name not in failed]
            runs += self._round(together, round_number, failed)
            for alone in contestants:
                if not alone.shares_round and alone.name not in failed:
                    runs += self._round([alone], round_number, failed)
        return [run for run in runs if run.contestant not in failed], failed

    def _round(self, contestants: Sequence[Contestant], round_number: int, failed: dict[str, str]) -> list[Run]:
        running: list[tuple[Contestant, Server]] = []
        runs: list[Run] = []
        try:
            for contestant in contestants:
                try:
                    running.append((contestant, self.bench.start(contestant)))
                except ContestantError as error:
                    failed[contestant.name] = str(error)
                    self.say(f"round {round_number}: FAILED to start: {error}")
            # Everybody gets to be first once: a drift within the round then hits all alike.
            turn = round_number % len(running) if running else 0
            for load in self.loads:
                for contestant, server in running[turn:] + running[:turn]:
                    if load.name in contestant.loads and contestant.name not in failed:
                        self._timed(contestant, server, load, round_number, runs, failed)
        finally:
            for _, server in reversed(running):
                self.bench.stable.stop(server)
        return runs

    def _timed(
        self,
        contestant: Contestant,
        server: Server,
        load: Load,
        round_number: int,
        runs: list[Run],
        failed: dict[str, str],
    ) -> None:
        try:
            run = self.bench.timed_run(contestant, server, load, round_number=round_number, seconds=self.seconds)
        except ContestantError as error:
            failed[contestant.name] = str(error)
            self.say(f"round {round_number}: FAILED: {error}\n{server.log_tail()}")
            return
        runs.append(run)
        noise = (
            f"  NOISY: {run.foreign_share:.0%} of the core went to others" if run.foreign_share > NOISE_LIMIT else ""
        )
        self.say(
            f"round {round_number}: {load.name:<9}{contestant.name:<20}{run.responses_per_s:>10,.0f} /s"
            f"{run.cpu_us_per_response:>10,.0f} us CPU each{noise}"
        )


def write_flat(path: Path, flat: FlatResult) -> None:
    """Write the result, one key per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(flat, indent=2, sort_keys=True) + "\n")
