"""Runs between spawn and the plugin: limits and confines itself, then becomes the plugin.

A program of its own because code between fork and exec is not safe in a host with threads. Started as
`python -I -S launcher.py OPTIONS -- COMMAND…`; only the standard library, nothing of ours, nothing beyond what it
needs, because every plugin start waits for it. The options are applied in the order in which they stand. A command
that cannot be executed is exit status 127 (not found) or 126 (anything else) with one line on stderr; a confinement
that the kernel refuses is 125, and the plugin does not run.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_DROP = 24
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_FILE_RIGHTS = 0b1100_0000_0000_0111
"""Execute, write, read, truncate, device ioctl: the only rights a rule may give on something that is no directory."""
SECCOMP = {"x86_64": 317, "aarch64": 277}
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_RET_NOTIFY = b"\x06\0\0\0\0\0\xc0\x7f"
SECCOMP_RET_EPERM = b"\x06\0\0\0\1\0\5\0"
CAPABILITY_VERSION_3 = 0x20080522
SIGPIPE = 13
EXIT_NOT_CONFINED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
LAUNCHER_PREFIX = "jackfield-launcher: "


def main(arguments: list[str]) -> int:
    """Apply the options, then exec. Returns an exit status only when the command cannot be executed."""
    options, command = split(arguments)
    confinement = None
    try:
        for option in options:
            name, _, value = option.partition("=")
            if name == "--guardian-fd":
                announce(int(value))
                continue
            # Not before: whoever is not announced may be left behind.
            confinement = confinement or Confinement()
            if name == "--no-new-privs":
                forbid_new_privileges()
            elif name == "--unset":
                os.environ.pop(value, None)
            elif not confinement.option(name, value):
                set_limit(name, int(value))
    except NotConfined as error:
        print(f"{LAUNCHER_PREFIX}cannot confine the plugin: {error}", file=sys.stderr)
        return EXIT_NOT_CONFINED
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


class NotConfined(Exception):
    """The kernel refused a step that it was expected to take."""


class Confinement:
    """What the kernel keeps this process, and everything it starts, from doing; it cannot be taken back.

    `--landlock=FILES:NETWORK:SCOPES:FLAGS` begins a domain that refuses these rights (masks of the kernel's
    interface), `--allow=RIGHTS:PATH` gives some of them back beneath a path, `--enter` takes effect.
    `--capabilities=MASK` keeps these and drops all others. `--report-fd=FD` is a socket that gets the listener of
    the filter that `--seccomp=HEX` installs.
    """

    def __init__(self) -> None:
        import ctypes

        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        # Converted once: there are some dozens of these calls, and every plugin start waits for them.
        self._long = ctypes.c_long
        self._errno = ctypes.get_errno
        self._ruleset = -1
        self._handled_files = 0
        self._flags = 0
        self._report_to: _socket.socket | None = None

    def option(self, name: str, value: str) -> bool:
        """Apply one option; False when it is none of these."""
        if name == "--landlock":
            self.begin(*(int(number) for number in value.split(":")))
        elif name == "--allow":
            rights, _, path = value.partition(":")
            self.allow(int(rights), path)
        elif name == "--enter":
            self.enter()
        elif name == "--capabilities":
            keep_capabilities(int(value))
        elif name == "--report-fd":
            # While modules can still be read: the interpreter's own need not be among what the plugin may read.
            self._report_to = unix_socket(int(value))
        elif name == "--seccomp":
            self.filter_calls(bytes.fromhex(value))
        else:
            return False
        return True

    def kernel(self, what: str, number: int, *arguments: "int | bytes") -> int:
        """A system call that the C library has no function for; bytes go as a pointer to them. Raises NotConfined."""
        given = [self._long(value) if isinstance(value, int) else value for value in arguments]
        result = int(self._libc.syscall(self._long(number), *given))
        if result < 0:
            raise NotConfined(f"{what}: {os.strerror(self._errno())}")
        return result

    def begin(self, files: int, network: int, scopes: int, flags: int) -> None:
        """A ruleset in the widest form: a kernel that knows less takes it as long as the rest is zero."""
        attributes = b"".join(mask.to_bytes(8, sys.byteorder) for mask in (files, network, scopes))
        self._handled_files, self._flags = files, flags
        self._ruleset = self.kernel("landlock", LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)

    def allow(self, rights: int, path: str) -> None:
        """Give rights beneath a path; one that is gone meanwhile gets none."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        if os.fstat(fd).st_mode & 0o170000 != 0o040000:
            rights &= LANDLOCK_FILE_RIGHTS
        rule = (rights & self._handled_files).to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
        self.kernel(f"landlock on {path}", LANDLOCK_ADD_RULE, self._ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(fd)

    def enter(self) -> None:
        """From here on only what the rules allow."""
        self.kernel("landlock", LANDLOCK_RESTRICT_SELF, self._ruleset, self._flags)
        os.close(self._ruleset)

    def filter_calls(self, program: bytes) -> None:
        """Install a filter of system calls; refusals are reported where somebody can be given the listener."""
        if self._report_to is not None:
            try:
                listener = self.set_filter(program, SECCOMP_FILTER_FLAG_NEW_LISTENER)
            except NotConfined:
                pass  # somebody further up, a container engine for example, listens already
            else:
                send_fd(self._report_to, listener)
                os.close(listener)
                return
        # Nobody to ask: the kernel answers by itself.
        steps = (program[at : at + 8] for at in range(0, len(program), 8))
        self.set_filter(b"".join(SECCOMP_RET_EPERM if step == SECCOMP_RET_NOTIFY else step for step in steps), 0)

    def set_filter(self, program: bytes, flags: int) -> int:
        """Install a filter; the descriptor of its listener if one was asked for. Raises NotConfined."""
        import ctypes

        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

        description = bytes(Program(len(program) // 8, program))
        number = SECCOMP[os.uname().machine]
        return self.kernel("seccomp", number, SECCOMP_SET_MODE_FILTER, flags, description)


def unix_socket(fd: int) -> "_socket.socket":
    """Closed by exec. The module `socket` would cost more time than all the rest of this program."""
    import _socket

    os.set_inheritable(fd, False)
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=fd)


def send_fd(peer: "_socket.socket", fd: int) -> None:
    """Pass a descriptor through a Unix socket."""
    import _socket

    peer.sendmsg([b"!"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))])


def keep_capabilities(mask: int) -> None:
    """Keep at most these of the rights that make root root; without effect for an ordinary user."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        # Out of the bounding set, or the next exec of root would bring all of them back.
        if not mask >> number & 1:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    kept = [bits & (mask >> 32 * (at // 3)) for at, bits in enumerate(sets)]
    if libc.capset(header, (ctypes.c_uint32 * 6)(*kept)) < 0:
        raise NotConfined(f"capset: {os.strerror(ctypes.get_errno())}")


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
