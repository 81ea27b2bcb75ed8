"""Upgrades under load: requests and long streams all the time, and meanwhile one plugin is replaced over and over.

Who counts: the client, the upstream, and the plugin itself (`began`, `used`, `ended` of each request, from whichever
version). All of them have to have seen each request exactly once, and each stream's events in order.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from host import control
from tests.support.numbered_client import NumberedClient, Outcome
from tests.support.numbered_upstream import NumberedUpstream, numbered_upstream
from tests.support.proxy import ServeProcess, runtime_dir, serve_process
from tests.upgrade.versions import BROKEN, OWN_MODEL, PLUGIN_ID, Broken, PluginFolder, replace_file

MAX_GENERATIONS: Final = 4
CARRIERS: Final = {
    "process": 'runtime = "process"',
    "unix": 'runtime = "process"\ntransport = "unix"',
    "grpc": 'runtime = "process"\nprotocol = "grpc"',
    "inprocess": 'runtime = "inprocess"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much, and what kind."""

    requests: int = 100_000
    upgrades: int = 100
    calm_requests: int = 10_000
    """Sent before, without upgrades, for comparison."""
    callers: int = 16
    carrier: str = "process"
    instances: int = 1
    stream_every: int = 50
    """Every so many requests is a stream through the plugin's stream hook."""
    own_stream_every: int = 100
    """Every so many requests is a long stream that the plugin executes itself."""
    longest_every: int = 2000
    """Every so many requests is a stream that outlives several upgrades."""
    longest_events: int = 120
    """Ten a second."""
    broken_every: int = 4
    """Every so many upgrades is one that must not come into effect."""


@dataclass(slots=True)
class Report:
    """What was seen; `problems` empty means that every promise was kept."""

    problems: list[str] = field(default_factory=list)
    requests: int = 0
    streams: int = 0
    upgrades: Counter[str] = field(default_factory=Counter)
    """`files`, `reconfigured`, `restarted` (a config that needs a new process), `refused`."""
    waited: int = 0
    """Upgrades that had to wait because older generations still had streams to finish."""
    lost: int = 0
    duplicated: int = 0
    failed: int = 0
    calm_s: list[float] = field(default_factory=list)
    """Durations of plain requests without upgrades."""
    busy_s: list[float] = field(default_factory=list)
    generations_max: int = 0
    rss_before_kb: int = 0
    rss_after_kb: int = 0
    duration_s: float = 0.0

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(what)


@dataclass(slots=True)
class Stage:
    """The proxy that runs, and where its files are."""

    options: Options
    directory: Path
    upstream: NumberedUpstream
    served: ServeProcess
    plugin: PluginFolder

    @property
    def ledger(self) -> Path:
        return ledger_in(self.directory)

    def configure(self, section: Mapping[str, Any]) -> None:
        write_config(self.directory, self.upstream, options=self.options, section=section)

    async def status(self) -> Mapping[str, Any]:
        """The plugin's row in the list."""
        answer = await asyncio.to_thread(control.ask, self.served.config_file, "GET", "/plugins")
        assert answer is not None
        return next(row for row in answer[1]["plugins"] if row["id"] == PLUGIN_ID)  # type: ignore[no-any-return]

    async def reload(self) -> str:
        """What `jackfield plugins reload` says."""
        path = f"/plugins/{PLUGIN_ID}/reload"
        answer = await asyncio.to_thread(control.ask, self.served.config_file, "POST", path)
        assert answer is not None
        return str(answer[1].get("outcome"))


def ledger_in(directory: Path) -> Path:
    """In the plugin's data directory, where it may write."""
    path = directory / "plugin-data" / PLUGIN_ID / "ledger"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_config(directory: Path, upstream: NumberedUpstream, *, options: Options, section: Mapping[str, Any]) -> None:
    """A config with the counting upstream as a provider, and the plugin with this section."""
    runtime = "inprocess" if options.carrier == "inprocess" else "process"
    policy = {"permissions": ["http"], "http-hosts": ["127.0.0.1"], "instances": options.instances}
    url, ledger = f"{upstream.url}/chat/completions", str(ledger_in(directory))
    config = {
        "port": 0,
        "openai-compatibility": [
            {
                "name": "acme",
                "base-url": upstream.url,
                "api-key-entries": [{"api-key": "k"}],
                "models": [{"name": "plain"}],
            }
        ],
        "plugins": {
            "enabled": True,
            "hello-timeout": "5s",
            "configs": {PLUGIN_ID: {"enabled": True, "url": url, "ledger": ledger, **section}},
            "policy": {PLUGIN_ID: {"runtime": runtime, **policy}},
        },
    }
    replace_file(directory / "config.yaml", json.dumps(config, indent=1))


