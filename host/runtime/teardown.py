"""The end of a plugin process, as a list: each step is bounded, the last one always works."""

import asyncio
import signal
from typing import TypeVar

import structlog

from host.runtime.child import ChildProcess
from host.runtime.timings import ProcessTimings

log = structlog.get_logger("host.runtime.teardown")

T = TypeVar("T")


async def stop_process(child: ChildProcess, *, plugin_id: str, timings: ProcessTimings) -> int:
    """After its stdin was closed: wait, TERM to the group, wait, KILL, reap. Returns the exit code.

    Takes at most `eof_grace_s + term_grace_s` plus the moment a KILL needs, whatever the plugin does. Runs to its end
    even when the caller is cancelled, so that no process is left behind.
    """
    return await finish(asyncio.ensure_future(_stop(child, plugin_id=plugin_id, timings=timings)))


async def _stop(child: ChildProcess, *, plugin_id: str, timings: ProcessTimings) -> int:
    if await child.exited_within(timings.eof_grace_s):
        return await child.wait()
    log.info("plugin.ignores_stdin_eof", plugin_id=plugin_id, pid=child.pid)
    child.signal_group(signal.SIGTERM)
    if await child.exited_within(timings.term_grace_s):
        return await child.wait()
    log.warning("plugin.ignores_term", plugin_id=plugin_id, pid=child.pid)
    return await kill_process(child)


async def kill_process(child: ChildProcess) -> int:
    """KILL the group and reap. Returns the exit code."""
    child.signal_group(signal.SIGKILL)
    return await child.wait()


async def finish(work: "asyncio.Future[T]") -> T:
    """Wait for `work` even when we are cancelled meanwhile; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            # Not a shield: that would not tell our cancellation from the work's when both end in one turn of the loop.
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # nobody else will look at it
        raise cancelled
    return work.result()
