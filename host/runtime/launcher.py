"""Runs between spawn and the plugin: sets limits and no-new-privileges on itself, then becomes the plugin.

A program of its own because code between fork and exec is not safe in a host with threads. Started as
`python -I -S launcher.py OPTIONS -- COMMAND…`; only the standard library, nothing of ours, nothing beyond what it
needs, because every plugin start waits for it. A command that cannot be executed is exit status 127 (not found) or
126 (anything else) with one line on stderr.
"""

import os
import sys

PR_SET_NO_NEW_PRIVS = 38
SIGPIPE = 13
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
LAUNCHER_PREFIX = "jackfield-launcher: "


def main(arguments: list[str]) -> int:
    """Apply the options, then exec. Returns an exit status only when the command cannot be executed."""
    options, command = split(arguments)
    for option in options:
        name, _, value = option.partition("=")
        if name == "--guardian-fd":
            announce(int(value))
        elif name == "--no-new-privs":
            forbid_new_privileges()
        elif name == "--unset":
            os.environ.pop(value, None)
        else:
            set_limit(name, int(value))
    restore_signals()
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"{LAUNCHER_PREFIX}cannot execute {command[0]}: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options before `--`, the command after it."""
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def announce(guardian_fd: int) -> None:
    """Tell the guardian about this process group before the plugin's own code can run.

    The host announces it too, but may be killed between spawning and announcing.
    """
    os.write(guardian_fd, b"+%d\n" % os.getpid())
    os.close(guardian_fd)


def forbid_new_privileges() -> None:
    """Set-user-id programs give the plugin nothing from here on. Only Linux has it; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def restore_signals() -> None:
    """Every Python start ignores SIGPIPE; the plugin would inherit that, and a shell pipeline relies on the default.

    Through the C library, because the module `signal` costs more time than all the rest of this program.
    """
    import ctypes

    ctypes.CDLL(None).signal(SIGPIPE, None)


def set_limit(name: str, value: int) -> None:
    """`--data=BYTES`, `--nofile=COUNT`, `--core=BYTES`; never above the hard limit the host itself has."""
    import resource

    what = {"--data": resource.RLIMIT_DATA, "--nofile": resource.RLIMIT_NOFILE, "--core": resource.RLIMIT_CORE}[name]
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
