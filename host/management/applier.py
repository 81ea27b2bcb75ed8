"""Applies configurations one at a time, the newest wins, and says how the last one went (spec credentials 7.6)."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from host.config.load import LoadedConfig, Problem
from host.pipeline.settle import rfc3339
from host.tasks import TaskGroup

log = structlog.get_logger("host.management.applier")

Apply = Callable[[LoadedConfig], Awaitable[str | None]]
"""Makes a configuration the one in force. Returns why it cannot be; None when it is."""


class ConfigStatus(Struct, frozen=True, kw_only=True):
    """How the newest configuration fared. `generation` grows with each configuration that is read or saved."""

    state: Literal["applied", "applying", "failed"] = "applying"
    generation: int = 0
    applied_generation: int = 0
    """The one in force; what came after it was refused or is being applied."""
    applied_at: str = ""
    problems: Sequence[str] = ()
    """Why the newest one is not in force, with file and line."""
    content: str = ""
    """Digest of the text that was applied last, for the other workers only: the text has secrets."""

    def shown(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found if self.content else {name: value for name, value in found.items() if name != "content"}


class ConfigApplier:
    """Owns the order of configurations. `stamp` numbers them; an application with an older number does nothing."""

    def __init__(self, apply: Apply, tasks: TaskGroup, *, several: bool = False) -> None:
        """`several`: other processes number the same file, and their numbers are compared with ours."""
        self._several = several
        self.status = ConfigStatus()
        self.editing = asyncio.Lock()
        """One edit of the file at a time: held from reading it until the new content is stamped."""
        self._apply = apply
        self._tasks = tasks
        self._lock = asyncio.Lock()
        self._last_stamp = 0
        self._begun = 0
        self._pending: tuple[LoadedConfig, int] | None = None
        self._working = False
        self._idle = asyncio.Event()
        self._idle.set()

    def stamp(self) -> int:
        """The number of the configuration that is read, or was written, right now."""
        self._last_stamp = max(self._last_stamp + 1, int(time.time() * 1000) if self._several else 0)
        return self._last_stamp

    def submit(self, loaded: LoadedConfig, generation: int) -> None:
        """Apply it soon, in the background. One that still waits and is older is forgotten."""
        if self._pending is None or generation > self._pending[1]:
            self._pending = (loaded, generation)
        if not self._working:
            self._working = True
            self._idle.clear()
            self._tasks.start(self._work(), name="apply-config")

    async def apply(self, loaded: LoadedConfig, generation: int) -> bool:
        """Apply it now, after the one that is being applied; whether it is in force (an older one never is)."""
        async with self._lock:
            if generation <= self._begun:
                log.info("config.superseded", generation=generation, newest=self._begun)
                return False
            self._begun = generation
            self._note("applying", generation)
            problem: str | None = "it could not be applied; the log says why"
            try:
                problem = await self._apply(loaded)
            finally:
                self._note("failed" if problem else "applied", generation, [problem] if problem else ())
                if problem is None and self._several:
                    digest = hashlib.sha256(loaded.text.encode("utf-8", "surrogatepass")).hexdigest()
                    self.status = replace(self.status, content=digest)
            return problem is None

    async def settled(self) -> None:
        """Wait until everything that was submitted so far is applied, or was not."""
        await self._idle.wait()

    def rejected(self, problems: Sequence[Problem | str], generation: int) -> None:
        """A configuration could not even be read."""
        self._note("failed", generation, [str(problem) for problem in problems])

    async def _work(self) -> None:
        try:
            while self._pending is not None:
                (loaded, generation), self._pending = self._pending, None
                await self.apply(loaded, generation)
        finally:
            self._working = False
            self._idle.set()

    def _note(
        self, state: Literal["applied", "applying", "failed"], generation: int, problems: Sequence[str] = ()
    ) -> None:
        now = self.status
        if state == "applied":
            now = replace(now, applied_generation=generation, applied_at=rfc3339(time.time()))
        if generation >= now.generation:
            now = replace(now, state=state, generation=generation, problems=tuple(problems))
        self.status = now
