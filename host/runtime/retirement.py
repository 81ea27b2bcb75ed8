"""The end of generations that were replaced: first their requests, then the process; a few at a time at most."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from host.runtime.generation import Generation, Slot
from host.runtime.snapshot import SnapshotLeases
from host.tasks import TaskGroup

log = structlog.get_logger("host.runtime.retirement")

MAX_GENERATIONS: Final = 4
"""Of one plugin at a time, the one that serves and one that is being started included."""
ROOM_WAIT_S: Final = 0.5
"""How long an upgrade waits for each old generation that was asked to end at its next quiet moment."""


class Retirement:
    """Generations on their way out.

    One is stopped when no request can reach it any more and its last call has ended, or when its time is over. When
    room is needed it is stopped at its first moment without a call; calls of its requests then go to the generation
    that serves. `on_room` is told of every slot whose upgrade waits and may be tried again.
    """

    def __init__(self, *, leases: SnapshotLeases, tasks: TaskGroup, on_room: Callable[[Slot], None]) -> None:
        self._leases: Final = leases
        self._tasks: Final = tasks
        self._on_room: Final = on_room
        self._next: list[tuple[Slot | None, Generation, float]] = []
        self._leaving: set[Generation] = set()

    def after_publish(self, slot: Slot | None, generation: Generation, *, drain_s: float) -> None:
        """Retire a generation as soon as the next snapshot no longer names it; `slot` None: it has no successor."""
        self._next.append((slot, generation, drain_s))

    def published(self) -> None:
        """A snapshot without those generations is in effect."""
        for slot, generation, drain_s in self._next:
            self._leaving.add(generation)
            if slot is not None:
                slot.retiring.append(generation)
            self._tasks.start(self._leave(slot, generation, drain_s), name=f"drain:{generation.plan.plugin_id}")
        self._next.clear()

    async def has_room(self, slot: Slot) -> bool:
        """Whether one more generation may be started beside the current one; makes room where no call is in the way."""
        for generation in list(slot.retiring):
            if _fits(slot):
                break
            generation.in_the_way.set()
            try:
                async with asyncio.timeout(ROOM_WAIT_S):
                    await generation.gone.wait()
            except TimeoutError:
                log.info("plugin.upgrade_waits", plugin_id=slot.plugin_id, for_generation=generation.handle.generation)
        return _fits(slot)

    async def left(self, plugin_id: str) -> None:
        """Wait until all generations of a plugin that are on their way out have ended."""
        for generation in [each for each in self._leaving if each.plan.plugin_id == plugin_id]:
            await generation.gone.wait()

    async def stop_all(self, generations: list[Generation], *, drain_s: float) -> None:
        """Stop these and everything that is on its way out; calls have `drain_s` to end."""
        await asyncio.gather(*(_stop(generation, drain_s) for generation in {*generations, *self._leaving}))
        self._leaving.clear()

    async def _leave(self, slot: Slot | None, generation: Generation, drain_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + drain_s
        await self._until_unused(generation, drain_s)
        try:
            await generation.handle.drain_and_stop(
                drain_s=max(0.0, deadline_s - loop.time()), successor=slot.current.handle if slot is not None else None
            )
        finally:
            self._leaving.discard(generation)
            if slot is not None:
                slot.retiring.remove(generation)
            generation.gone.set()
        log.info("plugin.retired", plugin_id=generation.plan.plugin_id, generation=generation.handle.generation)
        if slot is not None and slot.waiting is not None:
            self._on_room(slot)

    async def _until_unused(self, generation: Generation, drain_s: float) -> None:
        """Wait until no request can reach it any more, it is in the way, or its time is over."""
        released = asyncio.ensure_future(self._leases.released(generation.handle))
        in_the_way = asyncio.ensure_future(generation.in_the_way.wait())
        try:
            done, _ = await asyncio.wait([released, in_the_way], timeout=drain_s, return_when="FIRST_COMPLETED")
        finally:
            released.cancel()
            in_the_way.cancel()
        if not done:
            log.warning("plugin.drain_timeout", plugin_id=generation.plan.plugin_id)


async def _stop(generation: Generation, drain_s: float) -> None:
    try:
        async with asyncio.timeout(drain_s):
            await generation.handle.drain_and_stop(drain_s=drain_s)
    except TimeoutError:
        # It may have been draining already, with more time than there is now.
        await generation.handle.stop()


def _fits(slot: Slot) -> bool:
    return len(slot.retiring) + 2 <= MAX_GENERATIONS
