"""What has begun to change files is brought to its end, whoever goes away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when this is cancelled, which then takes effect: a thread that writes a file does not
    stop either, and the lock on the file has to be held for as long as it writes."""
    task = asyncio.get_running_loop().create_task(work, name="credentials:write")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # what it raises now is nobody's any more
        raise
