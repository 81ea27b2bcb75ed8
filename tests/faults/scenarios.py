"""Misbehaving plugins under load: what each fault may do to its own requests, and that it does nothing to others.

Every scenario runs two plugins in one host: a victim that is told to misbehave, and a neighbour that is not. Both are
called by several callers all the time.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from host.runtime.diagnostics import PluginStartError
from host.runtime.guardian import Guardian
from host.runtime.handle import PluginState
from host.runtime.process import ProcessPlugin
from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from pluginabi.errors import AbiError
from tests.support.processes import HostDouble, Watcher, execute_stream, fault_spec, route

CALLERS = 8
BOUND_S = 60.0
CLEAN_CODES = frozenset({"plugin_crashed", "plugin_unavailable", "plugin_timeout", "plugin_overloaded"})

HELLO_NEVER_S = 2.0
"""How long a hello is waited for that does not come."""
TIMINGS = ProcessTimings(
    hello_s=BOUND_S,
    ping_interval_s=0.1,
    ping_unresponsive_s=1.0,
    ping_kill_s=1.5,
    stable_s=0.0,
    eof_grace_s=0.3,
    term_grace_s=0.3,
)
"""Shorter where the design's times would only make the run long; every restart counts as one after a good life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """What depends on the machine: how long a plugin that is well may take for what."""

    ready_again_s: float = 2.0
    """From the moment the victim misbehaves in a way that ends it, to the moment it is ready again."""
    answer_s: float = 5.0
    timings: ProcessTimings = TIMINGS
    silent: ProcessTimings = TIMINGS
    """Of a victim that is found out by its silence only."""


MEASURED = Patience()
"""On a machine that does nothing else."""
PATIENT = Patience(
    ready_again_s=BOUND_S,
    answer_s=BOUND_S,
    timings=replace(TIMINGS, ping_unresponsive_s=BOUND_S / 2, ping_kill_s=BOUND_S),
    silent=replace(TIMINGS, ping_unresponsive_s=2.0, ping_kill_s=3.0),
)
"""Wherever the tests run: a slow machine is no fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to misbehave. `command` is given to the running plugin, `mode` to its start."""

    name: str
    command: str = ""
    mode: str = "healthy"
    stream: bool = False
    dies: bool = True
    """Whether the process ends by it and is restarted."""
    silent: bool = False
    """Found out by its silence only, so that the time to be ready again includes `ping_kill_s`."""
    own_code: str | None = "plugin_crashed"
    """What the call that carried the command fails with; None: it succeeds."""


RUNNING_FAULTS = (
    Fault(name="exits in a call with 3", command="exit 3"),
    Fault(name="exits in a call with 0", command="exit 0"),
    Fault(name="is killed in a call", command="kill"),
    Fault(name="exits in the middle of a stream", command="stream-exit", stream=True),
    Fault(name="exits and leaves a grandchild on its pipes", command="exit 1", mode="grandchild"),
    Fault(name="closes its output and lives", command="close-stdout", mode="ignores-eof"),
    Fault(name="hangs and ignores everything", command="sleep-forever", mode="ignores-everything", silent=True),
    Fault(name="stops reading", command="stop-reading", mode="ignores-everything", silent=True, own_code=None),
    Fault(name="answers a call that was never made", command="unknown-id", own_code="plugin_protocol_error"),
    Fault(name="never answers one call", command="hang", dies=False, own_code="plugin_timeout"),
    Fault(name="answers more than a frame holds", command="oversize", dies=False, own_code="plugin_body_too_large"),
    Fault(name="answers broken JSON", command="broken-json", dies=False, own_code="plugin_protocol_error"),
    Fault(name="prints among its frames", command="print what a mess", dies=False, own_code=None),
    Fault(name="floods stderr with 10 MB", command="flood 10", dies=False, own_code=None),
    Fault(name="answers an error", command="error", dies=False, own_code="rate_limited"),
    Fault(name="asks to be replaced", command="goaway", dies=False, own_code=None),
)

START_FAULTS = (
    "no-hello",
    "hello-twice",
    "exit-0",
    "exit-3",
    "three-stray-lines",
    "wrong-id",
    "high-schema",
    "no-common-abi",
    "register-error",
)
REFUSED_COMMANDS = {"not executable": ("#!/bin/sh\n", 0o644), "bad shebang": ("#!/no/such/interpreter\n", 0o755)}


