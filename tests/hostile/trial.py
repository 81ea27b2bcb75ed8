"""Runs the attempts and says of each whether it was refused and seen."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host.runtime.confinement import this_kernel
from host.runtime.refusals import Refusals
from tests.hostile.archives import ARCHIVES, try_archive
from tests.hostile.stage import SECRET, Stage, hostile_stage
from tests.hostile.table import ANSWER, ATTEMPTS, AUDIT, Attempt

REPORT_WAIT_S: Final = 60.0
NOT_ENFORCEABLE: Final = "not enforceable"
BREACH: Final = "BREACH"
REFUSED: Final = "refused"
_REFUSALS: Final = frozenset(
    {"EPERM", "EACCES", "EXDEV", "ENOSYS", "SIGSYS", "permission_denied", "HTTP 401", "HTTP 403", "hidden", "counted"}
)
"""Everything else is a kernel or a host that tried, and found something wrong."""


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt and what came of it. `verdict` is one of the three words."""

    name: str
    guard: str
    verdict: str
    outcome: str
    reported: str
    problem: str = ""


class Watch:
    """Waits until the host has counted something; what it refuses on another pipe is counted a moment later."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._noted = asyncio.Event()
        note = refusals.note

        def noting(plugin_id: str, what: str, **more: Any) -> None:
            note(plugin_id, what, **more)
            self._noted.set()

        refusals.note = noting  # type: ignore[method-assign]

    def count(self, plugin_id: str, what: str) -> int:
        return self._refusals.of(plugin_id).get(what, 0)

    async def more_than(self, count: int, plugin_id: str, what: str) -> bool:
        """Whether it was counted, now or in a moment."""
        try:
            async with asyncio.timeout(REPORT_WAIT_S):
                while self.count(plugin_id, what) <= count:
                    self._noted.clear()
                    await self._noted.wait()
        except TimeoutError:
            return False
        return True


async def attempt_rows() -> AsyncIterator[Row]:
    """All attempts against one proxy, then what must still be as it was."""
    async with hostile_stage() as stage:
        watch = Watch(stage.running.proxy.callbacks.refusals)
        victim = stage.status("victim").pid
        before = Path(stage.config_file).read_bytes()
        for attempt in ATTEMPTS:
            if not attempt.only_x86 or platform.machine() == "x86_64":
                yield await _row(attempt, stage, watch)
        for row in _aftermath(stage, victim, before):
            yield row
        yield await _in_the_metrics(stage)
    for name in ARCHIVES:
        error = await asyncio.to_thread(try_archive, name)
        yield Row(f"install {name}", "host", REFUSED if error else BREACH, error[:60], "the command's error")


async def _row(attempt: Attempt, stage: Stage, watch: Watch) -> Row:
    counted = watch.count(attempt.by, attempt.reported)
    if attempt.dies:
        return await _deadly(attempt, stage)
    found = await stage.attack(attempt.by, attempt.attack, attempt.args(stage))
    outcome = str(next(iter(found.values())))[:60]
    missing = _missing(stage, attempt)
    if "got" in found or outcome not in _REFUSALS:
        verdict = NOT_ENFORCEABLE if missing else BREACH
        return Row(attempt.name, attempt.guard, verdict, f"{next(iter(found))} {outcome}", "-", missing)
    return await _reported(attempt, stage, watch, counted, outcome)


async def _deadly(attempt: Attempt, stage: Stage) -> Row:
    """An attack that its process does not survive."""
    pid = stage.status(attempt.by).pid
    assert pid is not None
    dead = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(pidfd, dead.set)
    try:
        found = await stage.attack(attempt.by, attempt.attack, attempt.args(stage))
        async with asyncio.timeout(REPORT_WAIT_S):
            await dead.wait()
    except TimeoutError:
        return Row(attempt.name, attempt.guard, BREACH, "it lives on", "-")
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
    verdict = REFUSED if "died" in found else BREACH
    return Row(attempt.name, attempt.guard, verdict, "its process is ended", "log plugin.died")


async def _reported(attempt: Attempt, stage: Stage, watch: Watch, counted: int, outcome: str) -> Row:
    row = (attempt.name, attempt.guard, REFUSED, outcome)
    if attempt.reported in ("", ANSWER):
        return Row(*row, attempt.reported or "nothing to report")
    if attempt.reported == AUDIT:
        where = f"{AUDIT} (where auditing is on)" if this_kernel().landlock >= 7 else "nowhere: Landlock before 7"
        return Row(*row, where)
    if not this_kernel().seccomp_notify and attempt.guard in ("syscalls", "network"):
        return Row(*row, "nowhere: no notification in this kernel")
    seen = await watch.more_than(counted, attempt.by, attempt.reported)
    return Row(*row, f"log plugin.refused, counter {attempt.reported!r}", "" if seen else "it was not counted")


async def _in_the_metrics(stage: Stage) -> Row:
    async with stage.client.get(f"{stage.running.url}/metrics") as response:
        text = await response.text()
    count = stage.status("hostile").refused.get("host.model.execute without permission")
    line = f'jackfield_plugin_refused_total{{plugin="hostile",what="host.model.execute without permission"}} {count}.0'
    return Row("what was refused is in the metrics", "all", REFUSED if line in text else BREACH, "", "/metrics")


def _missing(stage: Stage, attempt: Attempt) -> str:
    """Why the kernel cannot refuse this, if so."""
    report = stage.status(attempt.by).confinement
    assert report is not None
    return report.missing.get(attempt.guard, "")


def _aftermath(stage: Stage, victim: int | None, config: bytes) -> list[Row]:
    """What the attacks were after, looked at from outside."""
    checks: Mapping[str, Callable[[], bool]] = {
        "the victim still runs": lambda: stage.status("victim").pid == victim and stage.status("victim").restarts == 0,
        "the configuration is untouched": lambda: Path(stage.config_file).read_bytes() == config,
        "its mode is as it was": lambda: Path(stage.config_file).stat().st_mode & 0o777 != 0o777,
        "the host's memory is as it was": lambda: stage.memory.raw == SECRET + b"\0",
        "no secret went to the second host": lambda: stage.upstreams.secrets["second"] == [],
        "the secret went to the first host once": lambda: stage.upstreams.secrets["first"] == ["Bearer sk-evil"],
        "nothing was left in /tmp": lambda: not os.path.exists("/tmp/jackfield-hostile"),
    }
    return [
        Row(name, "all", REFUSED if check() else BREACH, "", "looked at afterwards") for name, check in checks.items()
    ]
