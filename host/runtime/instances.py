"""Several processes of one plugin behind one handle: all hook calls of one client request go to the same one."""

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any, Final

from host.runtime.generation import ManagedHandle
from host.runtime.handle import PluginHandle, PluginState, Reply
from host.runtime.scope import CallScope, RequestScope
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse

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
    PluginState.DISCOVERED,
)


class InstanceSet:
    """A `ManagedHandle` over at least one member. Its state is that of its best member."""

    def __init__(self, members: Sequence[ManagedHandle]) -> None:
        self._members: Final = tuple(members)
        self._turn = 0

    @property
    def plugin_id(self) -> str:
        return self._members[0].plugin_id

    @property
    def generation(self) -> int:
        return self._members[0].generation

    @property
    def state(self) -> PluginState:
        return self._best().state

    @property
    def hello(self) -> Any:
        return next((member.hello for member in self._members if member.hello is not None), None)

    @property
    def registration(self) -> RegisterResponse | None:
        return next((member.registration for member in self._members if member.registration is not None), None)

    @property
    def last_error(self) -> str:
        return next((member.last_error for member in self._members if member.last_error), "")

    @property
    def restarts(self) -> int:
        return sum(getattr(member, "restarts", 0) for member in self._members)

    @property
    def pid(self) -> int | None:
        """Of the first process that runs."""
        pids = (getattr(member, "pid", None) for member in self._members)
        return next((pid for pid in pids if pid is not None), None)

    def stderr_tail(self) -> Sequence[str]:
        return self._worst().stderr_tail()

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        """As `PluginHandle.call`, at the request's member; at another one while that is not ready."""
        return await self._member_for(scope).call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)

    async def start(self) -> None:
        """Start all members; raises the first problem when none of them became ready."""
        results = await asyncio.gather(*(member.start() for member in self._members), return_exceptions=True)
        problems = [result for result in results if isinstance(result, BaseException)]
        if len(problems) == len(self._members):
            raise problems[0]

    async def reconfigure(self, request: RegisterRequest) -> bool:
        """Reconfigure all members; raises the first refusal. They ran the same code, so they answer the same."""
        answers = [await member.reconfigure(request) for member in self._members]
        return all(answers)

    async def drain_and_stop(self, *, drain_s: float, successor: PluginHandle | None = None) -> None:
        await asyncio.gather(*(member.drain_and_stop(drain_s=drain_s, successor=successor) for member in self._members))

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self._members))

    def _best(self) -> ManagedHandle:
        return min(self._members, key=lambda member: _BEST_FIRST.index(member.state))

    def _worst(self) -> ManagedHandle:
        return max(self._members, key=lambda member: _BEST_FIRST.index(member.state))

    def _member_for(self, scope: CallScope) -> ManagedHandle:
        if scope.request is None:
            self._turn += 1
            number = self._turn
        else:
            number = zlib.crc32(_root(scope.request).request_id.encode())
        chosen = self._members[number % len(self._members)]
        if chosen.state is PluginState.READY:
            return chosen
        ready = [member for member in self._members if member.state is PluginState.READY]
        return ready[number % len(ready)] if ready else chosen


def _root(request: RequestScope) -> RequestScope:
    while request.parent is not None:
        request = request.parent
    return request
