"""State of a single node: in memory, written to a file when there is one. The embedded default."""

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from host.state.memory import MemoryStore
from host.state.store import UNREADABLE, StateProblem, StateStore
from host.tasks import TaskGroup

log = structlog.get_logger("host.state.local")

WRITE_DELAY_S: Final = 1.0
"""Changes are collected this long; what a crash may lose."""
RETRY_S: Final = 5.0
"""After a write that failed."""


class _Row(msgspec.Struct, frozen=True, array_like=True):
    namespace: str
    key: str
    value: bytes
    expires_at_s: float | None
    """Unix seconds: it has to mean the same after a restart."""


class LocalState:
    """A `SharedState` shared with nobody. `path` None: gone at exit."""

    def __init__(self, path: Path | None, *, memory: MemoryStore | None = None) -> None:
        self.node: Final = secrets.token_hex(4)
        self.available: Final = True
        self.problem: Final[StateProblem] = ""
        self.nodes: Final = 1
        self.usage: Final = None
        self._path = path
        self._tasks = TaskGroup("state")
        self._memory = memory or MemoryStore()
        self._pending: asyncio.TimerHandle | None = None
        self._writing = asyncio.Lock()
        self._stopped = False
        self.store: StateStore = self._memory if path is None else _Noting(self._memory, self._changed)

    def wall_s(self) -> float:
        return time.time()

    async def publish(self, topic: str, message: bytes) -> bool:
        return True

    def subscribe(self, topic: str, handler: Callable[[bytes], None]) -> None: ...

    def on_available(self, action: Callable[[], None]) -> None:
        action()

    async def start(self) -> None:
        """Read the file; one that cannot be read is reported, set aside under another name, and counts as empty."""
        if self._path is None:
            return
        try:
            rows = msgspec.msgpack.decode(self._path.read_bytes(), type=list[_Row])
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("state.unreadable", path=str(self._path), reason=str(error))
            return
        except UNREADABLE as error:
            aside = self._path.with_suffix(".broken")
            os.replace(self._path, aside)
            log.error("state.unreadable", path=str(self._path), reason=str(error), kept_as=str(aside))
            return
        now_s = time.time()
        for row in rows:
            left_s = None if row.expires_at_s is None else row.expires_at_s - now_s
            if left_s is None or left_s > 0:
                await self._memory.set(row.namespace, row.key, row.value, ttl_s=left_s)

    async def stop(self) -> None:
        # What is being written right now may turn out not to be.
        await self._tasks.join()
        self._stopped = True
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
            await self._write()

    def _changed(self, delay_s: float | None = None) -> None:
        if self._pending is None and not self._stopped:
            delay_s = WRITE_DELAY_S if delay_s is None else delay_s
            self._pending = asyncio.get_running_loop().call_later(delay_s, self._due)

    def _due(self) -> None:
        self._pending = None
        self._tasks.start(self._write(), name="write-state")

    async def _write(self) -> None:
        if self._path is None:
            return
        async with self._writing:
            now_s = time.time()
            rows = [
                _Row(namespace, key, value, None if left_s is None else now_s + left_s)
                for namespace, key, value, left_s in self._memory.snapshot()
            ]
            try:
                await asyncio.to_thread(_replace, self._path, rows)
            except OSError as error:
                log.error("state.not_written", path=str(self._path), reason=str(error))
                self._changed(RETRY_S)


class _Noting:
    """The memory store, telling when something changed."""

    def __init__(self, store: MemoryStore, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self.get = store.get
        self.items = store.items

    async def set(
        self, namespace: str, key: str, value: bytes, *, ttl_s: float | None = None, only_if_absent: bool = False
    ) -> bool:
        stored = await self._store.set(namespace, key, value, ttl_s=ttl_s, only_if_absent=only_if_absent)
        if stored:
            self._changed()
        return stored

    async def delete(self, namespace: str, key: str) -> bool:
        found = await self._store.delete(namespace, key)
        if found:
            self._changed()
        return found

    async def expire(self, namespace: str, key: str, ttl_s: float | None) -> bool:
        found = await self._store.expire(namespace, key, ttl_s)
        if found:
            self._changed()
        return found

    async def increment(self, namespace: str, key: str, by: int = 1, *, ttl_s: float | None = None) -> int:
        value = await self._store.increment(namespace, key, by, ttl_s=ttl_s)
        self._changed()
        return value


def _replace(path: Path, rows: list[_Row]) -> None:
    """Write beside and rename, readable by the owner only. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.msgpack.encode(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        os.unlink(staged)
        raise
