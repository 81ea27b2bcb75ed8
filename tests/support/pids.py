"""Processes known by their number only: which there are below one, and when they end."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Every process below `pid`; one that ends meanwhile has none."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


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
        async with asyncio.timeout(60):
            await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
