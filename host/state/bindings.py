"""What belongs to what for a while: a session to its credential, an upstream's response to the account that made it."""

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from host.state.store import StateError, StateStore
from host.tasks import TaskGroup

HEARD_TTL_S: Final = 60.0
"""How long what another node bound is believed before it is asked for again."""
MAX_BINDINGS: Final = 65_536
"""The ones that were not used for longest make room."""


class BindingStore(Protocol):
    """Names of credentials by key. Losing one costs a cache hit or a refused request, never a wrong answer."""

    async def get(self, key: str) -> str | None:
        """What the key is bound to; None when it is not, or not any more."""

    def put(self, key: str, value: str, *, ttl_s: float) -> None:
        """Bind a key for `ttl_s` seconds from now; at once for this process, soon for others."""

    def drop(self, key: str, value: str) -> None:
        """Undo a binding, if it is still to `value`."""

    @property
    def is_empty(self) -> bool:
        """Whether there can be none at all: then nobody needs to look."""


class MemoryBindings:
    """A `BindingStore` of this process. `clock` gives monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_bindings: int = MAX_BINDINGS) -> None:
        self._clock: Final = clock
        self._max: Final = max_bindings
        self._bound: Final[OrderedDict[str, tuple[str, float]]] = OrderedDict()

    async def get(self, key: str) -> str | None:
        found = self._bound.get(key)
        if found is None:
            return None
        if found[1] <= self._clock():
            del self._bound[key]
            return None
        return found[0]

    def peek(self, key: str) -> str | None:
        """What the key was bound to, whether its time has passed or not."""
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

    A server that is away is asked again later: meanwhile each process remembers for itself.
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

    async def get(self, key: str) -> str | None:
        found = await self._own.get(key)
        if found is not None:
            return found
        try:
            value = await self._store.get(self._namespace, key)
        except StateError:
            return None
        if value is None:
            return None
        found = value.decode("utf-8", "replace")
        self._own.put(key, found, ttl_s=HEARD_TTL_S)
        return found

    def put(self, key: str, value: str, *, ttl_s: float) -> None:
        is_new = self._own.peek(key) != value
        self._own.put(key, value, ttl_s=ttl_s)
        now_s = self._clock()
        # Prolonging what is known anyway does not have to be told each time.
        if is_new or now_s - self._written_s.get(key, -ttl_s) > ttl_s / 4:
            self._written_s[key] = now_s
            self._written_s.move_to_end(key)
            if len(self._written_s) > MAX_BINDINGS:
                self._written_s.popitem(last=False)
            self._start(self._store.set(self._namespace, key, value.encode(), ttl_s=ttl_s))

    def drop(self, key: str, value: str) -> None:
        if self._own.peek(key) in (None, value):
            self._own.drop(key, value)
            self._written_s.pop(key, None)
            self._start(self._store.delete(self._namespace, key))

    @property
    def is_empty(self) -> bool:
        return False

    def _start(self, work: Coroutine[Any, Any, bool]) -> None:
        try:
            self._tasks.start(_tried(work), name=f"bindings:{self._namespace}")
        except RuntimeError:
            pass  # the proxy is stopping


async def _tried(work: Coroutine[Any, Any, bool]) -> None:
    with contextlib.suppress(StateError):
        await work
