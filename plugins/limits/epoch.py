"""Noticing that the shared store has lost what it knew: one that came back empty must not grant everything anew."""

import secrets
import time
from typing import Final

from pluginapi import Context

KEY: Final = "epoch"
STORE_AWAY: Final = "kv_unavailable"
CHECK_EVERY_S: Final = 1.0


class Epoch:
    """A random mark in the store: when it is gone or another one, so is everything else.

    What is known of the store is kept together with the mark under which it was seen, and compared with this one.
    """

    def __init__(self) -> None:
        self._mark = ""
        self._check_at_s = 0.0

    def suspect(self) -> None:
        """The store could not be reached, or a count fell: look at it again as soon as it can."""
        self._check_at_s = 0.0

    async def current(self, ctx: Context) -> str:
        """The mark, as seen at most a second ago. Raises PluginError of the store: then nothing is known of it."""
        now_s = time.monotonic()
        if now_s < self._check_at_s:
            return self._mark
        mark = await ctx.kv.get(KEY)
        if mark is None:
            await ctx.kv.set(KEY, secrets.token_hex(8), only_if_absent=True)
            mark = await ctx.kv.get(KEY, "")
        if self._mark and mark != self._mark:
            ctx.log.warning("limits.store_was_emptied")
        self._mark, self._check_at_s = str(mark), now_s + CHECK_EVERY_S
        return self._mark
