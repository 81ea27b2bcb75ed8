"""How many requests run at once: a request holds one of the numbered slots of its subject.

Slots are keys with a lease, so that those of a host that vanished are free again after it; `keep` renews those of
requests that run. What stands under a key says
whose it is: nobody frees or renews a slot that went to somebody else meanwhile. While the shared store is away each
host fills its own share of them.
"""

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pluginapi import Context, PluginError, PluginTransportError
from plugins.limits.epoch import STORE_AWAY, Epoch

MAX_DOUBTFUL = 1000
LOOKS_PER_LEASE = 6
"""A slot is renewed when a third of its lease is over, so two attempts may fail before it ends."""
FREED_AT_ONCE = 20
"""A request tidies up so much at most: it must not wait for all that an outage left behind."""


@dataclass(slots=True, eq=False)
class Slot:
    """One request's place. `key` is empty for a place of this host's share."""

    subject: str
    key: str = ""
    mark: str = ""
    """What stands under the key for as long as the slot is ours."""
    renew_at_s: float = 0.0
    ends_s: float = 0.0
    """Monotonic, as is `renew_at_s`: from then on somebody else may have the key."""


class Slots:
    """The slots this host holds."""

    def __init__(self, epoch: Epoch, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._epoch = epoch
        self._monotonic = monotonic
        self._mark = ""
        self._held: set[Slot] = set()
        self._local: dict[str, int] = {}
        self._lease_changed = asyncio.Event()
        self._doubtful: deque[tuple[str, str]] = deque(maxlen=MAX_DOUBTFUL)
        """Key and mark of slots that nobody holds and that may be taken in the store all the same."""

    async def take(self, ctx: Context, subject: str, *, limit: int, lease_s: int) -> Slot | None:
        """A free slot, or None when all are taken. Cancelling it leaves none behind."""
        await self._tidy(ctx, lease_s)
        if self._local.get(subject, 0) >= limit:
            return None
        slot = Slot(subject)
        # Counted before the first await: those that ask at the same moment must not all see the same free place.
        self._held.add(slot)
        self._local[subject] = self._local.get(subject, 0) + 1
        try:
            await self._restore(ctx, lease_s=lease_s)
            taken = await self._fill(ctx, slot, limit=limit, lease_s=lease_s)
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                self.forget(slot)
                raise
            taken = self._local[subject] <= limit // max(1, int(error.body.details.get("nodes", 1)))
        except BaseException:
            self.forget(slot)
            raise
        if taken:
            return slot
        self.forget(slot)
        return None

    def forget(self, slot: Slot) -> None:
        """It is not held any more: it counts no longer here and is not renewed. What `release` begins with."""
        if slot not in self._held:
            return
        self._held.discard(slot)
        left = self._local.get(slot.subject, 1) - 1
        if left > 0:
            self._local[slot.subject] = left
        else:
            self._local.pop(slot.subject, None)

    async def release(self, ctx: Context, slot: Slot) -> None:
        """Free it. What cannot be freed now is with the next request, or when the lease ends."""
        self.forget(slot)
        if not slot.key:
            return
        if self._monotonic() >= slot.ends_s:
            # Somebody else may have it by now: the next request looks first.
            self._doubtful.append((slot.key, slot.mark))
            return
        try:
            await self._free(ctx, slot.key, slot.mark)
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise

    async def keep(self, ctx: Context, lease_s: Callable[[], int]) -> None:
        """Renew what is held, requests coming or not. Runs until it is cancelled; `ctx` outlives the calls."""
        while True:
            self._lease_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(lease_s() / LOOKS_PER_LEASE):
                    await self._lease_changed.wait()
            await self._tidy(ctx, lease_s())

    def lease_changed(self) -> None:
        """What `keep` asks for may be another one than before."""
        self._lease_changed.set()

    async def _fill(self, ctx: Context, slot: Slot, *, limit: int, lease_s: int) -> bool:
        """Take the first key that is free; whether there was one."""
        mark = secrets.token_hex(8)
        # Where to begin is left to chance, so that hosts do not all ask for the first slots.
        start = random.randrange(limit)
        for step in range(limit):
            key = f"slot:{slot.subject}:{(start + step) % limit}"
            asked_s = self._monotonic()
            try:
                is_ours = await ctx.kv.set(key, mark, ttl_ms=lease_s * 1000, only_if_absent=True)
            except BaseException:
                # Nobody knows whether it was taken.
                self._doubtful.append((key, mark))
                raise
            if is_ours:
                slot.key, slot.mark = key, mark
                _leased(slot, asked_s, lease_s)
                return True
        return False

    async def _restore(self, ctx: Context, *, lease_s: int) -> None:
        """When the store has lost its slots, take again what is held."""
        mark = await self._epoch.current(ctx)
        if mark == self._mark:
            return
        for slot in tuple(self._held):
            if slot.key:
                await ctx.kv.set(slot.key, slot.mark, ttl_ms=lease_s * 1000)
        self._mark = mark

    async def _tidy(self, ctx: Context, lease_s: int) -> None:
        """Renew what is held for long, and free what is not held. Nobody's request fails for it."""
        now_s = self._monotonic()
        due = [slot for slot in self._held if slot.key and slot.renew_at_s <= now_s]
        for slot in due:
            slot.renew_at_s = now_s + lease_s / LOOKS_PER_LEASE
        doubtful = [self._doubtful.popleft() for _ in range(min(FREED_AT_ONCE, len(self._doubtful)))]
        for failed in await asyncio.gather(
            *(self._renew(ctx, slot, lease_s) for slot in due),
            *(self._free(ctx, key, mark, is_certain=False) for key, mark in doubtful),
            return_exceptions=True,
        ):
            if isinstance(failed, BaseException) and not isinstance(failed, (PluginError, PluginTransportError)):
                raise failed

    async def _renew(self, ctx: Context, slot: Slot, lease_s: int) -> None:
        key, mark = slot.key, slot.mark
        try:
            await self._renew_held(ctx, slot, lease_s)
        finally:
            if slot not in self._held:
                # Its request ended meanwhile, and freed it perhaps before it was renewed.
                self._doubtful.append((key, mark))

    async def _renew_held(self, ctx: Context, slot: Slot, lease_s: int) -> None:
        asked_s = self._monotonic()
        if asked_s < slot.ends_s and await ctx.kv.expire(slot.key, lease_s * 1000):
            _leased(slot, asked_s, lease_s)
            return
        # The lease ran out while nobody came: somebody else may have the slot by now.
        ttl_ms = lease_s * 1000
        if await ctx.kv.get(slot.key) == slot.mark:
            is_ours = await ctx.kv.expire(slot.key, ttl_ms)
        else:
            is_ours = await ctx.kv.set(slot.key, slot.mark, ttl_ms=ttl_ms, only_if_absent=True)
        if is_ours:
            _leased(slot, asked_s, lease_s)
        else:
            slot.key = ""

    async def _free(self, ctx: Context, key: str, mark: str, *, is_certain: bool = True) -> None:
        try:
            if is_certain or await ctx.kv.get(key) == mark:
                await ctx.kv.delete(key)
        except BaseException:
            self._doubtful.append((key, mark))
            raise


def _leased(slot: Slot, asked_s: float, lease_s: int) -> None:
    """The store counts from when it was asked at the earliest."""
    slot.renew_at_s, slot.ends_s = asked_s + lease_s / 3, asked_s + lease_s
