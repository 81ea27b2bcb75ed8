"""One generation of one plugin that runs as a process: started, called, supervised, restarted, replaced, stopped."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from host.runtime.callbacks import CallbackServer
from host.runtime.confinement import ConfinementReport
from host.runtime.connection import Connection
from host.runtime.diagnostics import CrashReport, PluginStartError, mistake_report
from host.runtime.guardian import Guardian
from host.runtime.handle import PluginHandle, PluginState, Reply
from host.runtime.launch import LaunchSpec
from host.runtime.refusals import Refusals
from host.runtime.scope import CallScope
from host.runtime.states import StateMachine
from host.runtime.supervise import CrashPolicy, GiveUp
from host.runtime.teardown import finish
from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from pluginabi.errors import Phase, PluginTransportError
from pluginabi.frames import Hello
from pluginabi.limits import QUEUE_MAX_CALLS
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse

log = structlog.get_logger("host.runtime.process")


class PluginEvents:
    """What the owner of a plugin process may want to know; every method may be left as it is. Must not raise."""

    def state_changed(self, plugin: "ProcessPlugin", old: PluginState, new: PluginState, reason: str) -> None:
        """After every transition."""

    def registered(self, plugin: "ProcessPlugin") -> None:
        """After every successful registration, those of restarts included: `registration` may have changed."""

    def died(self, plugin: "ProcessPlugin", report: CrashReport) -> None:
        """A process ended, or did not start, without being asked to."""


@dataclass(frozen=True, slots=True)
class _Life:
    """How one process's service ended: by `report`, or because it asked to be replaced (`connection` still drains)."""

    ready_for_s: float | None
    """None: it never was."""
    report: CrashReport | None = None
    going_away: str = ""


