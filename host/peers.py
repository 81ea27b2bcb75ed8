"""How one worker asks the others: over their control sockets."""

import asyncio
import http.client
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from host.control import ask
from host.management.peers import Answer, PeerAnswers
from host.worker import Worker

log = structlog.get_logger("host.peers")

TIMEOUT_S: Final = 10.0
CHANGE_TIMEOUT_S: Final = 30.0
"""For what makes the other one work: a plugin that is loaded anew may take its time to start."""


class ControlPeers:
    """The other workers of the proxy on this configuration file."""

    def __init__(self, config_path: Path, worker: Worker) -> None:
        self._config_path = config_path
        self._worker = worker

    @property
    def number(self) -> int:
        return self._worker.number

    async def ask(self, method: str, path: str, body: Any = None) -> PeerAnswers:
        """Ask all of them at once. One that cannot be asked is left out and logged; one that takes too long is status
        504."""
        found = await asyncio.gather(*(self._ask(number, method, path, body) for number in self._worker.others))
        return [answer for answer in found if answer is not None]

    async def _ask(self, number: int, method: str, path: str, body: Any) -> Answer | None:
        timeout_s = TIMEOUT_S if method == "GET" else CHANGE_TIMEOUT_S
        try:
            found = await asyncio.to_thread(
                ask, self._config_path, method, path, body=body, timeout_s=timeout_s, worker=number
            )
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            log.warning("worker.unreachable", worker=number, reason=str(error) or type(error).__name__)
            return None
        if found is None:
            log.warning("worker.unreachable", worker=number, reason="it does not run")
            return None
        if found[0] == 504 and method == "GET":
            # Whoever asked for a change is told; of an answer nobody would notice that a part is missing.
            log.warning("worker.unreachable", worker=number, reason=str(found[1].get("error", "")))
        return Answer(number, *found)


def peers_of(config_path: Path, worker: Worker) -> ControlPeers | None:
    """The other workers; None for a proxy on its own."""
    return ControlPeers(config_path, worker) if worker.several else None
