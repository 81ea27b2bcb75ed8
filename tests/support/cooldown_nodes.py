"""Nodes that tell each other about cooldowns, over a server in memory and a clock that the test turns."""

import asyncio
from collections.abc import Callable, Collection, Mapping

from host.credentials.cooldown import CooldownBook
from host.credentials.shared_cooldowns import SharedCooldowns
from host.state.cooldowns import CooldownSet
from host.state.memory import MemoryStore
from host.state.store import StateStore
from host.tasks import TaskGroup


class World:
    """A server and a clock for all nodes."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.step_s = 0.0
        """By how much the wall clock was set."""
        self.store = MemoryStore(clock=lambda: self.now_s)
        self.nodes: list[Node] = []


class Node:
    """A node, and a `SharedState` whose messages arrive at once; its own clock begins where it likes."""

    node = "n"
    nodes = 2

    def __init__(self, world: World, tasks: TaskGroup, *, ahead_s: float = 0.0) -> None:
        self.world = world
        self.available = True
        self.sent: list[bytes] = []
        self.known = {"a", "b"}
        self.store: StateStore = world.store
        self._handlers: list[Callable[[bytes], None]] = []
        self._actions: list[Callable[[], None]] = []
        self.tasks = tasks
        self.book = CooldownBook(clock=lambda: world.now_s - 999_000.0 + ahead_s)
        self.cooldowns = SharedCooldowns(
            self.book, self, tasks, accepts=self._accepts, wall_clock=lambda: world.now_s + world.step_s + ahead_s
        )
        self.cooldowns.start()
        world.nodes.append(self)

    def _accepts(self, credential_id: str, *, forced: bool) -> bool:
        return credential_id in self.known

    def wall_s(self) -> float:
        return self.world.now_s

    async def publish(self, topic: str, message: bytes) -> bool:
        self.sent.append(message)
        for other in self.world.nodes:
            if other is not self and other.available:
                for handler in other._handlers:
                    handler(message)
        return True

    def subscribe(self, topic: str, handler: Callable[[bytes], None]) -> None:
        self._handlers.append(handler)

    def on_available(self, action: Callable[[], None]) -> None:
        self._actions.append(action)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def settle(self) -> None:
        async with asyncio.timeout(5):
            await self.tasks.join()

    async def comes_back(self) -> None:
        self.available = True
        self.reads()
        await self.settle()

    def reads(self) -> None:
        """Begin to read what the others know."""
        for action in self._actions:
            action()

    def rest_s(self, credential_id: str = "a", model: str = "m") -> float:
        block = self.book.block(credential_id, model)
        return 0.0 if block is None else round(block.until_s - self.book.clock(), 3)


class Counting:
    """A store in memory that counts."""

    def __init__(self, *kept: CooldownSet) -> None:
        self.kept = {it.auth_id: it for it in kept}
        self.saves: list[set[str]] = []
        self.error: Exception | None = None
        self.refused, self.stored = asyncio.Event(), asyncio.Event()

    async def load(self) -> list[CooldownSet]:
        return list(self.kept.values())

    async def save(self, every: Mapping[str, CooldownSet], changed: Collection[str]) -> None:
        self.saves.append(set(changed))
        if self.error is not None:
            self.refused.set()
            raise self.error
        self.kept = dict(every)
        self.stored.set()
