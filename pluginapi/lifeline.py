"""Ends the process when the host is gone, even while a hook blocks the event loop."""

import os
import threading
from collections.abc import Callable
from typing import Final

PARENT_CHECK_INTERVAL_S: Final = 1.0
EXIT_ORPHANED: Final = 70
EXIT_STUCK: Final = 71


class Lifeline:
    """A daemon thread that compares the parent's process id every second; a changed one means the parent died.

    The event loop sees the end of stdin on its own; this is for a plugin whose loop does not run. `exit` is
    `os._exit`: a blocked process cannot be asked to leave.
    """

    def __init__(
        self,
        *,
        parent_pid: int | None = None,
        interval_s: float = PARENT_CHECK_INTERVAL_S,
        getppid: Callable[[], int] = os.getppid,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._parent_pid: Final = getppid() if parent_pid is None else parent_pid
        self._interval_s: Final = interval_s
        self._getppid: Final = getppid
        self._exit: Final = exit_process
        self._stopped: Final = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def exit_within(self, seconds: float) -> None:
        """Leave the process at the latest in `seconds`: an orderly end may wait for a thread that never returns."""
        timer = threading.Timer(seconds, self._exit, args=(EXIT_STUCK,))
        timer.daemon = True
        timer.name = "lifeline:exit"
        timer.start()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            if self._getppid() != self._parent_pid:
                self._exit(EXIT_ORPHANED)
                return
