"""Makes the handle of a generation: an object in the host, or a process."""

from collections.abc import Callable, Mapping
from typing import Protocol

import pluggy

from host.runtime.callbacks import HostCallbacks
from host.runtime.generation import ManagedHandle
from host.runtime.hooks import new_plugin_manager
from host.runtime.inprocess import InProcessPlugin
from host.runtime.loopwatch import LoopWatch
from host.runtime.plan import Plan
from host.tasks import TaskGroup
from pluginabi.payloads.lifecycle import RegisterRequest

HandleChanged = Callable[[ManagedHandle], None]
"""Told when a handle changed its state or registration by itself."""


class ProcessFactory(Protocol):
    """Makes the handle of a plugin process; `register` is asked at every start."""

    def __call__(
        self, plan: Plan, *, generation: int, register: Callable[[], RegisterRequest], changed: HandleChanged
    ) -> ManagedHandle: ...


class Carriers:
    """One per gateway: everything that generations share."""

    def __init__(
        self,
        *,
        callbacks: HostCallbacks,
        tasks: TaskGroup,
        process: ProcessFactory,
        watch: LoopWatch | None = None,
    ) -> None:
        self._callbacks = callbacks
        self._tasks = tasks
        self._process = process
        self._watch = watch if watch is not None else LoopWatch()
        self._manager: pluggy.PluginManager = new_plugin_manager()

    def make(
        self, plan: Plan, *, generation: int, register: Callable[[], RegisterRequest], changed: HandleChanged
    ) -> ManagedHandle:
        """A handle that is not started yet."""
        if plan.policy.carrier == "process":
            return self._process(plan, generation=generation, register=register, changed=changed)
        if not plan.bundled:
            self._watch.start()
        return InProcessPlugin(
            plan.source,
            generation=generation,
            register=register,
            manager=self._manager,
            callbacks=self._callbacks,
            watch=self._watch,
            tasks=self._tasks,
            max_inflight=plan.policy.max_inflight,
            check=plan.check,
        )

    def stop(self) -> None:
        """Nothing is made any more; all plugins have stopped."""
        self._watch.stop()


def attachments(environment: Mapping[str, str]) -> dict[str, str]:
    """Plugin id -> address of a process somebody else runs, from `JACKFIELD_ATTACH=<id>=unix:/path,…`."""
    pairs = (part.partition("=") for part in environment.get("JACKFIELD_ATTACH", "").split(",") if part.strip())
    return {plugin_id.strip(): address.strip() for plugin_id, _, address in pairs if address.strip()}
