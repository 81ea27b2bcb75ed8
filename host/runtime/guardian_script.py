"""The guardian process: kills the process groups it was told of when its standard input ends.

Standard input is a pipe from the host, so its end is the host's death however it came about. One command per line:
`+<group>` adds, `-<group>` removes; `d<path>` adds a directory of sockets to be removed, `x<path>` takes that back.
Started as `python -I -S guardian_script.py` with as few imports as possible: it lives as long as the host and should
not be felt (about 3 MB of its own; the module `signal` alone would add a quarter, because it imports `enum`).
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself imports enum
import os
import sys
import time

GRACE_S = 1.0
"""Groups get TERM first and this long to go."""
POLL_S = 0.02


def main() -> None:
    """Read until the end of input, then leave nobody behind."""
    # A Ctrl-C or a service manager's TERM reaches the host as well; the guardian outlives it to clean up.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    groups, directories = read_orders()
    remaining = [group for group in groups if send(group, signal.SIGTERM)]
    deadline = time.monotonic() + GRACE_S
    while remaining and time.monotonic() < deadline:
        time.sleep(POLL_S)
        remaining = [group for group in remaining if send(group, 0)]
    for group in remaining:
        send(group, signal.SIGKILL)
    for directory in directories:
        remove(directory)


def read_orders() -> tuple[set[int], set[bytes]]:
    """The groups and directories that are registered when the input ends."""
    groups: set[int] = set()
    directories: set[bytes] = set()
    rest = b""
    while chunk := os.read(0, 4096):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            sign, rest_of_line = line[:1], line[1:]
            if sign == b"d":
                directories.add(rest_of_line)
            elif sign == b"x":
                directories.discard(rest_of_line)
            elif not rest_of_line.isdigit() or int(rest_of_line) <= 1:
                pass  # group 0 is our own and 1 is init's: neither may ever be signalled
            elif sign == b"+":
                groups.add(int(rest_of_line))
            elif sign == b"-":
                groups.discard(int(rest_of_line))
    return groups, directories


def remove(directory: bytes) -> None:
    """Remove a flat directory; whatever cannot be removed stays."""
    try:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        pass


def send(group: int, signal_number: int) -> bool:
    """Signal a group; False when it is gone."""
    try:
        os.killpg(group, signal_number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    main()
    sys.exit(0)