@asynccontextmanager
async def staged(options: Options, directory: Path) -> AsyncIterator[Stage]:
    """A proxy in a process of its own with the first version of the plugin."""
    plugin = PluginFolder(directory / "plugins" / PLUGIN_ID, CARRIERS[options.carrier])
    plugin.write(0)
    async with numbered_upstream() as upstream:
        write_config(directory, upstream, options=options, section={"round": 0})
        config_file = directory / "config.yaml"
        own_socket = patch.dict(os.environ, {"XDG_RUNTIME_DIR": runtime_dir(config_file)})
        async with serve_process(config_file) as served:
            with own_socket:
                yield Stage(options, directory, upstream, served, plugin)


class Load:
    """Callers that share one sequence of requests; what each of them came to."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._client = NumberedClient(stage.served.url)
        self._streams: set[asyncio.Task[None]] = set()
        self._progress = asyncio.Event()
        self.sent = 0
        self.outcomes: list[Outcome] = []

    async def run(self, requests: int) -> list[Outcome]:
        """So many more requests, all of them to their end; the outcomes of these."""
        first, until = len(self.outcomes), self.sent + requests
        await asyncio.gather(*(self._caller(until) for _ in range(self._stage.options.callers)))
        while self._streams:
            await asyncio.wait(self._streams)
        return self.outcomes[first:]

    async def reached(self, sent: int) -> None:
        """Wait until so many requests were sent."""
        while self.sent < sent:
            self._progress.clear()
            await self._progress.wait()

    async def close(self) -> None:
        await self._client.close()

    async def _caller(self, until: int) -> None:
        options = self._stage.options
        while self.sent < until:
            number, self.sent = self.sent, self.sent + 1
            self._progress.set()
            if number % options.longest_every == 1:
                self._stream(number, OWN_MODEL, events=options.longest_events, interval_ms=100)
            elif number % options.own_stream_every == 2:
                self._stream(number, OWN_MODEL, events=40, interval_ms=50)
            elif number % options.stream_every == 3:
                self._stream(number, "plain", events=20, interval_ms=50)
            else:
                self.outcomes.append(await self._client.ask(f"n{number}", "plain"))

    def _stream(self, number: int, model: str, *, events: int, interval_ms: int) -> None:
        async def follow() -> None:
            self.outcomes.append(await self._client.follow(f"n{number}", model, events=events, interval_ms=interval_ms))

        task = asyncio.create_task(follow(), name=f"stream-{number}")
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)


class Upgrader:
    """Replaces the plugin's files and its config in turn; knows which version has to serve."""

    def __init__(self, stage: Stage, report: Report) -> None:
        self._stage = stage
        self._report = report
        self._ways_to_break = cycle(way for way in BROKEN if way.inprocess or stage.options.carrier != "inprocess")
        self._number = 0
        self._round = 0
        self._version = "1.0.0"

    async def upgrade(self, number: int) -> None:
        """The upgrade with this number, and whether it came to what it should."""
        if number % self._stage.options.broken_every == self._stage.options.broken_every - 1:
            await self._break(next(self._ways_to_break))
        elif number % 2:
            await self._replace_config()
        else:
            await self._replace_files()

    async def _replace_files(self) -> None:
        self._number += 1
        self._version = self._stage.plugin.write(self._number)
        outcome = await self._stage.reload()
        await self._in_effect("files", outcome)

    async def _replace_config(self) -> None:
        self._round += 1
        before = await self._row()
        await self._apply({"round": self._round})
        after = await self._in_effect("a config", "the config was applied")
        renewed = after["generation"] != before["generation"]
        self._report.upgrades["restarted" if renewed else "reconfigured"] += 1

    async def _break(self, way: Broken) -> None:
        """Try what cannot work, see that nothing of it serves, and put back what can."""
        before = await self._row()
        if way.section:
            await self._apply({"round": self._round, **way.section})
        else:
            self._stage.plugin.write(self._number + 1, broken=way)
            await self._stage.reload()
        after = await self._row()
        kept = {name: (before[name], after[name]) for name in ("version", "generation", "state")}
        self._report.expect(all(was == now for was, now in kept.values()), f"{way.name}: {kept}, {after.get('reason')}")
        reason = after.get("reason", "")
        self._report.expect(way.says in reason, f"{way.name}: the list gives the reason {reason!r}")
        self._report.upgrades["refused"] += 1
        self._stage.plugin.write(self._number)
        if way.section:
            await self._apply({"round": self._round})

    async def _apply(self, section: Mapping[str, Any]) -> None:
        """Edit the config and wait until the proxy has taken it over."""
        seen = len(self._stage.served.lines)
        self._stage.configure(section)
        await self._stage.served.event("config.applied", after=seen)

    async def _in_effect(self, what: str, outcome: str) -> Mapping[str, Any]:
        """The row of the version that has to serve now."""
        status = await self._row()
        serves = (status["version"], status["config"]["round"], status["state"], status.get("reason", ""))
        self._report.expect(
            serves == (self._version, self._round, "ready", ""),
            f"{what}: {self._version}, round {self._round} should serve, not {serves}; it was said: {outcome}",
        )
        if what == "files":
            self._report.upgrades["files"] += 1
        return status

    async def _row(self) -> Mapping[str, Any]:
        """The plugin in the list, once no upgrade waits for an older generation to finish its streams."""
        report, waited = self._report, False
        while True:
            seen = len(self._stage.served.lines)
            row = await self._stage.status()
            report.generations_max = max(report.generations_max, 1 + row.get("draining", 0))
            if "the next version starts" not in row.get("reason", ""):
                report.waited += waited
                return row
            waited = True
            await self._stage.served.line(_upgrade_is_over, after=seen)


