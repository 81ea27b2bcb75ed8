"""Processes known by their number only: when they end."""

import asyncio
import os
from collections.abc import Awaitable


def end_of(pid: int) -> Awaitable[None]:
    """Something to wait for; the process is known from the call on, whatever its number means later."""
    try:
        return _wait(os.pidfd_open(pid))
    except ProcessLookupError:
        return asyncio.sleep(0)


async def _wait(descriptor: int) -> None:
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        async with asyncio.timeout(20):
            await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
