"""What belongs to what for a while: a session to its credential, an upstream's response to the account that made it."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

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

    def __len__(self) -> int:
        """How many there are at most, as far as this process knows."""


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

    def put(self, key: str, value: str, *, ttl_s: float) -> None:
        self._bound[key] = value, self._clock() + ttl_s
        self._bound.move_to_end(key)
        if len(self._bound) > self._max:
            self._bound.popitem(last=False)

    def drop(self, key: str, value: str) -> None:
        found = self._bound.get(key)
        if found is not None and found[0] == value:
            del self._bound[key]

    def __len__(self) -> int:
        return len(self._bound)
