"""One count of wrong keys over all workers and nodes: whoever tries them here and there is banned everywhere."""

import platform
from typing import Final

import msgspec
import structlog

from host.management.failures import FailureTable
from host.pipeline.access import is_loopback_name
from host.state.store import UNREADABLE, SharedState
from host.tasks import TaskGroup

log = structlog.get_logger("host.management.shared_failures")

TOPIC: Final = "management-key"


class _Told(msgspec.Struct, frozen=True, omit_defaults=True):
    address: str
    succeeded: bool = False
    machine: str = ""
    """Whose loopback address it is; empty for one that is the same everywhere."""


class SharedFailures(FailureTable):
    """Tells the others, best effort; without any, or while they cannot be told, each counts alone."""

    def __init__(self, shared: SharedState, tasks: TaskGroup, *, machine: str = "") -> None:
        """Before the shared state is started. `machine`: this one's name."""
        super().__init__()
        self._shared: Final = shared
        self._tasks: Final = tasks
        self._machine: Final = machine or platform.node()
        shared.subscribe(TOPIC, self._heard)

    def failed(self, address: str) -> None:
        """One failure more, here and elsewhere."""
        super().failed(address)
        self._tell(_Told(address, machine=self._machine_of(address)))

    def succeeded(self, address: str) -> bool:
        """Its failures are forgotten, here and elsewhere."""
        if not super().succeeded(address):
            return False
        self._tell(_Told(address, succeeded=True, machine=self._machine_of(address)))
        return True

    def _machine_of(self, address: str) -> str:
        return self._machine if not address or is_loopback_name(address) else ""

    def _tell(self, told: _Told) -> None:
        self._tasks.start(self._shared.publish(TOPIC, msgspec.json.encode(told)), name="tell-failures")

    def _heard(self, message: bytes) -> None:
        try:
            told = msgspec.json.decode(message, type=_Told)
        except UNREADABLE as error:
            log.warning("management.failures_unreadable", reason=str(error))
            return
        if told.machine not in ("", self._machine):
            return
        if told.succeeded:
            super().succeeded(told.address)
        else:
            super().failed(told.address)
