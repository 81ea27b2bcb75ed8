"""Counting together with the other hosts, and on this host's share while the shared store is away.

A count lives under one key per window in `host.kv`. When the store cannot be reached, its error says how many hosts
share it: each goes on with an equal part of what was left when it was last seen, so that together they never grant more
than the limit. What was granted meanwhile is added to the shared count with the next request after it is back.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pluginapi import Context, PluginError
from plugins.limits.epoch import STORE_AWAY, WENT_BACK, Epoch

MAX_WINDOWS: Final = 20_000
_RESTORE_LOOKS: Final = 20
_RESTORE_LOCK_MS: Final = 1000
_RESTORE_PAUSE_S: Final = 0.01
_SETTLE_S: Final = 60.0
_MARGIN_S: Final = 60.0
"""A key outlives its window a little: hosts' clocks differ."""


@dataclass(slots=True)
class Window:
    """One count, as far as this host knows it."""

    ends_s: float
    """Unix seconds."""
    total: int = 0
    """The shared count when it was last seen."""
    unsent: int = 0
    """What this host granted since, without the store."""
    share: int | None = None
    """What this host may still grant on its own, below 0 when more was used; None: the shared count decides."""
    share_until_s: float | None = None
    """The store is back: until then the other hosts may not have told what they granted meanwhile."""
    mark: str = ""
    """The store that `total` was seen in; under another one it has forgotten this count (see `epoch`)."""
    was_lost: bool = False
    """It was, and the other hosts may not have told yet what they saw."""
    restoring: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to one question. `remaining` is never negative."""

    granted: bool
    remaining: int


class Counters:
    """All counts of this host."""

    def __init__(self, epoch: Epoch, clock: Callable[[], float] = time.time) -> None:
        self._epoch = epoch
        self._clock = clock
        self._nodes = 1
        self._windows: OrderedDict[str, Window] = OrderedDict()

    async def take(self, ctx: Context, key: str, amount: int, *, limit: int, ends_s: float, overshoot: bool) -> Taken:
        """Ask for `amount` of `limit` in the window that ends at `ends_s`.

        `overshoot`: granted while anything is left, for amounts that are only known afterwards.
        """
        window = self._window(key, ends_s)
        try:
            total = await self._add(ctx, key, window, amount)
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise
            self._epoch.suspect()
            self._nodes = max(1, int(error.body.details.get("nodes", 1)))
            if window.share is None:
                window.share = _share(window, limit, nodes=self._nodes)
            window.share_until_s = None
            taken = _from_share(window, amount, overshoot=overshoot)
            window.unsent += amount if taken.granted else 0
            return taken
        if window.was_lost:
            window.was_lost = False
            if window.share is None:
                window.share = max(0, limit - total + amount) // self._nodes
        granted = total - amount < limit if overshoot else total <= limit
        taken = Taken(granted, max(0, limit - total))
        if granted and self._is_on_share(window):
            # The count may lack what others have not told yet, and so does not decide alone.
            taken = _from_share(window, amount, overshoot=overshoot)
        if not taken.granted and amount:
            # A refused request has used nothing.
            total = await self._give_back(ctx, key, window, amount)
            taken = Taken(False, min(taken.remaining + amount, max(0, limit - total)))
        return taken

    async def add(self, ctx: Context, key: str, amount: int, *, ends_s: float) -> None:
        """Count what was used, which may be less than nothing when more was taken than needed."""
        if not amount:
            return
        window = self._window(key, ends_s)
        if window.share is not None:
            # What is known only afterwards, a budget's money above all, comes out of the share like anything else.
            window.share -= amount
        await self._give_back(ctx, key, window, -amount)

    async def _give_back(self, ctx: Context, key: str, window: Window, amount: int) -> int:
        try:
            return await self._add(ctx, key, window, -amount)
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise
            window.unsent -= amount
            return window.total + window.unsent

    async def _add(self, ctx: Context, key: str, window: Window, amount: int) -> int:
        """The shared count with `amount` and what is unsent added. What was known is kept until it is known lost."""
        ttl_ms = max(1, round((window.ends_s - self._clock() + _MARGIN_S) * 1000))
        mark = await self._epoch.current(ctx)
        if mark != window.mark:
            await self._restore(ctx, key, window, mark, ttl_ms=ttl_ms, added=0)
        before, unsent, window.unsent = window.total, window.unsent, 0
        try:
            total = await ctx.kv.increment(key, amount + unsent, ttl_ms=ttl_ms)
        except BaseException:
            window.unsent += unsent
            raise
        if total - amount - unsent < before:
            total = await self._explain_fall(ctx, key, window, mark, fallen=(before, amount + unsent, total))
        window.total = total
        return total

    async def _explain_fall(
        self, ctx: Context, key: str, window: Window, mark: str, *, fallen: tuple[int, int, int]
    ) -> int:
        """The count fell: others gave back, or the store was emptied or went back a moment ago. `fallen`: what it was,
        what was added, and what it is."""
        before, added, total = fallen
        self._epoch.suspect()
        try:
            found = await self._epoch.current(ctx)
            if found == mark:
                return total
            ttl_ms = max(1, round((window.ends_s - self._clock() + _MARGIN_S) * 1000))
            await self._restore(ctx, key, window, found, ttl_ms=ttl_ms, added=added)
            return await ctx.kv.increment(key, 0, ttl_ms=ttl_ms)
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise
            # Asked again with the next request; until then the higher number is believed.
            self._epoch.suspect()
            return before + added

    async def _restore(self, ctx: Context, key: str, window: Window, mark: str, *, ttl_ms: int, added: int) -> None:
        """Raise the lost count to what this host last saw of it; one host at a time, each adds what is missing.

        `added`: what this host has put on the count that the store has now.
        """
        async with window.restoring:
            if window.mark == mark:
                return
            if window.total > 0 and window.mark:
                base, lock = f"base:{mark}:{key}", f"lock:{mark}:{key}"
                for _ in range(_RESTORE_LOOKS):
                    if await ctx.kv.set(lock, True, ttl_ms=_RESTORE_LOCK_MS, only_if_absent=True):
                        break
                    await asyncio.sleep(_RESTORE_PAUSE_S)
                restored = await ctx.kv.get(base)
                if restored is None and mark.startswith(WENT_BACK):
                    # It has what it had saved.
                    restored = max(0, int(await ctx.kv.get(key, 0)) - added)
                    await ctx.kv.set(base, restored, ttl_ms=ttl_ms)
                missing = window.total - int(restored or 0)
                if missing > 0:
                    await ctx.kv.increment(key, missing, ttl_ms=ttl_ms)
                    await ctx.kv.set(base, window.total, ttl_ms=ttl_ms)
                await ctx.kv.delete(lock)
                window.was_lost = True
            window.mark = mark

    def _is_on_share(self, window: Window) -> bool:
        """Whether the store was away in this window, and is back so shortly that its count may lack something."""
        if window.share is None:
            return False
        now_s = self._clock()
        if window.share_until_s is None:
            window.share_until_s = now_s + _SETTLE_S
        if now_s < window.share_until_s:
            return True
        window.share = window.share_until_s = None
        return False

    def _window(self, key: str, ends_s: float) -> Window:
        window = self._windows.get(key)
        if window is None:
            self._forget_ended()
            window = self._windows[key] = Window(ends_s)
        self._windows.move_to_end(key)
        return window

    def _forget_ended(self) -> None:
        """Windows used longest ago stand first; one that was used after its end goes when its turn comes."""
        now_s = self._clock()
        while self._windows:
            oldest = next(iter(self._windows.values()))
            if oldest.ends_s >= now_s - _MARGIN_S and len(self._windows) < MAX_WINDOWS:
                return
            self._windows.popitem(last=False)


def _share(window: Window, limit: int, *, nodes: int) -> int:
    """This host's part of what was left, less what it has used already without having told."""
    returned, used = min(0, window.unsent), max(0, window.unsent)
    return int(max(0, limit - window.total - returned) // nodes - used)


def _from_share(window: Window, amount: int, *, overshoot: bool) -> Taken:
    left = window.share or 0
    granted = left > 0 if overshoot else amount <= left
    if granted:
        left = window.share = left - amount
    return Taken(granted, max(0, left))
