"""The keeper of the workers' state server: starts it, and ends it with a save once nobody is left that could use it.

    python -I -S keeper_script.py DIRECTORY RUNTIME STOP_S PROGRAM ARGUMENT...

Standard input is a pipe whose write end is held by the parent of the workers and by every worker: its end is the end
of the last of them, however it came about. Should this process be killed itself, Linux ends the server for it.
A lock in DIRECTORY, which the server holds too, keeps two servers from writing the same file: a keeper that finds it
taken says `waiting` and waits. RUNTIME holds the socket; the directory of a run that left its own behind is removed.
Few imports, as in the guardian of plugins: it lives as long as the proxy.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself imports enum
import fcntl
import os
import select
import stat
import sys
import time

PR_SET_PDEATHSIG = 1
POLL_S = 0.05
RUNTIME_PREFIX = b"jackfield-state-"
WAITING = b"waiting\n"


def main() -> int:
    """0 when it was no longer needed, 1 when the server ended by itself."""
    directory, runtime = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2])
    # A Ctrl-C or a service manager's TERM reaches the parent as well, which closes the pipe when it has finished.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        if not own(directory):
            return 0
        tidy(directory, runtime)
        code = keep(sys.argv[4:], stop_s=float(sys.argv[3]))
    finally:
        if ended(0):
            remove(runtime)
    return code


def own(directory: bytes) -> bool:
    """Take the lock; False when nobody wants the server any more. The descriptor stays open on purpose."""
    lock = os.open(os.path.join(directory, b"lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.set_inheritable(lock, True)
    said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not said:
                said = True
                os.write(1, WAITING)
        if ended(POLL_S):
            return False


def ended(within_s: float) -> bool:
    """Whether the pipe ends within this time; nobody writes to it."""
    readable, _, _ = select.select([0], [], [], within_s)
    return bool(readable) and not os.read(0, 1)


def tidy(directory: bytes, runtime: bytes) -> None:
    """Remove what a run that was killed as a whole left behind, and note where this one has its socket."""
    note = os.path.join(directory, b"runtime")
    try:
        with open(note, "rb") as file:
            left = file.read()
    except OSError:
        left = b""
    if left != runtime and os.path.basename(left).startswith(RUNTIME_PREFIX) and is_ours(left):
        remove(left)
    for name in os.listdir(directory):
        if name.startswith(b"temp-") and name.endswith(b".rdb"):
            os.unlink(os.path.join(directory, name))
    with open(note, "wb") as file:
        file.write(runtime)


def is_ours(path: bytes) -> bool:
    """Whether this is a directory that belongs to this user; a link is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def remove(directory: bytes) -> None:
    """Remove a flat directory; whatever cannot be removed stays."""
    try:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        pass


def keep(command: list[str], *, stop_s: float) -> int:
    """Run the server until the pipe ends, or until it ends by itself."""
    # A child that ends interrupts the wait for the pipe.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = start(command)
    while True:
        readable, _, _ = select.select([0, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 64)
            if os.waitpid(server, os.WNOHANG)[0]:
                return 1
        if 0 in readable and not os.read(0, 1):
            stop(server, stop_s=stop_s)
            return 0


def start(command: list[str]) -> int:
    """Its process id. The system tells it to end should this process be gone."""
    keeper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # The server must not hold the pipe; the module is only needed here.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() == keeper:
            os.execv(command[0], command)
    except (OSError, ImportError) as error:
        os.write(1, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def stop(server: int, *, stop_s: float) -> None:
    """Let the server save and end; kill it when it takes too long."""
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + stop_s
    while not os.waitpid(server, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            return
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
