"""One plugin misbehaves while hundreds of paced streams run through others: what the others notice of it.

The host has one processor core for itself; plugins, upstream and clients share another one. Half of the streams come
from an upstream through the bundled provider, half from a plugin process that makes the events itself; all of them were
routed by a third plugin. A run lasts equally long with and without a fault, so that the two can be compared.
"""

import asyncio
import gc
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from host import control
from tests.support.numbered_client import NumberedClient, Outcome
from tests.support.numbered_upstream import NumberedUpstream, numbered_upstream
from tests.support.processes import FAULT_PLUGIN
from tests.support.proxy import ServeProcess, runtime_dir, serve_process

PLUGINS: Final = Path(__file__).parent / "plugins"
VICTIM: Final = "faulty"
INTERVAL_MS: Final = 100
LEAD_S: Final = 3.0
"""Streams begin spread over the first second, and nothing is measured before all of them have run for a while."""
MEMORY_LIMIT_MB: Final = 256
RSS_INTERVAL_S: Final = 0.1
SMALL_INTERVAL_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to misbehave: by a signal from outside, or by a command, to which `seconds` is added."""

    name: str
    sent: signal.Signals | None = None
    command: str = ""
    deadly: bool = True
    """Whether its process ends by it, and must be ready again soon after."""
    lasts: bool = False
    """Whether the command goes on for the time it is given; otherwise it is repeated."""


FAULTS: Final = (
    Fault(name="KILL", sent=signal.SIGKILL),
    Fault(name="STOP", sent=signal.SIGSTOP),
    Fault(name="hang", command="sleep-forever"),
    Fault(name="memory bomb", command="memory-bomb"),
    Fault(name="garbage frames", command="garbage", lasts=True),
    Fault(name="10,000 events/s", command="events 10000", lasts=True, deadly=False),
    Fault(name="10,000 logs/s", command="logs 10000", lasts=True, deadly=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much, for how long, and where."""

    streams: int = 500
    seconds: float = 15.0
    """How long is measured."""
    strikes: int = 3
    """How often a fault that does not last is repeated within that time."""
    host_core: int | None = 0
    other_core: int | None = 1


@dataclass(slots=True)
class Figures:
    """One run, with a fault or without."""

    affected: list[str] = field(default_factory=list)
    """What went wrong with healthy streams and requests."""
    event_s: list[float] = field(default_factory=list)
    """For every event of a healthy stream: from being written to being read by the client."""
    small_s: list[float] = field(default_factory=list)
    """Durations of requests without a stream, routed by the healthy plugin."""
    rss_kb: list[int] = field(default_factory=list)
    """Of the host, ten times a second while it was measured."""
    host_cpu: float = 0.0
    """Share of one core that the host used."""
    ready_again_s: list[float] = field(default_factory=list)
    """From each exit of the victim to the moment it was ready again."""
    own: list[str] = field(default_factory=list)
    """How the victim's own requests ended."""
    own_events: int = 0

    @property
    def rss_growth_mb(self) -> float:
        return (max(self.rss_kb) - self.rss_kb[0]) / 1024


def write_site(directory: Path, upstream: NumberedUpstream, options: Options) -> None:
    """The config, and the plugins pinned to their core."""
    pin = () if options.other_core is None else ("taskset", "-c", str(options.other_core))
    for source in PLUGINS.iterdir():
        folder = directory / "plugins" / source.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        manifest = (source / "plugin.toml").read_text()
        pinned = '"taskset", "-c", "{core}", '
        manifest = manifest.replace(pinned, "".join(f'"{word}", ' for word in pin))
        (folder / "plugin.toml").write_text(manifest)
    victim = directory / "plugins" / VICTIM
    victim.mkdir()
    capabilities = "capabilities=executor.execute,executor.execute_stream,plugin.register"
    command = [*pin, "{python}", "-S", str(FAULT_PLUGIN), "healthy", capabilities]
    (victim / "plugin.toml").write_text(f'id = "{VICTIM}"\nversion = "1.0.0"\ncommand = {json.dumps(command)}\n')
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
            "ping-interval": "200ms",
            "ping-unresponsive": "500ms",
            "ping-kill": "1s",
            "configs": {plugin_id: {"enabled": True} for plugin_id in ("steady", "signpost", VICTIM)},
            "policy": {VICTIM: {"limits": {"memory-mb": MEMORY_LIMIT_MB}}},
        },
    }
    (directory / "config.yaml").write_text(json.dumps(config, indent=1))


