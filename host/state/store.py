"""The interface of every state backend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

StateProblem: TypeAlias = Literal["", "unreachable", "untrusted", "refused", "read-only", "full", "error"]
"""`untrusted`: its certificate is not one that it may have; `refused`: the user, the password, or what they may
do; `full`: what is there can be read, nothing be added."""


UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError)
"""What decoders raise for bytes that are not what they should be: a text of theirs may be none."""


class StateError(Exception):
    """The store could not do what was asked; never used for a missing key."""


class StateFull(StateError):
    """A namespace has reached its bounds. Nothing is evicted behind the owner's back."""


class NotAnInteger(StateError):
    """`increment` met a value that is no integer."""


class StateUnavailable(StateError):
    """The shared server cannot be reached right now; the same call may succeed later."""


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

    async def items(self, namespace: str) -> Mapping[str, bytes]:
        """Everything in a namespace: for starting up and for reports, never for a request."""


class SharedQueue(Protocol):
    """Records in JSON, oldest first, bounded by number and by age: `queued_at`, or else `timestamp`, in RFC 3339."""

    async def push(self, items: Sequence[bytes], *, batch: str, oldest: str, keep: int, ttl_s: float) -> None:
        """Append items; the same `batch` again, within a minute, does nothing. After a StateError it may be there.

        Items older than `oldest` and more than the last `keep` are dropped; all are when nothing comes for `ttl_s`.
        """

    async def announce(self, events: Sequence[bytes]) -> None:
        """Tell whoever listens right now of errors; nobody gets them later. Raises StateError."""

    async def take(self, count: int, *, oldest: str) -> list[bytes]:
        """Remove and return up to `count` of the oldest that are no older than `oldest`. Raises StateError."""


class SharedState(Protocol):
    """State with the other nodes that use it: a store, messages between nodes, and how many there are."""

    @property
    def store(self) -> StateStore: ...

    @property
    def usage(self) -> SharedQueue | None:
        """Usage records of all nodes; None where nothing is shared."""

    @property
    def node(self) -> str:
        """This node's name, unique among those that run."""

    @property
    def available(self) -> bool:
        """Whether the last contact succeeded. What is not shared with anybody is always available."""

    @property
    def problem(self) -> StateProblem:
        """Why it cannot be used, or not as it should be; empty while it can."""

    @property
    def nodes(self) -> int:
        """How many nodes were seen last, this one included; never below 1."""

    def wall_s(self) -> float:
        """Unix seconds as those that share it have them, whatever this machine takes for the time."""

    async def publish(self, topic: str, message: bytes) -> bool:
        """Tell the other nodes, best effort: nobody who is away gets it later. False when it could not be sent."""

    def subscribe(self, topic: str, handler: Callable[[bytes], None]) -> None:
        """Hear what other nodes publish, never this one's own. `handler` must not block."""

    def on_available(self, action: Callable[[], None]) -> None:
        """Called each time the server can be reached (again): what was missed meanwhile has to be read anew."""

    async def start(self) -> None:
        """Connect in the background; returns after the first attempt, whether it succeeded or not."""

    async def stop(self) -> None:
        """Leave, and write what is kept in a file; safe to call twice."""


def readiness(state: SharedState) -> dict[str, str]:
    """What `/readyz` says of shared state; nothing that helps somebody who should not know where it is."""
    shown = {"state": "available" if state.available else "unavailable"}
    return {**shown, "state_problem": state.problem} if state.problem else shown
