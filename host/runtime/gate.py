"""Answers the system calls that a plugin's filter does not let through.

The kernel tells the holder of a filter's listener about every such call and waits for the answer, so the plugin's
thread stands still meanwhile. That is the brake as well: beyond a rate nobody answers for a moment. Nearly all are
refused; changing the mode of a file in the plugin's own directories is done for it, because it is harmless there and
the kernel cannot tell these files from others.
"""

import asyncio
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from host.runtime.confinement import HeldFiles, this_kernel
from host.runtime.launch import Spawned
from host.runtime.modes import MODE_CALLS, ModeChanger
from host.runtime.refusals import ORDINARY
from host.runtime.seccomp import call_name, describe_call

log = structlog.get_logger("host.runtime.gate")

_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
"""struct seccomp_notif: id, process, flags, and struct seccomp_data: number, architecture, where, arguments."""
_ANSWER: Final = struct.Struct("=QqiI")
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_STILL_WAITS: Final = 0x40082102
_PER_WINDOW: Final = 100
_WINDOW_S: Final = 0.5


class CallGate:
    """For one process and all it starts. `refused` is told what was refused.

    `fd` is our end of the socket on which the launcher sends the listener. Must be made on the event loop's thread;
    `close` when the process is gone, or is not to be answered any more (then the kernel answers ENOSYS).
    """

    def __init__(
        self, fd: int, *, machine: str, own_directories: Sequence[Path], refused: Callable[[str], None]
    ) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._machine = machine
        self._modes = ModeChanger(own_directories)
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._listener = -1
        self._left = _PER_WINDOW
        self._window_ends_s = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._socket, self._listener_came)

    def close(self) -> None:
        """Stop answering. Idempotent."""
        self._close_socket()
        if self._resume is not None:
            self._resume.cancel()
        if self._listener >= 0:
            self._loop.remove_reader(self._listener)
            os.close(self._listener)
            self._listener = -1

    def _close_socket(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _listener_came(self) -> None:
        """Or the end of the socket: the filter works without a listener then."""
        try:
            _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            fds = []
        self._close_socket()
        if fds:
            self._listener = fds[0]
            os.set_inheritable(self._listener, False)
            self._loop.add_reader(self._listener, self._called)

    def _called(self) -> None:
        now_s = self._loop.time()
        if now_s >= self._window_ends_s:
            self._left, self._window_ends_s = _PER_WINDOW, now_s + _WINDOW_S
        if self._left == 0:
            self._loop.remove_reader(self._listener)
            self._resume = self._loop.call_later(self._window_ends_s - now_s, self._listen_again)
            return
        self._left -= 1
        notification = bytearray(_NOTIFICATION.size)
        try:
            # Does not block: the descriptor is readable only while a call waits, and nobody else reads it.
            fcntl.ioctl(self._listener, _RECEIVE, notification)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):
                self.close()  # every process under the filter is gone
            return
        call_id, process, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
        error_number = self._decide(call_id, process, number, arguments)
        try:
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(call_id, 0, -error_number, 0))
        except OSError as error:
            log.debug("plugin.call_unanswered", call=number, error=str(error))  # its thread was killed meanwhile

    def _decide(self, call_id: int, process: int, number: int, arguments: Sequence[int]) -> int:
        """The error number of the answer, 0 when the call was done for the plugin."""
        name = call_name(self._machine, number)
        if name in MODE_CALLS and self._modes.change(process, name, arguments, lambda: self._still_waits(call_id)):
            return 0
        what = describe_call(self._machine, number, arguments)
        self._refused(what)
        return errno.ENOSYS if what in ORDINARY else errno.EPERM

    def _still_waits(self, call_id: int) -> bool:
        """Whether the call's thread still stands there, and its process id is therefore still its own."""
        try:
            fcntl.ioctl(self._listener, _STILL_WAITS, call_id.to_bytes(8, "little"))
        except OSError:
            return False
        return True

    def _listen_again(self) -> None:
        if self._listener >= 0:
            self._loop.add_reader(self._listener, self._called)


class Oversight:
    """What the host holds and answers for one confined process, from its spawn to its end."""

    def __init__(self, spawned: Spawned, *, own_directories: Sequence[Path], refused: Callable[[str], None]) -> None:
        self._held = HeldFiles.of_process(spawned.child.pid) if "filesystem" in spawned.confinement.in_force else None
        self._gate: CallGate | None = None
        if spawned.report_fd >= 0:
            machine = this_kernel().machine
            self._gate = CallGate(spawned.report_fd, machine=machine, own_directories=own_directories, refused=refused)

    def close(self) -> None:
        """Idempotent."""
        if self._gate is not None:
            self._gate.close()
        if self._held is not None:
            self._held.close()
