"""Several processes of one plugin behind one handle; a request stays with one of them."""

import asyncio
import itertools
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from host.runtime.confinement import ConfinementReport
from host.runtime.diagnostics import PluginStartError
from host.runtime.handle import PluginHandle, PluginState, Reply
from host.runtime.process import ProcessPlugin
from host.runtime.scope import CallScope
from pluginabi.errors import AbiError
from pluginabi.frames import Hello
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse

STRAYED_MAX: Final = 4096
"""Requests remembered because their own process was not ready when they came."""

_BEST_FIRST: Final = (
    PluginState.READY,
    PluginState.UNRESPONSIVE,
    PluginState.REGISTERING,
    PluginState.HANDSHAKING,
    PluginState.STARTING,
    PluginState.BACKOFF,
    PluginState.DRAINING,
    PluginState.FAILED,
    PluginState.STOPPED,
)


class InstanceSet:
    """A `PluginHandle` over N processes of the same generation; ready when one of them is.

    All calls of one client request, nested requests included, go to the process that the id of the outermost request
    names: a plugin may keep what it learned in memory. Where that process is not ready when the request first comes,
    another one serves the whole request. Calls outside of requests go to the processes in turn.
    """

    def __init__(self, instances: Sequence[ProcessPlugin]) -> None:
        self.instances: Final = tuple(instances)
        self.plugin_id = instances[0].plugin_id
        self.generation: Final = instances[0].generation
        self._turn = itertools.count()
        self._strayed: OrderedDict[str, ProcessPlugin] = OrderedDict()

    @property
    def state(self) -> PluginState:
        """The best one's."""
        states = {instance.state for instance in self.instances}
        return next(state for state in _BEST_FIRST if state in states)

    @property
    def hello(self) -> Hello | None:
        return self._first.hello

    @property
    def registration(self) -> RegisterResponse | None:
        return self._first.registration

    @property
    def last_error(self) -> str:
        return next((instance.last_error for instance in self.instances if instance.last_error), "")

    @property
    def pid(self) -> int | None:
        return self._first.pid

    @property
    def rss_bytes(self) -> int | None:
        """Of all of them together."""
        known = [instance.rss_bytes for instance in self.instances if instance.rss_bytes is not None]
        return sum(known) if known else None

    @property
    def cpu_share(self) -> float | None:
        """Of all of them together; 1.0 is one processor."""
        known = [instance.cpu_share for instance in self.instances if instance.cpu_share is not None]
        return sum(known) if known else None

    @property
    def confinement(self) -> ConfinementReport | None:
        """The same for all."""
        return self._first.confinement

    @property
    def restarts(self) -> int:
        return sum(instance.restarts for instance in self.instances)

    @property
    def in_flight(self) -> int:
        return sum(instance.in_flight for instance in self.instances)

    @property
    def stray_lines(self) -> int:
        return sum(instance.stray_lines for instance in self.instances)

    def stderr_tail(self, lines: int = 40) -> list[str]:
        """The last lines of each process, one after the other."""
        return [line for instance in self.instances for line in instance.stderr_tail(lines)]

    @property
    def _first(self) -> ProcessPlugin:
        """One that has said hello, if there is one."""
        return next((instance for instance in self.instances if instance.hello is not None), self.instances[0])

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        """See `PluginHandle.call`."""
        instance = self.instance_for(scope)
        return await instance.call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)

    def instance_for(self, scope: CallScope) -> ProcessPlugin:
        """The process that serves this scope's request."""
        request = scope.request
        if request is None:
            return self._ready_from(next(self._turn) % len(self.instances))
        while request.parent is not None:
            request = request.parent
        strayed = self._strayed.get(request.request_id)
        if strayed is not None:
            if strayed.available:
                return strayed
            del self._strayed[request.request_id]
        at = zlib.crc32(request.request_id.encode()) % len(self.instances)
        chosen = self._ready_from(at)
        if chosen is not self.instances[at]:
            self._strayed[request.request_id] = chosen
            if len(self._strayed) > STRAYED_MAX:
                self._strayed.popitem(last=False)
        return chosen

    def _ready_from(self, at: int) -> ProcessPlugin:
        """The first available process from this place on; the one at it when none is."""
        ring = (*self.instances[at:], *self.instances[:at])
        return next((instance for instance in ring if instance.available), ring[0])

    async def start(self) -> None:
        """Start all; returns when each is ready or was not. Raises PluginStartError when none is ready."""
        outcomes = await asyncio.gather(*(instance.start() for instance in self.instances), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if not isinstance(error, PluginStartError) or len(errors) == len(outcomes):
                raise error

    async def reconfigure(self, request: RegisterRequest) -> bool:
        """Hand over another configuration to all; False when new processes are needed so that all have the same.

        Raises what the first process to be asked answered; then none has changed.
        """
        first, *others = self.instances
        if not await first.reconfigure(request):
            return False
        outcomes = await asyncio.gather(*(other.reconfigure(request) for other in others), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, AbiError):
                raise outcome
        return all(outcome is True for outcome in outcomes)

    async def drain_and_stop(
        self, *, drain_s: float, reason: str = "stopped", successor: PluginHandle | None = None
    ) -> None:
        """See `ProcessPlugin.drain_and_stop`."""
        work = (each.drain_and_stop(drain_s=drain_s, reason=reason, successor=successor) for each in self.instances)
        await asyncio.gather(*work)

    async def stop(self) -> None:
        """See `ProcessPlugin.stop`."""
        await asyncio.gather(*(instance.stop() for instance in self.instances))

    async def reset(self) -> None:
        """See `ProcessPlugin.reset`."""
        await asyncio.gather(*(instance.reset() for instance in self.instances))
