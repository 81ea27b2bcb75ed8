"""The interface of every state backend."""

from typing import Protocol


class StateError(Exception):
    """The store could not do what was asked; never used for a missing key."""


class StateFull(StateError):
    """A namespace has reached its bounds. Nothing is evicted behind the owner's back."""


class NotAnInteger(StateError):
    """`increment` met a value that is no integer."""


class StateStore(Protocol):
    """Values by namespace and key, with an optional life time.

    Namespaces do not see each other. Every operation is atomic. A miss is an answer (None or False), a failure is a
    StateError, and the two are never confused.
    """

    async def get(self, namespace: str, key: str) -> bytes | None:
        """The value, or None when there is none or its time has passed."""

    async def set(
        self, namespace: str, key: str, value: bytes, *, ttl_s: float | None = None, only_if_absent: bool = False
    ) -> bool:
        """Store a value, for `ttl_s` seconds or for ever; replaces value and life time. Whether it was stored."""

    async def delete(self, namespace: str, key: str) -> bool:
        """Whether there was something to delete."""

    async def expire(self, namespace: str, key: str, ttl_s: float | None) -> bool:
        """Set the remaining life of a key; None removes the limit. Whether the key exists."""

    async def increment(self, namespace: str, key: str, by: int = 1, *, ttl_s: float | None = None) -> int:
        """Add to a decimal integer, 0 when absent; `ttl_s` counts only when the key is created. The new value."""
