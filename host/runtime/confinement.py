"""What the kernel keeps a plugin process from doing: planned here, applied by the launcher, shown in its status.

Two mechanisms, both for ordinary users and without anything to install: Landlock for files, TCP, signals and abstract
sockets, a seccomp filter for everything that is a system call. Both hold for the process and all it starts, for ever.
Landlock is used through its three system calls: the bindings on PyPI would have to be imported by the launcher, which
runs without site-packages and should take no time.
"""

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from host.runtime.confine_paths import (
    NEVER,
    OWN_PROCESS_FILES,
    PROCESS_SYSTEM_FILES,
    READ_DEVICES,
    WRITE_DEVICES,
    carved,
    python_paths,
    system_paths,
    without,
)
from host.runtime.seccomp import NOTIFY, FilterRules, build_filter

ConfinementMode = Literal["auto", "required", "off"]
Part = Literal["filesystem", "network", "syscalls", "signals"]
PARTS: Final[tuple[Part, ...]] = ("filesystem", "network", "syscalls", "signals")

_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_SECCOMP_NUMBERS: Final[Mapping[str, int]] = {"x86_64": 317, "aarch64": 277}
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_RET_ERRNO: Final = 0x00050000

# Rights on files, as the kernel numbers them.
EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_CHAR: Final = 1 << 6
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_MAKE_SOCK: Final = 1 << 9
_MAKE_FIFO: Final = 1 << 10
_MAKE_BLOCK: Final = 1 << 11
_MAKE_SYM: Final = 1 << 12
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_FILES_BY_ABI: Final[Mapping[int, int]] = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_BIND_AND_CONNECT_TCP: Final = 0b11
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11
_SIGNALS_SINCE: Final = 6
_LOG_NEW_EXEC_ON: Final = 2
"""Let the kernel's audit log have what the plugin was refused: the launcher's exec would end that."""

READ: Final = EXECUTE | READ_FILE | READ_DIR
WRITE: Final = (
    READ
    | WRITE_FILE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SOCK
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
    | _TRUNCATE
)
"""No devices: as root they would be the disk itself."""
WRITE_DEVICE: Final = READ_FILE | WRITE_FILE | _TRUNCATE | _IOCTL_DEV

KEPT_CAPABILITIES: Final = 1 << 1
"""CAP_DAC_OVERRIDE, of a host that runs as root: its plugins' files may belong to somebody else. Everything else that
makes root root is dropped."""

_LANDLOCK_ABSENT: Final = "the kernel has no Landlock (Linux 5.13), or it is not switched on (lsm=landlock)"
_SECCOMP_ABSENT: Final = "the kernel has no seccomp filters"


class Kernel(Struct, frozen=True, kw_only=True):
    """What this kernel offers."""

    landlock: int = 0
    """The version of its interface; 0: none."""
    landlock_absence: str = _LANDLOCK_ABSENT
    seccomp: bool = False
    seccomp_notify: bool = False
    seccomp_absence: str = _SECCOMP_ABSENT
    machine: str = ""
    capabilities: bool = False
    """Root's rights can be dropped one by one."""


class ConfinementReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is in force for a plugin, and why the rest is not."""

    mode: str
    in_force: tuple[str, ...] = ()
    """Of `PARTS`."""
    missing: Mapping[str, str] = {}
    """Part -> reason."""
    note: str = ""
    """What else there is to say, in a sentence."""


IN_PROCESS: Final = ConfinementReport(mode="off", note="none: runs with the host's rights")
ATTACHED: Final = ConfinementReport(mode="off", note="none: somebody else runs this process")
SWITCHED_OFF: Final = ConfinementReport(mode="off", note="none: switched off by the operator's policy")


class Wanted(Struct, frozen=True, kw_only=True):
    """One process to be confined."""

    mode: ConfinementMode
    own_paths: Sequence[Path]
    """The plugin's folder, and the SDK where it is linked for it."""
    data_dir: Path
    programs: Sequence[Path] = ()
    """What the command itself needs, from `program_paths`."""
    python: bool = False
    """It runs under the host's interpreter."""
    read_paths: Sequence[Path] = ()
    """Granted by the operator."""
    hidden: Sequence[Path] = ()
    """Never readable, wherever it lies: configuration, credentials, other plugins' data."""
    socket_dir: Path | None = None
    """Where it serves its socket, if it does."""
    network: bool = False


class Confinement(Struct, frozen=True, kw_only=True):
    """What the launcher is told, and what that comes to."""

    options: tuple[str, ...]
    report: ConfinementReport
    reports_refusals: bool
    """The launcher hands over a listener when it is given `--report-fd`, which has to stand before `options`."""


@functools.cache
def this_kernel() -> Kernel:
    """Asked once: a kernel does not change while the host runs."""
    machine = os.uname().machine
    if not sys.platform.startswith("linux"):
        elsewhere = f"{sys.platform} has neither Landlock nor seccomp"
        return Kernel(landlock_absence=elsewhere, seccomp_absence=elsewhere, machine=machine)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    landlock = int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION))
    why_not = ctypes.get_errno()
    seccomp = _offers_action(libc, machine, _RET_ERRNO)
    return Kernel(
        landlock=max(0, landlock),
        landlock_absence=_absence(why_not),
        seccomp=seccomp,
        seccomp_notify=seccomp and _offers_action(libc, machine, NOTIFY),
        seccomp_absence=_SECCOMP_ABSENT
        if machine in _SECCOMP_NUMBERS
        else f"there is no filter for {machine}, only for {' and '.join(_SECCOMP_NUMBERS)}",
        machine=machine,
        capabilities=True,
    )