def _upgrade_is_over(line: str) -> bool:
    return "plugin.upgraded" in line or "plugin.start_failed" in line


async def run_upgrades(options: Options, directory: Path) -> Report:
    """The whole scenario; nothing of it is left afterwards."""
    report = Report()
    loop = asyncio.get_running_loop()
    async with staged(options, directory) as stage:
        load = Load(stage)
        try:
            report.calm_s = plain_s(await load.run(options.calm_requests))
            report.rss_before_kb = rss_kb(stage.served.pid)
            began_s, first = loop.time(), load.sent
            upgrader = Upgrader(stage, report)
            running = asyncio.ensure_future(load.run(options.requests))
            for number in range(options.upgrades):
                due = first + (2 * number + 1) * options.requests // (2 * options.upgrades)
                await asyncio.wait([running, asyncio.ensure_future(load.reached(due))], return_when="FIRST_COMPLETED")
                await upgrader.upgrade(number)
            report.busy_s = plain_s(await running)
            report.duration_s = loop.time() - began_s
            report.rss_after_kb = rss_kb(stage.served.pid)
            await _settled(stage, report)
        finally:
            await load.close()
    # The proxy has ended by now, so everything it still had to tell the plugin is told.
    _compare(load.outcomes, stage, report)
    return report


async def _settled(stage: Stage, report: Report) -> None:
    """Without requests, all generations but one come to their end."""
    while True:
        seen = len(stage.served.lines)
        draining = (await stage.status()).get("draining", 0)
        if not draining:
            return
        try:
            await stage.served.event("plugin.retired", after=seen)
        except TimeoutError:
            report.problems.append(f"{draining} old generations are left after the last request")
            return


def plain_s(outcomes: list[Outcome]) -> list[float]:
    return [outcome.duration_s for outcome in outcomes if not outcome.stream and not outcome.problem]


def rss_kb(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def _compare(outcomes: list[Outcome], stage: Stage, report: Report) -> None:
    """Every id once with everybody."""
    report.requests = len(outcomes)
    report.streams = sum(outcome.stream for outcome in outcomes)
    for outcome in outcomes:
        if outcome.problem:
            report.failed += 1
            if report.failed <= 10:
                report.problems.append(f"{outcome.number}: {outcome.problem}")
    began, counted = _read_ledger(stage.ledger)
    numbers = [outcome.number for outcome in outcomes]
    request_ids = [outcome.request_id for outcome in outcomes]
    seen: dict[str, tuple[list[str], Counter[str]]] = {
        "the upstream": (numbers, stage.upstream.asked),
        "the plugin's began": (numbers, began),
        "the plugin's used": (request_ids, counted["used"]),
        "the plugin's ended": (request_ids, counted["ended"]),
        "the clients": (request_ids, Counter(request_ids)),
    }
    for who, (wanted, found) in seen.items():
        lost = [one for one in wanted if found[one] == 0]
        twice = [one for one in wanted if found[one] > 1]
        strange = found.keys() - set(wanted)
        report.lost += len(lost)
        report.duplicated += len(twice)
        for kind, which in (("lost", lost), ("seen twice", twice), ("not ours", sorted(strange))):
            report.expect(not which, f"{who}: {len(which)} {kind}, such as {which[:3]}")
    report.expect(not stage.upstream.unfinished, f"{len(stage.upstream.unfinished)} upstream streams were left early")
    unwell = {how: count for how, count in counted["outcomes"].items() if how != "succeeded"}
    report.expect(not unwell, f"the plugin was told of {unwell}")


def _read_ledger(path: Path) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How often each own id began; how often each request id was used and ended, and with which outcomes."""
    began: Counter[str] = Counter()
    counted: dict[str, Counter[str]] = {"used": Counter(), "ended": Counter(), "outcomes": Counter()}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, request_id, *more = line.split(" ")
        if word == "began":
            began[more[0]] += 1
            continue
        counted[word][request_id] += 1
        if word == "ended":
            counted["outcomes"][more[0]] += 1
    return began, counted
