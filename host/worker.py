"""Which of several processes on one port this is."""

from dataclasses import dataclass
from typing import Final

ASKED_BY_A_WORKER: Final = "x-jackfield-worker"
"""Header on the control socket: answer for yourself only."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of `workers: N`; the default is a proxy on its own."""

    number: int = 1
    """From 1."""
    count: int = 1
    port: int = 0
    """The port that the parent holds for all; 0: the configured one."""
    state_url: str = ""
    """The state server that the parent started; empty: the configured one."""
    replaces: bool = False
    """Another process had this number: the others serve until this one can."""

    @property
    def several(self) -> bool:
        return self.count > 1

    @property
    def others(self) -> tuple[int, ...]:
        """Numbers of the other workers."""
        return tuple(number for number in range(1, self.count + 1) if number != self.number)


SOLO = Worker()