def _offers_action(libc: Any, machine: str, action: int) -> bool:
    number = _SECCOMP_NUMBERS.get(machine)
    asked = ctypes.byref(ctypes.c_uint32(action))
    return number is not None and libc.syscall(number, _SECCOMP_GET_ACTION_AVAIL, 0, asked) == 0


def _absence(error: int) -> str:
    if error == errno.EPERM:
        return "something around the host, such as a container's seccomp profile, forbids Landlock"
    return _LANDLOCK_ABSENT


def plan_confinement(wanted: Wanted, kernel: Kernel) -> Confinement:
    """Everything the kernel has of what `wanted` asks for; that `required` is met is for the caller to check."""
    options: list[str] = []
    if kernel.landlock:
        options += _landlock_options(wanted, kernel.landlock)
    if kernel.capabilities:
        options.append(f"--capabilities={KEPT_CAPABILITIES}")
    rules = FilterRules(
        network=wanted.network,
        unix_socket=wanted.socket_dir is not None,
        guard_truncation=0 < kernel.landlock < 3,
        report=kernel.seccomp_notify,
    )
    program = build_filter(kernel.machine, rules) if kernel.seccomp else None
    if program is not None:
        options.append(f"--seccomp={program.hex()}")
    return Confinement(
        options=tuple(options),
        report=what_is_in_force(wanted.mode, network=wanted.network, kernel=kernel),
        reports_refusals=program is not None and kernel.seccomp_notify,
    )


def what_is_in_force(mode: ConfinementMode, *, network: bool, kernel: Kernel) -> ConfinementReport:
    """What a plugin process gets under this policy, running or not; `network` is whether it was granted that."""
    if mode == "off":
        return SWITCHED_OFF
    missing: dict[str, str] = {}
    if not kernel.landlock:
        missing["filesystem"] = kernel.landlock_absence
    if not kernel.seccomp:
        if not network:
            missing["network"] = kernel.seccomp_absence
        missing["syscalls"] = kernel.seccomp_absence
    if kernel.landlock < _SIGNALS_SINCE:
        old = f"Landlock has version {kernel.landlock} here, signals need {_SIGNALS_SINCE} (Linux 6.12)"
        missing["signals"] = old if kernel.landlock else kernel.landlock_absence
    in_force = [part for part in PARTS if part not in missing and not (part == "network" and network)]
    note = "the network is open to it: it was granted the permission `network`" if network else ""
    return ConfinementReport(mode=mode, in_force=tuple(in_force), missing=missing, note=note)


def why_refused(report: ConfinementReport) -> str:
    """Why a plugin whose confinement is `required` may not start; empty when it may."""
    if report.mode != "required" or not report.missing:
        return ""
    reasons = "; ".join(f"{part}: {reason}" for part, reason in report.missing.items())
    return f"its confinement is required and cannot be had in full ({reasons})"


def _landlock_options(wanted: Wanted, abi: int) -> list[str]:
    files = next(rights for since, rights in sorted(_FILES_BY_ABI.items(), reverse=True) if since <= abi)
    network = _BIND_AND_CONNECT_TCP if abi >= 4 and not wanted.network else 0
    scopes = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= _SIGNALS_SINCE else 0
    flags = _LOG_NEW_EXEC_ON if abi >= 7 else 0
    readable = dict.fromkeys(_shared_paths(tuple(wanted.hidden), wanted.python))
    readable.update(dict.fromkeys(without(wanted.programs, wanted.hidden, beneath=readable)))
    readable.update(dict.fromkeys(carved([*wanted.own_paths, *wanted.read_paths], wanted.hidden)))
    writable = [wanted.data_dir, *([wanted.socket_dir] if wanted.socket_dir is not None else [])]
    rules = [(READ, path) for path in readable] + [(WRITE, path) for path in writable]
    rules += [(READ_FILE, Path("/proc/self") / name) for name in OWN_PROCESS_FILES]
    rules += [(READ_FILE | READ_DIR, Path(path)) for path in PROCESS_SYSTEM_FILES]
    rules += [(READ_FILE | _IOCTL_DEV, Path(path)) for path in READ_DEVICES]
    rules += [(WRITE_DEVICE, Path(path)) for path in WRITE_DEVICES]
    begin = f"--landlock={files}:{network}:{scopes}:{flags}"
    return [begin, *(f"--allow={rights}:{path}" for rights, path in rules), "--enter"]


@functools.lru_cache(maxsize=16)
def _shared_paths(hidden: tuple[Path, ...], python: bool) -> tuple[Path, ...]:
    """The same for all plugins under one configuration; a few milliseconds, so worked out once. What is installed for
    development while the host runs is readable after its restart."""
    paths = [*system_paths(), *(python_paths() if python else ())]
    return tuple(without(paths, [*hidden, *(Path(path) for path in NEVER)]))


class HeldFiles:
    """Keeps files of /proc and /sys the same files, as long as it is open.

    Landlock knows files by their place in the kernel's memory. These ones are made anew whenever that was cleared, and
    a rule for them would silently end; while somebody holds them they stay.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._fds: list[int] = []
        for path in paths:
            try:
                self._fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
            except OSError:
                continue  # not there: then there is no rule for it either

    @classmethod
    def of_process(cls, pid: int) -> "HeldFiles":
        """What a process may read about itself. To be made before its launcher comes to its rules."""
        return cls(f"/proc/{pid}/{name}" for name in OWN_PROCESS_FILES)

    @classmethod
    def of_system(cls) -> "HeldFiles":
        """What all may read about the machine."""
        return cls(PROCESS_SYSTEM_FILES)

    def close(self) -> None:
        """Let them go. Idempotent."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