@dataclass(slots=True)
class Load:
    """Callers that call one plugin until they are told to stop, and what they saw."""

    plugin: ProcessPlugin
    watcher: Watcher
    answer_s: float
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    _stopped: bool = False
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Call for as long as the context is open; leaving it waits for the last answers."""
        callers = [asyncio.ensure_future(self._call(number)) for number in range(CALLERS)]
        try:
            yield self
        finally:
            self._stopped = True
            self.watcher.wake()
            async with asyncio.timeout(BOUND_S):
                await asyncio.gather(*callers)

    async def served(self, calls: int) -> None:
        """Wait until this many more calls were answered well."""
        wanted = self.outcomes["ok"] + calls
        async with asyncio.timeout(BOUND_S):
            while self.outcomes["ok"] < wanted:
                self._answered.clear()
                await self._answered.wait()

    async def _call(self, number: int) -> None:
        count = 0
        while not self._stopped:
            count += 1
            text = f"{number}-{count}"
            began_s = time.monotonic()
            try:
                reply = await route(self.plugin, f"echo {text}", timeout_s=self.answer_s)
                self.outcomes["ok" if reply.result.reason == text else "WRONG ANSWER"] += 1
                self._answered.set()
            except AbiError as error:
                self.outcomes[getattr(error, "code", type(error).__name__)] += 1
                await asyncio.sleep(0)  # a call that is refused at once gives nobody else a turn
                if not self.plugin.available and not self._stopped:
                    await self.watcher.changed()
            finally:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a scenario came to; `problems` empty means that it held."""

    name: str
    problems: list[str] = field(default_factory=list)
    own: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    foreign_slowest_s: float = 0.0
    ready_again_s: list[float] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(what)


class Stage:
    """A host with a guardian, and the plugins of one scenario; nothing of them is left afterwards."""

    def __init__(self, directory: Path, patience: Patience) -> None:
        self._directory = directory
        self._patience = patience
        self._tasks = TaskGroup("faults")
        self._guardian = Guardian()
        self.plugins: list[ProcessPlugin] = []

    def plugin(
        self, mode: str = "healthy", *, timings: ProcessTimings | None = None, **fields: object
    ) -> tuple[ProcessPlugin, Watcher]:
        folder = self._directory / f"p{len(self.plugins)}"
        folder.mkdir()
        watcher = Watcher()
        plugin = ProcessPlugin(
            fault_spec(folder, mode, environment={}, **fields),
            callbacks=HostDouble(),
            tasks=self._tasks,
            events=watcher,
            timings=timings or self._patience.timings,
            guardian=self._guardian,
        )
        self.plugins.append(plugin)
        return plugin, watcher

    async def stop(self, plugins: Sequence[ProcessPlugin] | None = None) -> None:
        """Stop these plugins, or all."""
        await asyncio.gather(*(plugin.stop() for plugin in plugins or self.plugins))

    async def close(self) -> None:
        """Leave nothing behind."""
        await self.stop()
        await self._tasks.stop()
        await self._guardian.stop()


@asynccontextmanager
async def staged(directory: Path, outcome: Outcome, patience: Patience) -> AsyncIterator[tuple[Stage, Load]]:
    """A stage with a neighbour under load; judges what the neighbour saw and what is left behind."""
    stage = Stage(directory, patience)
    try:
        neighbour, watcher = stage.plugin()
        await neighbour.start()
        load = Load(neighbour, watcher, patience.answer_s)
        async with load.running():
            await load.served(1)
            descriptors = len(os.listdir("/proc/self/fd"))
            yield stage, load
            if len(stage.plugins) > 1:
                await stage.stop(stage.plugins[1:])
            left = len(os.listdir("/proc/self/fd")) - descriptors
            await load.served(1)
        outcome.foreign = load.outcomes
        outcome.foreign_slowest_s = load.slowest_s
        outcome.expect(set(load.outcomes) == {"ok"}, f"the neighbour's callers saw {dict(load.outcomes)}")
        outcome.expect(neighbour.restarts == 0, "the neighbour was restarted")
    finally:
        await stage.close()
    outcome.expect(not has_children(), "a child process is left")
    outcome.expect(left <= 0, f"{left} descriptors are left open")


