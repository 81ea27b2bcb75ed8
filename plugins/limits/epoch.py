"""Noticing that the shared store has lost what it knew: one that came back empty must not grant everything anew."""

import secrets
import time
from typing import Final

from pluginapi import Context, PluginError
from plugins.limits.counters import STORE_AWAY

KEY: Final = "epoch"
CHECK_EVERY_S: Final = 1.0


class Epoch:
    """A random mark in the store: when it is gone or another one, so is everything else."""

    def __init__(self) -> None:
        self._mark: str | None = None
        self._check_at_s = 0.0

    def suspect(self) -> None:
        """The store could not be reached: look at it again as soon as it can."""
        self._check_at_s = 0.0

    async def lost(self, ctx: Context) -> str:
        """The new mark when the store is not the one that was seen last, else empty; asks it once a second at most."""
        now_s = time.monotonic()
        if now_s < self._check_at_s:
            return ""
        try:
            mark = await ctx.kv.get(KEY)
            if mark is None:
                await ctx.kv.set(KEY, secrets.token_hex(8), only_if_absent=True)
                mark = await ctx.kv.get(KEY)
        except PluginError as error:
            if error.body.code != STORE_AWAY:
                raise
            return ""
        self._check_at_s = now_s + CHECK_EVERY_S
        known, self._mark = self._mark, mark
        return str(mark) if known is not None and known != mark else ""