class ProcessPlugin:
    """A `PluginHandle`. One process at a time, a new one after each death as `CrashPolicy` allows.

    All methods belong to one event loop. `tasks` owns the supervisor: when that group stops, the process is killed.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        *,
        callbacks: CallbackServer,
        tasks: TaskGroup,
        events: PluginEvents | None = None,
        timings: ProcessTimings | None = None,
        guardian: Guardian | None = None,
        refusals: Refusals | None = None,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.spec = spec
        self.plugin_id = spec.plugin_id
        self.generation = spec.generation
        self.hello: Hello | None = None
        """Of the newest process that said one."""
        self.registration: RegisterResponse | None = None
        """The last good one."""
        self.restarts = 0
        self.last_report: CrashReport | None = None
        self._callbacks = callbacks
        self._tasks = tasks
        self._events = events or PluginEvents()
        self._timings = timings or ProcessTimings()
        self._guardian = guardian
        self._refusals = refusals or Refusals()
        self._clock = clock
        self._policy = CrashPolicy(self._timings, clock=clock, dice=dice)
        self._machine = StateMachine(spec.plugin_id, generation=spec.generation, listener=self._moved)
        self._register: Callable[[], RegisterRequest] = spec.register
        self._live: Connection | None = None
        self._accepting: Connection | None = None
        """`_live` while calls may go to it."""
        self._successor: PluginHandle | None = None
        self._replacement: asyncio.Future[None] | None = None
        self._waiting = 0
        self._going_away: asyncio.Future[str] | None = None
        self._retiring: set[asyncio.Task[CrashReport]] = set()
        self._supervisor: asyncio.Task[None] | None = None
        self._first: asyncio.Future[PluginStartError | None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._ready_since_s: float | None = None
        """Of the process that lives; None: it is not ready yet."""

    # -- what it is

    @property
    def state(self) -> PluginState:
        return self._machine.state

    @property
    def state_reason(self) -> str:
        """Why it is in this state."""
        return self._machine.reason

    @property
    def last_error(self) -> str:
        """The newest crash or failed start in a sentence; empty when there was none."""
        return self.last_report.sentence() if self.last_report is not None else ""

    @property
    def pid(self) -> int | None:
        return self._live.pid if self._live is not None else None

    @property
    def rss_bytes(self) -> int | None:
        """Memory of the running process at the last look."""
        return self._live.usage.rss_bytes if self._live is not None and self._live.usage is not None else None

    @property
    def cpu_share(self) -> float | None:
        """Of one processor, over the last half minute."""
        return self._live.usage.cpu_share if self._live is not None and self._live.usage is not None else None

    @property
    def confinement(self) -> ConfinementReport | None:
        """What keeps the running process in its place; None while none runs."""
        return self._live.confinement if self._live is not None else None

    @property
    def stray_lines(self) -> int:
        """Lines the running process printed on stdout among its frames."""
        return self._live.output.stray_lines if self._live is not None else 0

    def stderr_tail(self, lines: int = 40) -> list[str]:
        """The last lines the running process wrote; of a dead one see `last_report`."""
        return self._live.output.tail(lines) if self._live is not None else list(self._last_stderr()[-lines:])

    def _last_stderr(self) -> tuple[str, ...]:
        return tuple(self.last_report.stderr) if self.last_report is not None else ()

    @property
    def available(self) -> bool:
        """Whether a call would be taken at this moment; false a moment before a death shows in `state`."""
        return self._accepting is not None and self._accepting.session.takes_calls

    @property
    def in_flight(self) -> int:
        """Calls without an answer and open streams."""
        return self._live.open_calls if self._live is not None else 0

    # -- calls

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        """See `PluginHandle.call`. Raises PluginTransportError unavailable at once while it is not ready.

        A full plugin queues the call for at most `queue_wait_s`, which `timeout_s` does not count; then overload.
        """
        accepting = self._accepting
        if accepting is None:
            accepting = await self._replaced(method)
            if accepting is None:
                assert self._successor is not None
                return await self._successor.call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)
        return await accepting.call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)

    async def _replaced(self, method: str) -> Connection | None:
        """Who takes a call in place of a process that goes away: the next process, or None for the successor.

        Raises PluginTransportError when nobody does.
        """
        if self._replacement is not None:
            if self._waiting >= QUEUE_MAX_CALLS:
                cause = f"{QUEUE_MAX_CALLS} calls wait for its next process already"
                raise PluginTransportError(self.plugin_id, method, phase="overload", cause=cause)
            self._waiting += 1
            try:
                await asyncio.wait([self._replacement], timeout=self._timings.queue_wait_s)
            finally:
                self._waiting -= 1
        if self._accepting is not None:
            return self._accepting
        if self._successor is not None:
            return None
        reason = f": {self.state_reason}" if self.state_reason else ""
        cause = f"it is {self.state}{reason}"
        raise PluginTransportError(self.plugin_id, method, phase="unavailable", cause=cause)

    # -- start

    async def start(self) -> None:
        """Start the process; returns when it is ready. Raises PluginStartError with a report.

        Then it is `failed` when trying again is useless, otherwise in `backoff` and tried again by itself: call `stop`
        to give up. Cancelling the wait changes nothing about it.
        """
        if self._supervisor is not None and not self._supervisor.done():
            raise RuntimeError(f"plugin {self.plugin_id!r} was started already")
        self._finishing = None
        self._hurry = asyncio.Event()
        self._successor = None
        self._first = asyncio.get_running_loop().create_future()
        self._supervisor = self._tasks.start(self._supervise(), name=f"supervise:{self.plugin_id}")
        error = await asyncio.shield(self._first)
        if error is not None:
            raise error

    async def reset(self) -> None:
        """Forget all crashes; start again when it failed, waits or was stopped. Raises as `start`."""
        self._policy.forget()
        if self.state in (PluginState.FAILED, PluginState.BACKOFF, PluginState.STOPPED):
            await self.stop()
            await self.start()

    async def reconfigure(self, request: RegisterRequest) -> bool:
        """Hand over another configuration; False when the plugin needs a new process for it.

        Raises PluginError or PluginTransportError; then the last good registration stays in effect.
        """
        live = self._accepting
        if live is None or not await live.reconfigure(request):
            return False
        self._register = lambda: request
        self._registered(live)
        return True

    def _registered(self, connection: Connection) -> None:
        self.hello, self.registration = connection.hello, connection.registration
        self._events.registered(self)

    # -- the life of processes

    async def _supervise(self) -> None:
        """Boundary: an error nobody foresaw fails the plugin, which would otherwise keep a state for ever, unseen."""
        try:
            replaces = False
            while True:
                life = await self._one_guarded_life(replaces)
                if self._finishing is not None:
                    return
                replaces = life.report is None
                if not await self._lives_again(life):
                    return
        except Exception as error:
            self.last_report = self._mistake(error)
            if self._finishing is None:
                self._settle_first(PluginStartError(self.last_report))
                self._machine.move(PluginState.FAILED, self.last_report.sentence())
        finally:
            self._accepting = None
            self._settle_replacement()
            if self._live is not None and self._finishing is None:
                self._live.kill("the host stops")
                await finish(asyncio.ensure_future(self._live.ended()))
            self._settle_first(None)

    async def _one_guarded_life(self, replaces: bool) -> _Life:
        """Boundary: an error nobody foresaw ends a life as a crash does, with the restarts that a crash has."""
        self._ready_since_s = None
        try:
            return await self._one_life(replaces)
        except Exception as error:
            self._accepting = None
            report = self._mistake(error)
            if self._live is not None:
                await _end(self._live)
                self._live = None
            self._settle_replacement()
            if self._finishing is None:
                self._died(report)
                self._settle_first(PluginStartError(report))
            ready_since_s = self._ready_since_s
            return _Life(None if ready_since_s is None else self._clock() - ready_since_s, report)

    def _mistake(self, error: Exception) -> CrashReport:
        log.error("plugin.supervision_failed", plugin_id=self.plugin_id, generation=self.generation, exc_info=error)
        phase: Phase = "start" if self._ready_since_s is None else "exit"
        return mistake_report(self.plugin_id, error, phase=phase, stderr=self.stderr_tail())

    async def _one_life(self, replaces: bool) -> _Life:
        """One process from start to its end, or to its wish to be replaced."""
        try:
            connection = await self._bring_up(quietly=replaces)
        except PluginStartError as error:
            self._died(error.report)
            self._settle_replacement()
            self._settle_first(error)
            return _Life(None, error.report)
        self._going_away = asyncio.get_running_loop().create_future()
        self._live = self._accepting = connection
        self._registered(connection)
        self._machine.move(PluginState.READY, "registered")
        self._settle_replacement()
        self._settle_first(None)
        self._ready_since_s = ready_s = self._clock()
        ended = asyncio.ensure_future(connection.ended())
        events: list[asyncio.Future[Any]] = [ended, self._going_away]
        await asyncio.wait(events, return_when="FIRST_COMPLETED")
        self._accepting = None
        ready_for_s = self._clock() - ready_s
        if not ended.done():
            ended.cancel()
            return _Life(ready_for_s, going_away=self._going_away.result())
        report = await ended
        self._live = None
        if self._finishing is None:
            self._died(report)
        return _Life(ready_for_s, report)

    async def _bring_up(self, *, quietly: bool) -> Connection:
        """A connection that is greeted and registered. Raises PluginStartError; nothing is left then."""
        moved = (lambda state, reason: None) if quietly else self._machine.move
        moved(PluginState.STARTING, "restart" if self.restarts else "start")
        connection = Connection(
            self.spec,
            callbacks=self._callbacks,
            timings=self._timings,
            guardian=self._guardian,
            on_goaway=self._goaway_received,
            on_responsive=self._responsive,
            refusals=self._refusals,
        )
        await connection.open(moved)
        moved(PluginState.REGISTERING, "hello")
        try:
            await connection.register(self._register())
        except PluginStartError as error:
            raise PluginStartError(await connection.give_up(error.report)) from error
        except BaseException:
            connection.kill("its start was given up")
            await finish(asyncio.ensure_future(connection.ended()))
            raise
        return connection

    async def _lives_again(self, life: _Life) -> bool:
        """Decide about the next process, and wait until it may start. False: there is none."""
        report = life.report
        if report is not None and report.permanent:
            self._machine.move(PluginState.FAILED, report.sentence())
            return False
        decision = self._policy.after_death(ready_for_s=life.ready_for_s)
        reason = report.sentence() if report is not None else f"it asked to be replaced: {life.going_away}"
        if report is None:
            self._retire(life.going_away)
        if isinstance(decision, GiveUp) and not self.spec.attach:
            self._machine.move(PluginState.FAILED, f"{decision.reason}; the last time: {reason}")
            return False
        self.restarts += 1
        delay_s = self._timings.backoff_min_s if isinstance(decision, GiveUp) else decision.delay_s
        if delay_s > 0:
            self._settle_replacement()
            self._machine.move(PluginState.BACKOFF, reason)
            await asyncio.sleep(delay_s)
        return True

    def _retire(self, reason: str) -> None:
        """Let the process that asked for it finish what it has, beside the next one."""
        connection, self._live = self._live, None
        assert connection is not None
        work = connection.stop(reason, drain_s=self._timings.shutdown_drain_s, hurry=self._hurry)
        task = self._tasks.start(work, name=f"retire:{self.plugin_id}", on_done=self._retiring.discard)
        self._retiring.add(task)

    def _died(self, report: CrashReport) -> None:
        self.last_report = report
        log.warning(
            "plugin.died",
            plugin_id=self.plugin_id,
            generation=self.generation,
            phase=report.phase,
            reason=report.sentence(),
            stderr=list(report.stderr[-5:]),
        )
        self._events.died(self, report)

    def _settle_first(self, error: PluginStartError | None) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(error)

    def _settle_replacement(self) -> None:
        if self._replacement is not None:
            self._replacement.set_result(None)
            self._replacement = None

    def _moved(self, old: PluginState, new: PluginState, reason: str) -> None:
        self._events.state_changed(self, old, new, reason)

    def _goaway_received(self, connection: Connection, reason: str) -> None:
        if connection is self._live and self._going_away is not None and not self._going_away.done():
            self._accepting = None
            self._replacement = asyncio.get_running_loop().create_future()
            self._going_away.set_result(reason or "no reason given")

    def _responsive(self, connection: Connection, responsive: bool) -> None:
        going_away = self._going_away is not None and self._going_away.done()
        if connection is not self._live or going_away or self._finishing is not None:
            return
        if responsive:
            self._accepting = connection
            self._machine.move(PluginState.READY, "it answers again")
        else:
            self._accepting = None
            self._machine.move(PluginState.UNRESPONSIVE, f"silent for {self._timings.ping_unresponsive_s:g} s")

    # -- stop

    async def stop(self) -> None:
        """Stop without waiting for calls; also ends a drain that is going on. Idempotent."""
        self._hurry.set()
        await self.drain_and_stop(drain_s=0.0)

    async def drain_and_stop(
        self, *, drain_s: float, reason: str = "stopped", successor: PluginHandle | None = None
    ) -> None:
        """Take no new calls, wait up to `drain_s` for those that run, then end the process.

        With a `successor` (an upgrade) no call is refused: while calls run, new ones are still served here, because
        they belong to requests that began here; from then on they go to the successor. Runs to its end even when the
        wait is cancelled. Idempotent.
        """
        if self._finishing is None:
            self._successor = successor
            if self._supervisor is None:
                return
            work = self._finish(drain_s, reason)
            self._finishing = asyncio.get_running_loop().create_task(work, name=f"stop:{self.plugin_id}")
        await asyncio.shield(self._finishing)

    async def _finish(self, drain_s: float, reason: str) -> None:
        assert self._supervisor is not None
        live = self._live
        if live is not None:
            try:
                await self._drain(live, drain_s, reason)
            except Exception as error:  # boundary: whatever went wrong, it has to end
                self._mistake(error)
                await _end(live)
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor, *self._retiring])
        self._live = self._accepting = None
        self._machine.move(PluginState.STOPPED, reason)

    async def _drain(self, live: Connection, drain_s: float, reason: str) -> None:
        if self._successor is not None:
            began_s = time.monotonic()
            await live.idle_within(drain_s, self._hurry)
            drain_s = max(0.0, drain_s - (time.monotonic() - began_s))
        self._accepting = None
        if self.state in (PluginState.READY, PluginState.UNRESPONSIVE):
            self._machine.move(PluginState.DRAINING, reason)
        await live.stop(reason, drain_s=drain_s, hurry=self._hurry)


async def _end(connection: Connection) -> None:
    """Kill what a mistake was made about; how it ended may be that very mistake and is not looked at."""
    connection.kill("its supervision failed")
    await asyncio.gather(connection.ended(), return_exceptions=True)
