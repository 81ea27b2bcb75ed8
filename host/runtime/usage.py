"""What a plugin process uses: its memory now, its share of a processor over the last half minute. Linux only."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

CPU_WINDOW_S: Final = 30.0


class Sample(NamedTuple):
    """One look at a process."""

    rss_bytes: int
    cpu_s: float
    """Since its start, user and system."""


class UsageMeter:
    """Samples one process. RLIMIT_DATA does not count shared and file-backed memory, this does."""

    def __init__(
        self,
        pid: int,
        *,
        interval_s: float,
        memory_limit_bytes: int | None,
        kill: Callable[[str], None],
        read: Callable[[int], Sample | None] | None = None,
    ) -> None:
        self.rss_bytes: int | None = None
        self._pid = pid
        self._interval_s = interval_s
        self._limit_bytes = memory_limit_bytes
        self._kill = kill
        self._read = read or read_usage
        self._cpu: deque[tuple[float, float]] = deque()

    @property
    def cpu_share(self) -> float | None:
        """1.0 is one processor in full; None before the second sample."""
        if len(self._cpu) < 2:
            return None
        (first_s, first_cpu_s), (last_s, last_cpu_s) = self._cpu[0], self._cpu[-1]
        return (last_cpu_s - first_cpu_s) / (last_s - first_s) if last_s > first_s else None

    async def run(self) -> None:
        """Sample until the process is gone or uses more memory than it may."""
        loop = asyncio.get_running_loop()
        while (sample := self._read(self._pid)) is not None:
            self.take(sample, loop.time())
            if self._limit_bytes is not None and sample.rss_bytes > self._limit_bytes:
                used, allowed = sample.rss_bytes >> 20, self._limit_bytes >> 20
                self._kill(f"it uses {used} MB of memory, its limit is {allowed} MB")
                return
            await asyncio.sleep(self._interval_s)

    def take(self, sample: Sample, now_s: float) -> None:
        """Take in one sample."""
        self.rss_bytes = sample.rss_bytes
        self._cpu.append((now_s, sample.cpu_s))
        while len(self._cpu) > 2 and now_s - self._cpu[1][0] >= CPU_WINDOW_S:
            self._cpu.popleft()


def read_usage(pid: int) -> Sample | None:
    """Memory and processor time of a process; None when it is gone or the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        resident_pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
        # The name in parentheses may hold anything, spaces and parentheses included.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, IndexError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return Sample(resident_pages * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK"))
