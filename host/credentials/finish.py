"""What has begun to change files is brought to its end, whoever goes away."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from host.credentials.files import Overtaken

WRITE_ATTEMPTS: Final = 5
"""At changing a file that others change at the same time."""
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


async def unless_overtaken(attempt: Callable[[], Awaitable[T]]) -> T:
    """Read, change and write again what somebody else has written in between. Raises OSError when that never ends."""
    for _ in range(WRITE_ATTEMPTS):
        try:
            return await attempt()
        except Overtaken:
            continue
    raise OSError(errno.EBUSY, "others keep changing it")
