"""One plugin misbehaves while hundreds of paced streams run through others: what the others notice of it.

The host has one processor core for itself; plugins, upstream and clients share another one. Half of the streams come
from an upstream through the bundled provider, half from a plugin process that makes the events itself; all of them were
routed by a third plugin. A run lasts equally long with and without a fault, so that the two can be compared.
"""

import asyncio
import gc
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from host import control
from tests.chaos.host_process import HostProcess, host_process
from tests.support.numbered_client import NumberedClient, Outcome
from tests.support.numbered_upstream import NumberedUpstream, numbered_upstream
from tests.support.processes import FAULT_PLUGIN
from tests.support.proxy import runtime_dir

PLUGINS: Final = Path(__file__).parent / "plugins"
VICTIM: Final = "faulty"
INTERVAL_MS: Final = 100
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
    """Whether the command goes on for the time it is given."""

    @property
    def lasts_all_the_time(self) -> bool:
        """Whether it need not be repeated."""
        return self.lasts and not self.deadly


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
    lead_s: float = 3.0
    """Before that: streams begin spread over the first second, and all of them have to run for a while."""
    strikes: int = 3
    """How often a fault that does not last is repeated within that time."""
    realtime: bool = False
    """Everybody but the victim goes before whoever else uses the machine; only root may."""
    ping_kill_ms: int = 1000
    """A plugin that is silent for so long is killed."""
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
    host_waited: float = 0.0
    """Share of the time in which it could have run and had no core: others use the machine, and nothing else here
    means much."""
    ready_again_s: list[float] = field(default_factory=list)
    """From each exit of the victim to the moment it was ready again."""
    own: list[str] = field(default_factory=list)
    """How the victim's own requests ended."""
    own_events: int = 0
    """What came of the victim's own stream."""

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
    for name in ("fault_plugin.py", "fault_floods.py"):
        shutil.copy(FAULT_PLUGIN.parent / name, victim)
    command = [*pin, "{python}", "-S", FAULT_PLUGIN.name, "healthy", capabilities]
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
            "ping-unresponsive": f"{options.ping_kill_ms // 2}ms",
            "ping-kill": f"{options.ping_kill_ms}ms",
            "configs": {plugin_id: {"enabled": True} for plugin_id in ("steady", "signpost", VICTIM)},
            "policy": {VICTIM: {"limits": {"memory-mb": MEMORY_LIMIT_MB}}},
        },
    }
    (directory / "config.yaml").write_text(json.dumps(config, indent=1))


class Run:
    """A host, its plugins, and everybody who uses them, for one measurement."""

    def __init__(self, options: Options, host: HostProcess, client: NumberedClient) -> None:
        self.options = options
        self.figures = Figures()
        self._host = host
        self._client = client
        self._measuring = False
        self._deaths = 0

    async def measure(self, faults: Sequence[Fault]) -> Figures:
        """All streams from beginning to end, and meanwhile one fault after the other."""
        options = self.options
        if options.realtime:
            await self._go_first()
        events = round((options.lead_s + options.seconds) * 1000 / INTERVAL_MS)
        streams = [asyncio.ensure_future(self._stream(number, events)) for number in range(options.streams)]
        await asyncio.sleep(options.lead_s)
        watchers = [asyncio.ensure_future(self._watch_memory()), asyncio.ensure_future(self._ask())]
        before = core_times(self._host.pid)
        self._measuring = True
        striking = asyncio.ensure_future(self._strike(faults))
        await asyncio.sleep(options.seconds)
        self._measuring = False
        after = core_times(self._host.pid)
        self.figures.host_cpu, self.figures.host_waited = (
            (now_s - then_s) / options.seconds for now_s, then_s in zip(after, before, strict=True)
        )
        for watcher in watchers:
            watcher.cancel()
        await asyncio.wait(watchers)
        for outcome in await asyncio.gather(*streams):
            self._judge(outcome)
        await striking
        self.figures.ready_again_s = await self._host.lives(VICTIM, self._deaths)
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
            self.figures.rss_kb.append(rss_kb(self._host.pid))
            await asyncio.sleep(RSS_INTERVAL_S)

    # -- the victim

    async def _strike(self, faults: Sequence[Fault]) -> None:
        options, loop = self.options, asyncio.get_running_loop()
        strikes = [fault for fault in faults for _ in range(1 if fault.lasts_all_the_time else options.strikes)]
        for fault in strikes:
            period_s = options.seconds / len(strikes)
            began_s = loop.time()
            await asyncio.sleep(period_s * 0.05)
            if fault.sent is not None:
                os.kill(await self._victim_pid(), fault.sent)
            else:
                await self._command(f"{fault.command} {period_s * 0.6}" if fault.lasts else fault.command)
            self._deaths += fault.deadly
            await asyncio.sleep(began_s + period_s - loop.time())
            await self._host.lives(VICTIM, self._deaths)

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
        return int((await self._plugins())[VICTIM]["pid"])

    async def _plugins(self) -> Mapping[str, Mapping[str, Any]]:
        """The list of plugins, by id."""
        answer = await asyncio.to_thread(control.ask, self._host.config_file, "GET", "/plugins")
        assert answer is not None
        return {row["id"]: row for row in answer[1]["plugins"]}

    async def _go_first(self) -> None:
        rows = await self._plugins()
        for pid in (0, self._host.pid, rows["steady"]["pid"], rows["signpost"]["pid"]):
            os.sched_setscheduler(pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def rss_kb(pid: int) -> int:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def core_times(pid: int) -> tuple[float, float]:
    """Seconds that the process's main thread ran so far, and that it waited for a core."""
    ran_ns, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9


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
            async with host_process(config_file, pin=pin) as host:
                client = NumberedClient(host.url)
                with own_socket:
                    yield Run(options, host, client)
                await client.close()
    finally:
        os.sched_setaffinity(0, before)
        if options.realtime:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


async def run_once(faults: Sequence[Fault], options: Options, directory: Path) -> Figures:
    """One measurement, with these faults or (none) without."""
    async with staged(options, directory) as run:
        gc.collect()
        gc.freeze()
        try:
            return await run.measure(faults)
        finally:
            gc.unfreeze()
