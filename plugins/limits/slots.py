"""How many requests run at once: a request holds one of the numbered slots of its subject.

Slots are keys with a lease, so that those of a host that vanished are free again after it. While the shared store is
away each host fills its own share of them.
"""

import asyncio
import random
import time
from dataclasses import dataclass

from pluginapi import Context, PluginError
from plugins.limits.epoch import STORE_AWAY, Epoch


@dataclass(slots=True, eq=False)
class Slot:
    """One request's place. `key` is empty for a place of this host's share."""

    subject: str
    key: str
    renew_at_s: float


class Slots:
    """The slots this host holds."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._mark = ""
        self._held: set[Slot] = set()
        self._local: dict[str, int] = {}

    async def take(self, ctx: Context, subject: str, *, limit: int, lease_s: int) -> Slot | None:
        """A free slot, or None when all are taken."""
        await self._renew(ctx, lease_s)
        mine = self._local.get(subject, 0)
        if mine >= limit:
            return None
        key = ""
        try:
            await self._restore(ctx, lease_s=lease_s)
            key = await self._free_key(ctx, subject, limit=limit, lease_s=lease_s)
            if not key:
                return None
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise
            if mine >= limit // max(1, int(error.body.details.get("nodes", 1))):
                return None
        slot = Slot(subject, key, _renewal_s(lease_s))
        self._held.add(slot)
        self._local[subject] = self._local.get(subject, 0) + 1
        return slot

    async def _restore(self, ctx: Context, *, lease_s: int) -> None:
        """When the store has lost its slots, take again what is held."""
        mark = await self._epoch.current(ctx)
        if mark == self._mark:
            return
        for slot in tuple(self._held):
            if slot.key:
                await ctx.kv.set(slot.key, 1, ttl_ms=lease_s * 1000)
        self._mark = mark

    async def release(self, ctx: Context, slot: Slot) -> None:
        """Free it. A store that is away frees it when the lease ends."""
        self._held.discard(slot)
        left = self._local.get(slot.subject, 1) - 1
        if left > 0:
            self._local[slot.subject] = left
        else:
            self._local.pop(slot.subject, None)
        if slot.key:
            try:
                await ctx.kv.delete(slot.key)
            except PluginError as error:
                if error.body.code != STORE_AWAY:
                    raise

    async def _free_key(self, ctx: Context, subject: str, *, limit: int, lease_s: int) -> str:
        # Where to begin is left to chance, so that hosts do not all ask for the first slots.
        start = random.randrange(limit)
        for step in range(limit):
            key = f"slot:{subject}:{(start + step) % limit}"
            if await ctx.kv.set(key, 1, ttl_ms=lease_s * 1000, only_if_absent=True):
                return key
        return ""

    async def _renew(self, ctx: Context, lease_s: int) -> None:
        now_s = time.monotonic()
        due = [slot for slot in self._held if slot.key and slot.renew_at_s <= now_s]
        for slot in due:
            slot.renew_at_s = _renewal_s(lease_s)
        try:
            await asyncio.gather(*(ctx.kv.expire(slot.key, lease_s * 1000) for slot in due))
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise


def _renewal_s(lease_s: int) -> float:
    return time.monotonic() + lease_s / 3