def has_children() -> bool:
    """Whether this process has any child, zombies included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


async def run_fault(fault: Fault, directory: Path, patience: Patience = MEASURED) -> Outcome:
    """The victim misbehaves once while it is called."""
    outcome = Outcome(name=fault.name)
    async with staged(directory, outcome, patience) as (stage, _):
        timings = patience.silent if fault.silent else patience.timings
        victim, watcher = stage.plugin(fault.mode, timings=timings)
        await victim.start()
        load = Load(victim, watcher, patience.answer_s)
        async with load.running():
            await load.served(20)
            own_code, began_s = await _misbehave(victim, fault, patience)
            outcome.expect(own_code == fault.own_code, f"its call got {own_code}, not {fault.own_code}")
            if fault.dies:
                async with asyncio.timeout(BOUND_S):
                    await watcher.reached(PluginState.READY, times=2)
                outcome.ready_again_s.append(time.monotonic() - began_s)
            await load.served(20)
        outcome.own = load.outcomes
        allowed = CLEAN_CODES | {fault.own_code} if fault.dies else frozenset()
        unclean = set(load.outcomes) - {"ok"} - allowed
        outcome.expect(not unclean, f"its other callers saw {sorted(unclean)}")
        limit_s = patience.ready_again_s + (timings.ping_kill_s if fault.silent else 0.0)
        outcome.expect(max(outcome.ready_again_s, default=0.0) <= limit_s, f"ready again after over {limit_s:g} s")
        restarted = fault.dies or fault.command == "goaway"
        outcome.expect((victim.restarts == 1) is restarted, f"it was restarted {victim.restarts} times")
    return outcome


async def _misbehave(victim: ProcessPlugin, fault: Fault, patience: Patience) -> tuple[str | None, float]:
    """Give the command; how its call ended, and when the fault was over for the caller (silent ones: began)."""
    began_s = time.monotonic()
    code = None
    try:
        if fault.stream:
            reply = await execute_stream(victim, fault.command, timeout_s=patience.answer_s)
            async for _ in reply.items:
                pass
        else:
            await route(victim, fault.command, timeout_s=1.0 if fault.own_code == "plugin_timeout" else BOUND_S)
    except AbiError as error:
        code = getattr(error, "code", None)
    return code, began_s if fault.silent else time.monotonic()


async def run_start_fault(mode: str, directory: Path, patience: Patience = MEASURED) -> Outcome:
    """A victim that misbehaves while it starts, beside a neighbour under load."""
    outcome = Outcome(name=f"starts with {mode}")
    async with staged(directory, outcome, patience) as (stage, _):
        timings = replace(patience.timings, hello_s=HELLO_NEVER_S) if mode == "no-hello" else None
        await _expect_refused(stage.plugin(mode, timings=timings)[0], outcome)
    return outcome


async def run_refused_command(name: str, directory: Path, patience: Patience = MEASURED) -> Outcome:
    """A command that the system does not execute."""
    outcome = Outcome(name=f"is {name}")
    text, mode = REFUSED_COMMANDS[name]
    program = directory / "tool"
    program.write_text(text)
    program.chmod(mode)
    async with staged(directory, outcome, patience) as (stage, _):
        await _expect_refused(stage.plugin(command=(str(program),))[0], outcome)
    return outcome


async def _expect_refused(victim: ProcessPlugin, outcome: Outcome) -> None:
    try:
        async with asyncio.timeout(BOUND_S):
            await victim.start()
        outcome.problems.append("it started")
    except PluginStartError as error:
        outcome.expect(bool(error.report.sentence()), "the report says nothing")
    try:
        await route(victim, "echo")
        outcome.problems.append("it took a call")
    except AbiError as error:
        outcome.own[getattr(error, "code", type(error).__name__)] += 1
    outcome.expect(set(outcome.own) == {"plugin_unavailable"}, f"a call saw {dict(outcome.own)}")


async def run_kills(times: int, directory: Path, patience: Patience = MEASURED) -> Outcome:
    """KILL from outside, over and over, while victim and neighbour are called."""
    outcome = Outcome(name=f"is killed {times} times")
    async with staged(directory, outcome, patience) as (stage, _):
        victim, watcher = stage.plugin()
        await victim.start()
        load = Load(victim, watcher, patience.answer_s)
        async with load.running():
            for number in range(times):
                await load.served(5)
                pid = victim.pid
                assert pid is not None
                began_s = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(BOUND_S):
                    await watcher.reached(PluginState.READY, times=number + 2)
                outcome.ready_again_s.append(time.monotonic() - began_s)
            await load.served(5)
        outcome.own = load.outcomes
        unclean = set(load.outcomes) - {"ok"} - CLEAN_CODES
        outcome.expect(not unclean, f"its callers saw {sorted(unclean)}")
        limit_s = patience.ready_again_s
        outcome.expect(max(outcome.ready_again_s) <= limit_s, f"ready again after over {limit_s:g} s")
        outcome.expect(victim.restarts == times, f"it was restarted {victim.restarts} times")
    return outcome
