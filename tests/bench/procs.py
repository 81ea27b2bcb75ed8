"""Starting, watching and stopping the processes of a benchmark, and reading what the kernel knows about them."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PROXY_CORE: Final = 0
LOAD_CORE: Final = 1
POLL_INTERVAL_S: Final = 0.004


class BenchError(Exception):
    """The harness itself cannot go on; the message is for the person at the terminal."""


class ContestantError(Exception):
    """One contestant did not start or answered wrongly; the others can still be measured."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants that are alive, itself first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat_fields(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        waiting += children.get(current, [])
    return found


def _stat_fields(pid: int) -> list[str]:
    """/proc/<pid>/stat from the state on (the name before it may hold anything), empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def is_running(pid: int) -> bool:
    """Whether the process exists and is not only waiting to be reaped."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in "ZX"


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of these processes so far, all their threads included."""
    ticks = 0
    for pid in pids:
        fields = _stat_fields(pid)
        ticks += int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / TICKS_PER_S


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory of these processes together, shared pages counted in each."""
    total_kb = 0
    for pid in pids:
        try:
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        except OSError:
            continue
        total_kb += int(found.group(1)) if found else 0
    return total_kb / 1024


def has_mapped(pid: int, name_part: str) -> bool:
    """Whether the process has loaded a library whose path contains the text."""
    return name_part in Path(f"/proc/{pid}/maps").read_text()


def core_busy_s(core: int) -> float:
    """Time since boot that this core was not idle, for whomever."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
            return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
    raise BenchError(f"this machine has no core {core}; the benchmark needs two")


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without what would change a contestant: HTTP proxies and Python's switches."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH", "PEERS"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped and "proxy" not in key.lower()}
    return kept | dict(extra or {})


@dataclass(kw_only=True)
class Server:
    """A process started by the benchmark, in a session of its own and pinned to one core."""

    name: str
    log_path: Path
    process: subprocess.Popen[bytes]
    started_at: float
    leftovers: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The process itself; its plugins and workers are found with process_tree."""
        return self.process.pid

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it printed, for an error message."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float) -> float:
        """Poll until ready; returns the seconds since the start.

        Raises ContestantError when the process exits or time is over.
        """
        deadline = self.started_at + timeout_s
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise ContestantError(f"{self.name} exited with {self.process.returncode}:\n{self.log_tail()}")
            if is_ready():
                return time.perf_counter() - self.started_at
            time.sleep(POLL_INTERVAL_S)
        raise ContestantError(f"{self.name} was not ready after {timeout_s:g} s:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the process and everything below it; what survives TERM by 5 s is killed and noted in `leftovers`."""
        members = process_tree(self.pid)
        self._signal([self.pid], signal.SIGTERM)
        self._wait_gone([self.pid], timeout_s=5.0)
        self._wait_gone(members, timeout_s=1.0)
        self.leftovers = [pid for pid in members if is_running(pid)]
        self._signal(self.leftovers, signal.SIGKILL)
        self.process.wait(timeout=10)

    def _signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def _wait_gone(self, pids: Sequence[int], *, timeout_s: float) -> None:
        deadline = time.perf_counter() + timeout_s
        while time.perf_counter() < deadline:
            self.process.poll()
            if not any(is_running(pid) for pid in pids):
                return
            time.sleep(0.02)


@dataclass(kw_only=True)
class Stable:
    """Owns every process of the benchmark, so that one place can stop them all."""

    leash: Path
    log_dir: Path
    servers: list[Server] = field(default_factory=list)

    def start(
        self, name: str, argv: Sequence[str], *, core: int, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> Server:
        """Start a server on a core; its output goes to a log file named after it."""
        log_path = self.log_dir / f"{name}.log"
        with log_path.open("wb") as log:
            started_at = time.perf_counter()
            process = subprocess.Popen(
                [str(self.leash), str(core), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=child_environment(environment),
                start_new_session=True,
            )
        server = Server(name=name, log_path=log_path, process=process, started_at=started_at)
        self.servers.append(server)
        return server

    def stop(self, server: Server) -> None:
        """Stop one server and forget it; says so when it left processes behind."""
        self.servers.remove(server)
        server.stop()
        if server.leftovers:
            print(f"  NOTE {server.name} left processes behind, killed: {server.leftovers}", flush=True)

    def stop_all(self) -> None:
        """Stop everything, last started first."""
        for server in reversed(list(self.servers)):
            self.stop(server)
