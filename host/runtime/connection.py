"""One plugin process from spawn to reaping, and the calls made to it meanwhile."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from msgspec.structs import replace

from host.runtime.callbacks import CallbackServer
from host.runtime.child import ChildProcess
from host.runtime.confinement import ConfinementReport
from host.runtime.diagnostics import REPORT_STDERR_LINES, CrashReport, PluginStartError, crash_report
from host.runtime.gate import Oversight
from host.runtime.guardian import Guardian
from host.runtime.handle import PluginState, Reply
from host.runtime.incoming import CallbackDesk
from host.runtime.launch import LaunchSpec, Spawned, attached_confinement, build_environment, spawn
from host.runtime.refusals import Refusals, TokenBucket
from host.runtime.scope import CallScope
from host.runtime.slots import Slots
from host.runtime.stderr import SecretMask, StderrDrain, secret_values
from host.runtime.supervise import Liveness
from host.runtime.teardown import finish, kill_process, stop_process
from host.runtime.timings import ProcessTimings
from host.runtime.transports import Carrier, attach, greet, make_socket_dir, remove_socket_dir
from host.runtime.usage import UsageMeter
from host.tasks import TaskGroup
from pluginabi.call import OutgoingCall
from pluginabi.codec import decode_result
from pluginabi.errors import AbiError, Phase, PluginError, PluginTransportError
from pluginabi.frames import Goaway, Hello, Log
from pluginabi.handshake import HandshakeError, HandshakeRefused
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse, ShutdownRequest
from pluginabi.session import Session

log = structlog.get_logger("host.runtime.connection")

REGISTER: Final = "plugin.register"
RECONFIGURE: Final = "plugin.reconfigure"
SHUTDOWN: Final = "plugin.shutdown"
LOG_FRAMES_PER_SECOND: Final = 500
LOG_FRAMES_BURST: Final = 2000
"""Writing a line costs the host more than sending it costs a plugin; further ones are only counted."""


class Connection:
    """One process and its session. `open`, then `register`, then calls; `ended` tells how it was lost.

    Used once. Whatever happens, the process, its group, its descriptors and its socket directory are gone when
    `ended` returns.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        *,
        callbacks: CallbackServer,
        timings: ProcessTimings,
        guardian: Guardian | None,
        on_goaway: "Callable[[Connection, str], None]",
        on_responsive: "Callable[[Connection, bool], None]",
        refusals: Refusals,
    ) -> None:
        self._spec = spec
        self._callbacks = callbacks
        self._timings = timings
        self._guardian = guardian
        self._on_goaway = on_goaway
        self._on_responsive = on_responsive
        self._refusals = refusals
        self._log_rate = TokenBucket(per_second=LOG_FRAMES_PER_SECOND, burst=LOG_FRAMES_BURST)
        self._oversight: Oversight | None = None
        self._tasks = TaskGroup(f"plugin:{spec.plugin_id}")
        self._child: ChildProcess | None = None
        self._command: tuple[str, ...] = spec.command
        self._carrier: Carrier | None = None
        self._socket_dir: Path | None = None
        self._scopes: dict[int, CallScope] = {}
        self._idle: asyncio.Future[None] | None = None
        self._stopping = False
        self._killed: tuple[Phase, str] | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[CrashReport] = self._loop.create_future()
        self._max_streams = 0
        self._watcher: asyncio.Task[None] | None = None
        self.output = StderrDrain(
            self._log_output,
            mask=SecretMask((*spec.secrets, *secret_values(spec.environment))),
            on_suppressed=partial(self._refused, "stderr line"),
        )
        self.usage: UsageMeter | None = None
        self.confinement: ConfinementReport | None = None
        self.hello: Hello | None = None
        self.registration: RegisterResponse | None = None
        self.session: Session
        self.slots: Slots

    # -- start

    async def open(self, moved: Callable[[PluginState, str], None]) -> None:
        """Start the process and exchange hellos; `moved` is told the states on the way.

        Raises PluginStartError. Then, and when it is cancelled, nothing of the process is left.
        """
        try:
            carrier = await self._greet(moved)
            self._begin(carrier)
            self._look_after(carrier.greeting.features)
        except (HandshakeError, OSError, TimeoutError) as error:
            # To its end whatever happens to the caller: the process is still there.
            report = await finish(asyncio.ensure_future(self._never_greeted(error)))
            raise PluginStartError(report) from error
        except BaseException:
            await finish(asyncio.ensure_future(self._clean_up()))
            raise

    def _begin(self, carrier: Carrier) -> None:
        """The session with a greeted process."""
        self._carrier, greeting = carrier, carrier.greeting
        limits = self._spec.limits
        self.hello = greeting.peer
        self._max_streams = min(greeting.max_streams, limits.max_streams or greeting.max_streams)
        self.slots = Slots(
            self._spec.plugin_id,
            max_inflight=min(greeting.max_inflight, limits.max_inflight or greeting.max_inflight),
            wait_s=self._timings.queue_wait_s,
        )
        desk = CallbackDesk(
            self._callbacks,
            plugin_id=self._spec.plugin_id,
            scopes=self._scopes,
            permissions=self._spec.permissions,
            tasks=self._tasks,
        )
        self.session = Session(
            carrier.channel,
            role="host",
            features=greeting.features,
            peer=self._spec.plugin_id,
            peer_limits=greeting.peer.limits,
            handler=desk.handle,
            on_log=self._log_frame,
            on_goaway=self._goaway_received,
            on_stray=self.output.stray,
            minimal=not greeting.features,
        )

    def _look_after(self, features: frozenset[str]) -> None:
        """Read, wait for the end, and watch memory and liveness meanwhile."""
        reader = self._tasks.start(self.session.run(), name="session")
        self._watcher = self._loop.create_task(self._watch(reader), name=f"plugin:{self._spec.plugin_id}:watch")
        self._watcher.add_done_callback(self._watched)
        if self._child is not None:
            self.usage = UsageMeter(
                self._child.pid,
                interval_s=self._timings.usage_interval_s,
                memory_limit_bytes=self._spec.limits.memory_bytes,
                kill=self.kill,
            )
            self._tasks.start(self.usage.run(), name="usage")
        # A process that somebody debugs may stand still for as long as they like.
        if "ping" in features and not self._spec.attach:
            liveness = Liveness(
                self.session,
                self._timings,
                tasks=self._tasks,
                on_change=partial(self._on_responsive, self),
                kill=partial(self.kill, phase="wait"),
            )
            self._tasks.start(liveness.run(), name="liveness")

    async def _greet(self, moved: Callable[[PluginState, str], None]) -> Carrier:
        spec = self._spec
        if spec.attach:
            moved(PluginState.HANDSHAKING, f"connecting to {spec.attach}")
            self.confinement = attached_confinement(spec)
            return await attach(spec, timings=self._timings, on_stray=self.output.stray)
        await self._check_files()
        self._socket_dir = make_socket_dir(spec)
        if self._socket_dir is not None and self._guardian is not None:
            self._guardian.watch_directory(self._socket_dir)
        spawned = spawn(spec, self._guardian, self._socket_dir)
        self._child, self._command = spawned.child, spawned.command
        self.confinement = spawned.confinement
        own = [spec.data_dir, *([self._socket_dir] if self._socket_dir is not None else [])]
        self._oversight = Oversight(spawned, own_directories=own, refused=self._refused)
        await self._drain_output(spawned)
        moved(PluginState.HANDSHAKING, f"started as process {self._child.pid}")
        return await greet(spec, spawned, self._socket_dir, timings=self._timings, on_stray=self.output.stray)

    async def _check_files(self) -> None:
        """Raises PluginStartError, for good, when the plugin's files must not run."""
        problem = await asyncio.to_thread(self._spec.check) if self._spec.check is not None else None
        if problem is not None:
            raise PluginStartError(self._report("start", problem, None, permanent=True))

    async def _drain_output(self, spawned: Spawned) -> None:
        try:
            await self.output.start(spawned.stderr_fd)
        except BaseException:
            for fd in (spawned.stdin_fd, spawned.stdout_fd):
                os.close(fd)
            raise

    async def _never_greeted(self, error: Exception) -> CrashReport:
        """Give a process that is ending the moment it needs, so that its exit code is in the report."""
        ended_by_itself = self._child is not None and await self._child.exited_within(self._timings.last_words_s)
        returncode = self._child.returncode if self._child is not None and ended_by_itself else None
        await self._clean_up()
        cause = error.cause if isinstance(error, HandshakeError) else f"no connection: {error or 'timed out'}"
        return self._report("hello", cause, returncode, permanent=isinstance(error, HandshakeRefused))

    async def register(self, request: RegisterRequest) -> None:
        """Tell the plugin its configuration; a plugin of the minimal profile only when it lists the method.

        Raises PluginStartError: permanent when the plugin refused with a status below 500, because the same
        configuration will not please it the next time either. The process is still there then.
        """
        assert self.hello is not None
        if REGISTER in self.hello.capabilities or self.session.features:
            try:
                self.registration = await self._configure(REGISTER, request)
            except PluginError as error:
                reason = f"it refused its configuration: {error.body.message} ({error.body.code})"
                permanent = error.http_status < 500 if error.body.retryable is None else not error.body.retryable
                raise PluginStartError(self._report("start", reason, None, permanent=permanent)) from error
            except PluginTransportError as error:
                raise PluginStartError(self._report("start", f"{REGISTER}: {error.cause}", None)) from error
        else:
            self.registration = RegisterResponse()

    async def give_up(self, report: CrashReport) -> CrashReport:
        """End a process that did not register; `report` completed by how it ended, if it did so by itself."""
        died = (
            self._child is not None
            and not report.permanent
            and await self._child.exited_within(self._timings.last_words_s)
        )
        self.kill("it did not register")
        end = await self.ended()
        report = replace(report, stderr=end.stderr)
        if died:
            report = replace(report, exit_code=end.exit_code, signal_name=end.signal_name, hint=end.hint)
        return report

    async def reconfigure(self, request: RegisterRequest) -> bool:
        """Hand over another configuration; False when the plugin cannot take one while it runs.

        Raises PluginError and PluginTransportError; the last good registration stays in effect then.
        """
        assert self.hello is not None
        if RECONFIGURE not in self.hello.capabilities:
            return False
        self.registration = await self._configure(RECONFIGURE, request)
        return True

    async def _configure(self, method: str, request: RegisterRequest) -> RegisterResponse:
        assert self.hello is not None
        scope = CallScope(plugin_id=self._spec.plugin_id, method=method, permissions=self._spec.permissions)
        try:
            reply = await self.call(method, request, scope=scope, timeout_s=self._timings.register_s)
        except PluginError as error:
            if error.code == "method_not_found" and method not in self.hello.capabilities:
                return RegisterResponse()
            raise
        finally:
            scope.close()
        answer: RegisterResponse = reply.result
        if unknown := sorted(set(answer.capabilities or ()) - set(self.hello.capabilities)):
            message = f"{method} answers capabilities that its hello lacks: {', '.join(unknown)}"
            raise PluginError(message, retryable=False)
        return answer

    # -- calls

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        """See `PluginHandle.call`. Waits for a slot first, which the deadline does not count."""
        slots = self.slots
        if slots.free > 0:
            slots.free -= 1
        else:
            await slots.acquire(method)
        try:
            if stream and self.session.open_streams >= self._max_streams:
                cause = f"{self._max_streams} streams are open already"
                raise PluginTransportError(self._spec.plugin_id, method, phase="overload", cause=cause)
            timeout_ms = None if timeout_s is None else max(1, int(timeout_s * 1000))
            call = self.session.start_call(method, params, timeout_ms=timeout_ms, stream=stream)
        except AbiError:
            slots.release()
            raise
        self._scopes[call.id] = scope
        try:
            answer = await call.reply()
        except BaseException:
            self._failed(call, scope)
            raise
        if answer.items is None:
            self._closed(call.id)
            slots.release()
        else:
            call.on_closed(partial(self._closed, call.id))
            if self.session.features:
                slots.release()
            else:
                call.on_closed(slots.release)  # the minimal profile: one call at a time, to the end of its stream
        try:
            result = decode_result(method, answer.result, plugin_id=self._spec.plugin_id)
        except PluginTransportError:
            if answer.items is not None:
                await answer.items.aclose()
            raise
        return Reply(result=result, usage=answer.usage, items=answer.items)

    def _failed(self, call: OutgoingCall, scope: CallScope) -> None:
        self._closed(call.id)
        if not call.cancelled:
            self.slots.release()
            return
        # The plugin may still be working on it: its slot is free with its late answer.
        call.on_closed(self.slots.release)
        if "ping" not in self.session.features and call.timeout_ms is not None:
            remaining_s = max(0.0, (scope.deadline_s or 0.0) - time.monotonic())
            late_s = self._timings.late_answer_s
            reason = f"no answer to {call.method} {late_s:g} s after its deadline"
            timer = self._loop.call_later(remaining_s + late_s, partial(self.kill, reason, phase="wait"))
            call.on_closed(timer.cancel)

    def _closed(self, call_id: int) -> None:
        self._scopes.pop(call_id, None)
        if self._idle is not None and not self._scopes and not self._idle.done():
            self._idle.set_result(None)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def open_calls(self) -> int:
        """Calls without an answer and open streams; abandoned ones do not count."""
        return len(self._scopes)

    # -- end

    async def ended(self) -> CrashReport:
        """Wait until nothing of the process is left; how it ended."""
        return await asyncio.shield(self._ended)

    def kill(self, reason: str, *, phase: Phase = "exit") -> None:
        """End the process at once: it broke."""
        if self._killed is None:
            self._killed = (phase, reason)
        if self._child is not None:
            self._child.signal_group(signal.SIGKILL)
        elif self._carrier is not None:
            self._carrier.abort()

    async def idle_within(self, seconds: float, hurry: asyncio.Event) -> bool:
        """Whether the last call ended, waiting at most `seconds` for it, or until `hurry` is set."""
        if not self._scopes:
            return True
        self._idle = self._loop.create_future()
        impatience = asyncio.ensure_future(hurry.wait())
        events: list[asyncio.Future[Any]] = [self._idle, impatience, self._ended]
        try:
            await asyncio.wait(events, timeout=seconds, return_when="FIRST_COMPLETED")
        finally:
            impatience.cancel()
            self._idle = None
        return not self._scopes

    async def stop(self, reason: str, *, drain_s: float, hurry: asyncio.Event) -> CrashReport:
        """Goaway, drain, `plugin.shutdown`, then the process's end whatever it does (F5, F15, F16, F17).

        Cancelling it kills the process.
        """
        try:
            return await self._stop(reason, drain_s=drain_s, hurry=hurry)
        except asyncio.CancelledError:
            self.kill("its end was not waited for")
            raise

    async def _stop(self, reason: str, *, drain_s: float, hurry: asyncio.Event) -> CrashReport:
        self.session.goaway(reason, int(drain_s * 1000))
        if not await self.idle_within(drain_s, hurry):
            log.warning("plugin.drain_incomplete", plugin_id=self._spec.plugin_id, open_calls=self.open_calls)
        self._stopping = True
        assert self.hello is not None and self._carrier is not None
        if self._child is not None and SHUTDOWN in self.hello.capabilities:
            await self._shut_down(reason)
        self.slots.close("unavailable", reason)
        await self.session.close(reason, phase="unavailable")
        if self._child is not None:
            self._carrier.close_stdin()
            await stop_process(self._child, plugin_id=self._spec.plugin_id, timings=self._timings)
        return await self.ended()

    async def _shut_down(self, reason: str) -> None:
        scope = CallScope(plugin_id=self._spec.plugin_id, method=SHUTDOWN, permissions=self._spec.permissions)
        try:
            request = ShutdownRequest(reason=reason)
            await self.call(SHUTDOWN, request, scope=scope, timeout_s=self._timings.plugin_shutdown_s)
        except AbiError as error:
            log.info("plugin.shutdown_failed", plugin_id=self._spec.plugin_id, error=str(error))
        finally:
            scope.close()

    async def _watch(self, reader: "asyncio.Task[BaseException | None]") -> None:
        """Wait for the end of the session or of the process, see to the other one, and report."""
        exited = asyncio.ensure_future(self._child.wait()) if self._child is not None else None
        try:
            await asyncio.wait([reader] if exited is None else [reader, exited], return_when="FIRST_COMPLETED")
            # A process that ends closes its output a moment before it can be reaped.
            if (
                self._child is not None
                and not self._stopping
                and not await self._child.exited_within(self._timings.last_words_s)
            ):
                self.kill(f"it closed its side but kept running: {reader.result()}", phase="decode")
            if exited is not None:
                await exited
                # What it wrote before it died is still in the pipe, unless a stranger holds that open.
                await asyncio.wait([reader], timeout=self._timings.last_words_s)
        finally:
            await finish(asyncio.ensure_future(self._lost(reader)))

    def _watched(self, watcher: "asyncio.Task[None]") -> None:
        if not self._ended.done():  # a bug of ours must not leave the plugin's supervisor waiting for ever
            error = None if watcher.cancelled() else watcher.exception()
            self._ended.set_exception(error or RuntimeError("the watcher of a plugin process was cancelled"))

    async def _lost(self, reader: "asyncio.Task[BaseException | None]") -> None:
        try:
            await self.session.close("the process ended", phase="exit")
            cause = await reader
        finally:
            self.slots.close("exit", "the process ended")
            await self._clean_up()
        phase, reason = self._killed or ("exit", "it was stopped" if self._stopping else f"it ended: {cause}")
        returncode = self._child.returncode if self._child is not None else None
        self._ended.set_result(self._report(phase, reason, returncode))

    async def _clean_up(self) -> None:
        """Leave nothing behind; every step is safe to repeat."""
        if self._child is not None:
            await kill_process(self._child)
            await self.output.ended_within(self._timings.last_words_s)
            if self._guardian is not None:
                self._guardian.forget(self._child.pid)
        self.output.close()
        if self._oversight is not None:
            self._oversight.close()
        if self._carrier is not None:
            self._carrier.abort()
        if self._socket_dir is not None:
            remove_socket_dir(self._socket_dir)
            if self._guardian is not None:
                self._guardian.forget_directory(self._socket_dir)
        await self._tasks.stop()

    def _report(self, phase: Phase, reason: str, returncode: int | None, *, permanent: bool = False) -> CrashReport:
        return crash_report(
            self._spec.plugin_id,
            phase=phase,
            reason=reason,
            returncode=returncode,
            stderr=self.output.tail(REPORT_STDERR_LINES),
            command=self._command,
            search_path=build_environment(self._spec)["PATH"],
            permanent=permanent,
            confined=phase == "hello" and self.confinement is not None and "filesystem" in self.confinement.in_force,
        )

    # -- what it says and does

    def _refused(self, what: str, times: int = 1) -> None:
        self._refusals.note(self._spec.plugin_id, what, times=times)

    def _goaway_received(self, frame: Goaway) -> None:
        self._on_goaway(self, frame.reason)

    def _log_frame(self, frame: Log) -> None:
        if not self._log_rate.take():
            self._refused("log frame")
            return
        scope = self._scopes.get(frame.parent) if frame.parent is not None else None
        self._callbacks.log(self._spec.plugin_id, frame, scope)

    def _log_output(self, level: str, event: str, fields: Any) -> None:
        self._callbacks.log(self._spec.plugin_id, Log(level=level, event=event, fields=fields), None)
