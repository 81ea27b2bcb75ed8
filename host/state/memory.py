"""State in this process's memory: the default, gone at exit."""

import heapq
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from host.state.store import NotAnInteger, StateFull

MAX_KEYS_PER_NAMESPACE: Final = 100_000
MAX_BYTES_PER_NAMESPACE: Final = 64 * 1024 * 1024
_ENTRY_OVERHEAD_BYTES: Final = 200
"""What a key costs besides its own and its value's bytes; small values must not get around the byte limit."""

_MAX_INTEGER: Final = 2**63 - 1
_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
"""As servers have them: a plugin must not find out that it was moved to one."""


class _Entry:
    """A value and when it ends."""

    __slots__ = ("expires_at_s", "value")

    def __init__(self, value: bytes, expires_at_s: float | None) -> None:
        self.value = value
        self.expires_at_s = expires_at_s


class _Namespace:
    """The keys of one owner, their total size, and a queue of what expires next."""

    __slots__ = ("entries", "expiries", "size_bytes")

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}
        self.expiries: list[tuple[float, str]] = []
        self.size_bytes = 0

    def drop(self, key: str) -> None:
        entry = self.entries.pop(key)
        self.size_bytes -= _cost(key, entry.value)

    def purge(self, now_s: float) -> None:
        """Remove what has ended. Queue entries of replaced or prolonged values are recognised and skipped."""
        while self.expiries and self.expiries[0][0] <= now_s:
            _, key = heapq.heappop(self.expiries)
            entry = self.entries.get(key)
            if entry is not None and entry.expires_at_s is not None and entry.expires_at_s <= now_s:
                self.drop(key)

    def note_expiry(self, key: str, expires_at_s: float | None) -> None:
        if expires_at_s is None:
            return
        heapq.heappush(self.expiries, (expires_at_s, key))
        if len(self.expiries) > 64 + 2 * len(self.entries):
            # Rewriting one key with a time limit must not grow the queue for ever.
            self.expiries = [
                (entry.expires_at_s, name) for name, entry in self.entries.items() if entry.expires_at_s is not None
            ]
            heapq.heapify(self.expiries)


class MemoryStore:
    """A `StateStore` in memory, for one event loop. `clock` gives monotonic seconds."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = MAX_KEYS_PER_NAMESPACE,
        max_bytes: int = MAX_BYTES_PER_NAMESPACE,
    ) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._namespaces: dict[str, _Namespace] = {}

    async def get(self, namespace: str, key: str) -> bytes | None:
        space = self._live(namespace)
        entry = space.entries.get(key) if space is not None else None
        return entry.value if entry is not None else None

    async def set(
        self, namespace: str, key: str, value: bytes, *, ttl_s: float | None = None, only_if_absent: bool = False
    ) -> bool:
        """Raises StateFull when the namespace would grow past its bounds; the old value stays then."""
        space = self._open(namespace)
        if only_if_absent and key in space.entries:
            return False
        self._put(namespace, space, key=key, value=value, expires_at_s=self._end(ttl_s))
        return True

    async def delete(self, namespace: str, key: str) -> bool:
        space = self._live(namespace)
        if space is None or key not in space.entries:
            return False
        space.drop(key)
        if not space.entries:
            del self._namespaces[namespace]
        return True

    async def expire(self, namespace: str, key: str, ttl_s: float | None) -> bool:
        space = self._live(namespace)
        entry = space.entries.get(key) if space is not None else None
        if space is None or entry is None:
            return False
        entry.expires_at_s = self._end(ttl_s)
        space.note_expiry(key, entry.expires_at_s)
        return True

    async def increment(self, namespace: str, key: str, by: int = 1, *, ttl_s: float | None = None) -> int:
        """Raises NotAnInteger, and StateFull when the key is new and does not fit."""
        space = self._open(namespace)
        entry = space.entries.get(key)
        if entry is None:
            value, expires_at_s = by, self._end(ttl_s)
        else:
            value = int(entry.value) + by if _INTEGER.fullmatch(entry.value) else _MAX_INTEGER + 1
            if not all(-_MAX_INTEGER - 1 <= it <= _MAX_INTEGER for it in (value - by, value)):
                raise NotAnInteger(f"the value of {key!r} is no integer, or none with this added")
            expires_at_s = entry.expires_at_s
        self._put(namespace, space, key=key, value=b"%d" % value, expires_at_s=expires_at_s)
        return value

    async def items(self, namespace: str) -> Mapping[str, bytes]:
        space = self._live(namespace)
        return {key: entry.value for key, entry in space.entries.items()} if space is not None else {}

    def snapshot(self) -> list[tuple[str, str, bytes, float | None]]:
        """Namespace, key, value and remaining seconds of everything that has not ended."""
        now_s = self._clock()
        rows: list[tuple[str, str, bytes, float | None]] = []
        for namespace in tuple(self._namespaces):
            space = self._live(namespace)
            for key, entry in space.entries.items() if space is not None else ():
                left_s = entry.expires_at_s - now_s if entry.expires_at_s is not None else None
                rows.append((namespace, key, entry.value, left_s))
        return rows

    def _live(self, namespace: str) -> _Namespace | None:
        space = self._namespaces.get(namespace)
        if space is not None:
            space.purge(self._clock())
        return space

    def _open(self, namespace: str) -> _Namespace:
        space = self._live(namespace)
        if space is None:
            space = self._namespaces[namespace] = _Namespace()
        return space

    def _put(self, namespace: str, space: _Namespace, *, key: str, value: bytes, expires_at_s: float | None) -> None:
        old = space.entries.get(key)
        size_bytes = space.size_bytes + _cost(key, value) - (_cost(key, old.value) if old is not None else 0)
        if size_bytes > self._max_bytes or (old is None and len(space.entries) >= self._max_keys):
            raise StateFull(f"the state of {namespace!r} is full: {len(space.entries)} keys, {space.size_bytes} bytes")
        space.entries[key] = _Entry(value, expires_at_s)
        space.size_bytes = size_bytes
        space.note_expiry(key, expires_at_s)

    def _end(self, ttl_s: float | None) -> float | None:
        return None if ttl_s is None else self._clock() + ttl_s


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_OVERHEAD_BYTES
