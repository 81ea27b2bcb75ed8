"""Noticing that the shared store has lost what it knew: one that came back empty, or with what it had saved some time
ago, must not grant anything anew."""

import secrets
import time
from typing import Final

from pluginapi import Context

KEY: Final = "epoch"
AGE: Final = "epoch:age"
"""Grows with each look, so that an earlier state of the store shows."""
WENT_BACK: Final = "back-"
"""How the mark begins that follows such a loss."""
_AFTER_MS: Final = 60_000
STORE_AWAY: Final = "kv_unavailable"
CHECK_EVERY_S: Final = 1.0


class Epoch:
    """A random mark in the store, and a number that grows: when the mark is gone or another one, so is everything else,
    and when the number is lower than it was, everything else is as it was then.

    What is known of the store is kept together with the mark under which it was seen, and compared with this one.
    """

    def __init__(self) -> None:
        self._mark = ""
        self._age = 0
        self._check_at_s = 0.0

    def suspect(self) -> None:
        """The store could not be reached, or a count fell: look at it again as soon as it can."""
        self._check_at_s = 0.0

    async def current(self, ctx: Context) -> str:
        """The mark, as seen at most a second ago. Raises PluginError of the store: then nothing is known of it."""
        now_s = time.monotonic()
        if now_s < self._check_at_s:
            return self._mark
        known = self._mark, self._age
        mark = await ctx.kv.get(KEY)
        if mark is None:
            await ctx.kv.set(KEY, secrets.token_hex(8), only_if_absent=True)
            mark = await ctx.kv.get(KEY, "")
        age = await ctx.kv.increment(AGE)
        if mark == known[0] and age <= known[1]:
            mark, age = await self._renewed(ctx, mark), 0
        # Others may have looked at the same moment, and later than this look at the store.
        self._age = max(self._age, age) if mark == self._mark else age
        if self._mark and mark != self._mark:
            ctx.log.warning("limits.store_was_emptied")
        self._mark, self._check_at_s = str(mark), now_s + CHECK_EVERY_S
        return self._mark

    async def _renewed(self, ctx: Context, mark: str) -> str:
        """The mark that follows one under which the store went back: the same for all who notice."""
        after = f"epoch:after:{mark}"
        await ctx.kv.set(after, WENT_BACK + secrets.token_hex(8), ttl_ms=_AFTER_MS, only_if_absent=True)
        found = str(await ctx.kv.get(after, mark))
        await ctx.kv.set(KEY, found)
        return found
