"""What belongs to what for a while: a session to its credential, an upstream's response to the account that made it."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from host.state.store import StateError, StateStore
from host.tasks import TaskGroup

HEARD_TTL_S: Final = 60.0
"""How long what the store said, or was told, is believed before it is asked again."""
MAX_BINDINGS: Final = 65_536
"""The ones that were not used for longest make room."""


class BindingStore(Protocol):
    """Names of credentials by key. Losing one costs a cache hit or a refused request, never a wrong answer."""

    async def get(self, key: str, *, fresh: bool = False) -> str | None:
        """What the key is bound to; None when it is not, or not any more. `fresh`: ask where all processes look."""

    def put(self, key: str, value: str, *, ttl_s: float) -> None:
        """Bind a key for `ttl_s` seconds from now; at once for this process, soon for others."""

    def drop(self, key: str, value: str) -> None:
        """Undo a binding, if it is still to `value`."""

    def peek(self, key: str) -> str | None:
        """What this process last knew the key to be bound to, whether its time has passed or not."""

    @property
    def is_empty(self) -> bool:
        """Whether there can be none at all: then nobody needs to look."""


class MemoryBindings:
    """A `BindingStore` of this process. `clock` gives monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_bindings: int = MAX_BINDINGS) -> None:
        self._clock: Final = clock
        self._max: Final = max_bindings
        self._bound: Final[OrderedDict[str, tuple[str, float]]] = OrderedDict()

    async def get(self, key: str, *, fresh: bool = False) -> str | None:
        found = self._bound.get(key)
        if found is None:
            return None
        if found[1] <= self._clock():
            del self._bound[key]
            return None
        return found[0]

    def peek(self, key: str) -> str | None:
        found = self._bound.get(key)
        return found[0] if found is not None else None

    def put(self, key: str, value: str, *, ttl_s: float) -> None:
        self._bound[key] = value, self._clock() + ttl_s
        self._bound.move_to_end(key)
        if len(self._bound) > self._max:
            self._bound.popitem(last=False)

    def drop(self, key: str, value: str) -> None:
        found = self._bound.get(key)
        if found is not None and found[0] == value:
            del self._bound[key]

    @property
    def is_empty(self) -> bool:
        return not self._bound


class SharedBindings:
    """A `BindingStore` on shared state, with what this process knows in front of it.

    What is used here is looked up again now and then: another process may have moved it. A server that is away is asked
    again later; meanwhile each process remembers for itself.
    """

    def __init__(
        self,
        store: StateStore,
        namespace: str,
        tasks: TaskGroup,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store: Final = store
        self._namespace: Final = namespace
        self._tasks: Final = tasks
        self._clock: Final = clock
        self._own: Final = MemoryBindings(clock=clock)
        self._written_s: Final[OrderedDict[str, float]] = OrderedDict()
        self._asked_s: Final[OrderedDict[str, float]] = OrderedDict()
        """When the store last said what a key is bound to, or was told."""
        self._unwritten: Final[dict[str, _Change]] = {}
        """The latest change of each key that was not told yet."""
        self._writing: Final[set[str]] = set()

    async def get(self, key: str, *, fresh: bool = False) -> str | None:
        own = await self._own.get(key)
        asked_s = self._asked_s.get(key, -HEARD_TTL_S)
        if own is not None and ((not fresh and self._clock() - asked_s < HEARD_TTL_S) or key in self._writing):
            return own
        try:
            value = await self._store.get(self._namespace, key)
        except StateError:
            return own
        own, before = await self._own.get(key), own
        if own != before or key in self._writing:
            return own  # bound while the store was asked
        _note(self._asked_s, key, self._clock())
        if value is None:
            self._written_s.pop(key, None)  # it lost what it was told: the next use tells it again
            return own
        found = value.decode("utf-8", "replace")
        if found != own:
            self._own.put(key, found, ttl_s=HEARD_TTL_S)
        return found

    def put(self, key: str, value: str, *, ttl_s: float) -> None:
        is_new = self._own.peek(key) != value
        self._own.put(key, value, ttl_s=ttl_s)
        now_s = self._clock()
        # Prolonging what is known anyway does not have to be told each time.
        if is_new or now_s - self._written_s.get(key, -ttl_s) > ttl_s / 4:
            _note(self._written_s, key, now_s)
            _note(self._asked_s, key, now_s)
            self._tell(key, _Change(value, ttl_s))

    def peek(self, key: str) -> str | None:
        return self._own.peek(key)

    def drop(self, key: str, value: str) -> None:
        if self._own.peek(key) in (None, value):
            self._own.drop(key, value)
            self._written_s.pop(key, None)
            self._tell(key, _Change(value, None))

    @property
    def is_empty(self) -> bool:
        return False

    def _tell(self, key: str, change: "_Change") -> None:
        """Tell the store, after what it is being told about the key already: the last change has to be the last."""
        self._unwritten[key] = change
        if key in self._writing:
            return
        self._writing.add(key)
        try:
            self._tasks.start(self._write(key), name=f"bindings:{self._namespace}")
        except RuntimeError:  # the proxy is stopping
            self._writing.discard(key)
            del self._unwritten[key]

    async def _write(self, key: str) -> None:
        try:
            while (change := self._unwritten.pop(key, None)) is not None:
                try:
                    await self._apply(key, change)
                except StateError:
                    self._written_s.pop(key, None)
        finally:
            self._writing.discard(key)
            self._unwritten.pop(key, None)

    async def _apply(self, key: str, change: "_Change") -> None:
        value = change.value.encode()
        if change.ttl_s is not None:
            await self._store.set(self._namespace, key, value, ttl_s=change.ttl_s)
        elif await self._store.get(self._namespace, key) == value:
            # Only what failed is undone, not what another process has bound since.
            await self._store.delete(self._namespace, key)


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a key: bound to `value` for `ttl_s`, or with None not to `value` any more."""

    value: str
    ttl_s: float | None


def _note(times_s: OrderedDict[str, float], key: str, now_s: float) -> None:
    times_s[key] = now_s
    times_s.move_to_end(key)
    if len(times_s) > MAX_BINDINGS:
        times_s.popitem(last=False)
