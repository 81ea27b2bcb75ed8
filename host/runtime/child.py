"""A started child process: its exit is an event, its group can be signalled, and it never stays a zombie.

`asyncio`'s own subprocess support is not used: its `wait` returns only when the pipes are closed, which a grandchild
can hold open for ever (F5), and it needs a watcher per event loop. Here a pidfd tells the loop that the child is dead
*before* it is reaped, so that the rest of its group can be killed while the group id cannot belong to anybody else
(F16, F17).
"""

import asyncio
import os
import signal
import subprocess
import threading
from typing import Final

import structlog

log = structlog.get_logger("host.runtime.child")

EXIT_NOT_YET: Final = None


class ChildProcess:
    """Takes over a `Popen` that was started with `start_new_session=True` and reaps it as soon as it is dead.

    Must be made on the event loop that is to watch it.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid: Final = popen.pid
        self.returncode: int | None = EXIT_NOT_YET
        """Exit status, or minus the number of the signal that killed it."""
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = -1
        self._watch()

    async def wait(self) -> int:
        """The return code, once the process is dead and reaped; pipes do not matter. Cancelling changes nothing."""
        return await asyncio.shield(self._exited)

    async def exited_within(self, seconds: float) -> bool:
        """Whether the process is dead, waiting at most `seconds` for it."""
        if self.returncode is EXIT_NOT_YET:
            await asyncio.wait([self._exited], timeout=seconds)
        return self.returncode is not EXIT_NOT_YET

    def signal_group(self, signal_number: int) -> None:
        """Signal the process and everything in its group; does nothing once it has been reaped (F17)."""
        if self.returncode is not EXIT_NOT_YET:
            return
        try:
            os.killpg(self.pid, signal_number)
        except (ProcessLookupError, PermissionError) as error:
            # macOS answers EPERM for a group of zombies; a plugin that changed its user cannot be signalled by us.
            log.debug("child.signal_failed", pid=self.pid, signal=signal_number, error=str(error))

    def _watch(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old kernel
            threading.Thread(target=self._wait_in_thread, name=f"wait:{self.pid}", daemon=True).start()
            return
        self._loop.add_reader(self._pidfd, self._dead)

    def _wait_in_thread(self) -> None:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._popen.wait()
        try:
            self._loop.call_soon_threadsafe(self._dead)
        except RuntimeError:
            pass  # the loop is closed: nobody waits for this child any more

    def _dead(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._popen.returncode is None:
            # Not reaped yet, so the group id is still ours: whoever is left in the group goes with its leader.
            self.signal_group(signal.SIGKILL)
        self.returncode = self._popen.wait()
        if not self._exited.done():
            self._exited.set_result(self.returncode)