class Run:
    """A host, its plugins, and everybody who uses them, for one measurement."""

    def __init__(self, options: Options, served: ServeProcess, client: NumberedClient) -> None:
        self.options = options
        self.figures = Figures()
        self._served = served
        self._client = client
        self._measuring = False

    async def measure(self, fault: Fault | None) -> Figures:
        """All streams from beginning to end, the fault in the middle of them."""
        options = self.options
        events = round((LEAD_S + options.seconds) * 1000 / INTERVAL_MS)
        streams = [asyncio.ensure_future(self._stream(number, events)) for number in range(options.streams)]
        await asyncio.sleep(LEAD_S)
        seen = len(self._served.lines)
        watchers = [asyncio.ensure_future(self._watch_memory()), asyncio.ensure_future(self._ask())]
        cpu_s = cpu_seconds(self._served.pid)
        self._measuring = True
        striking = asyncio.ensure_future(self._strike(fault))
        await asyncio.sleep(options.seconds)
        self._measuring = False
        self.figures.host_cpu = (cpu_seconds(self._served.pid) - cpu_s) / options.seconds
        for watcher in watchers:
            watcher.cancel()
        await asyncio.wait(watchers)
        for outcome in await asyncio.gather(*streams):
            self._judge(outcome)
        await striking
        if fault is not None and fault.deadly:
            await self._note_lives(seen)
        return self.figures

    async def _stream(self, number: int, events: int) -> Outcome:
        # Spread over more than one interval, so that not all events are due at the same time.
        await asyncio.sleep(number / self.options.streams * 1.05)
        model = "plain" if number % 2 else "steady"
        return await self._client.follow(
            f"s{number}", model, events=events, interval_ms=INTERVAL_MS, on_event=self._note_event
        )

    def _note_event(self, sent_ns: int, received_ns: int) -> None:
        if self._measuring:
            self.figures.event_s.append((received_ns - sent_ns) / 1e9)

    async def _ask(self) -> None:
        """Small requests, one after the other."""
        number = 0
        while True:
            outcome = await self._client.ask(f"r{number}", "plain")
            self._judge(outcome)
            self.figures.small_s.append(outcome.duration_s)
            number += 1
            await asyncio.sleep(SMALL_INTERVAL_S)

    def _judge(self, outcome: Outcome) -> None:
        if outcome.problem:
            self.figures.affected.append(f"{outcome.number}: {outcome.problem}")

    async def _watch_memory(self) -> None:
        while True:
            self.figures.rss_kb.append(rss_kb(self._served.pid))
            await asyncio.sleep(RSS_INTERVAL_S)

    # -- the victim

    async def _strike(self, fault: Fault | None) -> None:
        if fault is None:
            return
        options = self.options
        strikes = 1 if fault.lasts and not fault.deadly else options.strikes
        period_s = options.seconds / strikes
        for _ in range(strikes):
            began_s = asyncio.get_running_loop().time()
            await asyncio.sleep(period_s * 0.05)
            if fault.sent is not None:
                os.kill(await self._victim_pid(), fault.sent)
            else:
                await self._command(f"{fault.command} {period_s * 0.6}" if fault.lasts else fault.command)
            await asyncio.sleep(began_s + period_s - asyncio.get_running_loop().time())

    async def _command(self, command: str) -> None:
        """A request to the victim, which may end in any clean way."""
        if command.startswith("events"):
            outcome = await self._client.follow("v", command, events=0, interval_ms=0, on_event=self._count)
        else:
            outcome = await self._client.ask("victim", command)
        self.figures.own.append(outcome.problem or "ok")

    def _count(self, sent_ns: int, received_ns: int) -> None:
        self.figures.own_events += 1

    async def _victim_pid(self) -> int:
        answer = await asyncio.to_thread(control.ask, self._served.config_file, "GET", "/plugins")
        assert answer is not None
        row = next(row for row in answer[1]["plugins"] if row["id"] == VICTIM)
        return int(row["pid"])

    async def _note_lives(self, seen: int) -> None:
        """From the log: when the victim's processes ended, and when the next ones were ready."""
        wanted = {"plugin_id": VICTIM}
        for _ in range(self.options.strikes):
            died = await self._served.event("plugin.died", after=seen, **wanted)
            seen = self._position(died, seen)
            ready = await self._served.event("plugin.state", after=seen, new="ready", **wanted)
            seen = self._position(ready, seen)
            self.figures.ready_again_s.append((moment(ready) - moment(died)).total_seconds())

    def _position(self, entry: Mapping[str, Any], after: int) -> int:
        """The number of the line that follows this entry."""
        lines = self._served.lines
        return next(at for at in range(after, len(lines)) if _is(lines[at], entry)) + 1


def _is(line: str, entry: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(line) == entry)
    except ValueError:
        return False


def moment(entry: Mapping[str, Any]) -> datetime:
    """When a line was logged."""
    return datetime.fromisoformat(entry["time"].replace("Z", "+00:00"))


def rss_kb(pid: int) -> int:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def staged(options: Options, directory: Path) -> AsyncIterator[Run]:
    """A fresh host on its core, with everything around it; nothing of it is left afterwards."""
    before = os.sched_getaffinity(0)
    if options.other_core is not None:
        os.sched_setaffinity(0, {options.other_core})
    try:
        async with numbered_upstream() as upstream:
            write_site(directory, upstream, options)
            config_file = directory / "config.yaml"
            pin: Sequence[str] = () if options.host_core is None else ("taskset", "-c", str(options.host_core))
            own_socket = patch.dict(os.environ, {"XDG_RUNTIME_DIR": runtime_dir(config_file)})
            async with serve_process(config_file, command=(*pin, sys.executable, "-m", "host")) as served:
                client = NumberedClient(served.url)
                with own_socket:
                    yield Run(options, served, client)
                await client.close()
    finally:
        os.sched_setaffinity(0, before)


async def run_once(fault: Fault | None, options: Options, directory: Path) -> Figures:
    """One measurement, with the fault or (None) without."""
    random.seed(1)
    async with staged(options, directory) as run:
        gc.collect()
        gc.freeze()
        try:
            return await run.measure(fault)
        finally:
            gc.unfreeze()
