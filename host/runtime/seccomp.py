"""The system calls a plugin process may not make, as a program for the kernel's filter.

Put together by hand instead of with a library: `libseccomp` is one more system package, its bindings do not load in
the launcher (no site-packages, a few milliseconds to start), and the whole program is a chain of comparisons.
Numbers: `asm/unistd_64.h` for x86_64, `asm-generic/unistd.h` for aarch64; both are checked by a test where they exist.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
NOTIFY: Final = 0x7FC00000
"""The kernel asks whoever holds the listener of the filter."""
EPERM: Final = 1
ENOSYS: Final = 38
_ERRNO: Final = 0x00050000

NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. In them a plugin would be root again."""
_NEW_TIME_NAMESPACE: Final = 0x80
_O_ACCMODE: Final = 0o3
_O_TRUNC: Final = 0o1000
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 10
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_SEQPACKET: Final = 5
_SOCK_TYPE_MASK: Final = 0xF

_FAMILY_NAMES: Final[Mapping[int, str]] = {
    AF_UNIX: "AF_UNIX",
    AF_INET: "AF_INET",
    AF_INET6: "AF_INET6",
    16: "AF_NETLINK",
    17: "AF_PACKET",
    38: "AF_ALG",
    40: "AF_VSOCK",
}


class Architecture(NamedTuple):
    """What the filter needs to know about a machine."""

    audit: int
    """AUDIT_ARCH_*: calls in another one, 32-bit ones for example, have other numbers and end the process."""
    column: int
    """Of the table of numbers."""


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "x86_64": Architecture(0xC000003E, 0),
    "aarch64": Architecture(0xC00000B7, 1),
}
_X32_BIT: Final = 0x40000000

Numbers = tuple[int | None, int | None]

REFUSED: Final[Mapping[str, Numbers]] = {
    # Other processes: their memory, descriptors and secrets.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Ways around a filter of system calls, and large surfaces of the kernel.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # The file system as others see it, and files without their path.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # Modes, owners and attributes: Landlock does not look at them, and the host's files belong to the same user.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # Memory and queues that all processes of a user share without a file.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # The machine.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}
"""Refused whatever the arguments: name -> number on x86_64 and on aarch64."""

OF_ANOTHER_PROCESS: Final[Mapping[str, Numbers]] = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Allowed when the first argument, a process id, is 0: the caller. A user may set limits of all its processes, and
`prlimit64` alone could end the host."""

CHECKED: Final[Mapping[str, Numbers]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "truncate": (76, 45),
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
}
"""Allowed or refused by their arguments; see `build_filter`."""

_LD_WORD: Final = 0x20
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_AND: Final = 0x54
_RET: Final = 0x06
_NR_AT: Final = 0
_ARCH_AT: Final = 4
_ARGS_AT: Final = 16

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, value: one `struct sock_filter`."""


class FilterRules(Struct, frozen=True, kw_only=True):
    """What one plugin may do beyond the common denial."""

    network: bool = False
    """It was granted the permission `network`."""
    unix_socket: bool = False
    """The host talks to it over a Unix socket that it serves."""
    guard_truncation: bool = False
    """For kernels whose Landlock does not look at truncation."""
    report: bool = True
    """Refusals are reported to the holder of the filter's listener; otherwise the kernel answers EPERM."""


def build_filter(machine: str, rules: FilterRules) -> bytes | None:
    """The program for `seccomp(2)` as it lies in memory; None for a machine whose numbers are not known here.

    `socket` is allowed for Unix streams, and for TCP and UDP with `network`. `connect` is refused without `network`:
    no kernel so far keeps a process from connecting to a Unix socket by its path, and the host's control socket,
    container engines and message buses listen on such paths. With `network` it has to be allowed, so Unix sockets are
    refused instead, unless the plugin itself has to serve one. Unix datagrams are refused always: they reach a path
    without `connect`.
    """
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        return None
    refuse = NOTIFY if rules.report else _ERRNO | EPERM
    program: list[Instruction] = [
        (_LD_WORD, 0, 0, _ARCH_AT),
        (_JEQ, 1, 0, architecture.audit),
        (_RET, 0, 0, KILL_PROCESS),
        (_LD_WORD, 0, 0, _NR_AT),
    ]
    if machine == "x86_64":
        program += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, KILL_PROCESS)]
    for name, block in _blocks(rules, refuse):
        number = _number(name, architecture)
        if number is not None:
            program += [(_JEQ, 0, len(block), number), *block]
    program.append((_RET, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _blocks(rules: FilterRules, refuse: int) -> Sequence[tuple[str, list[Instruction]]]:
    """What to do per system call; every block ends with an answer."""
    streams = (SOCK_STREAM, SOCK_SEQPACKET)
    pairs = {AF_UNIX: streams}
    sockets = dict(pairs) if rules.unix_socket or not rules.network else {}
    if rules.network:
        sockets |= {AF_INET: (SOCK_STREAM, SOCK_DGRAM), AF_INET6: (SOCK_STREAM, SOCK_DGRAM)}
    blocks = [(name, [_answer(refuse)]) for name in REFUSED]
    blocks += [(name, _only_zero(0, refuse)) for name in OF_ANOTHER_PROCESS]
    blocks += [
        ("clone", _without_bits(0, NEW_NAMESPACES, refuse)),
        # Its flags lie in memory, where a filter cannot look; without it C libraries fall back to `clone`.
        ("clone3", [_answer(_ERRNO | ENOSYS)]),
        ("unshare", _without_bits(0, NEW_NAMESPACES | _NEW_TIME_NAMESPACE, refuse)),
        ("socket", _only_sockets(sockets, refuse)),
        ("socketpair", _only_sockets(pairs, refuse)),
        # PRIO_PROCESS of the caller; IOPRIO_WHO_PROCESS of the caller.
        ("setpriority", _only(0, 0, _only_zero(1, refuse), refuse)),
        ("ioprio_set", _only(0, 1, _only_zero(1, refuse), refuse)),
    ]
    if not rules.network:
        blocks.append(("connect", [_answer(refuse)]))
    if rules.guard_truncation:
        blocks += [
            ("truncate", [_answer(refuse)]),
            ("open", _no_truncating_read(1, refuse)),
            ("openat", _no_truncating_read(2, refuse)),
            ("openat2", [_answer(_ERRNO | ENOSYS)]),
        ]
    return blocks


def _answer(value: int) -> Instruction:
    return (_RET, 0, 0, value)


def _load(argument: int) -> Instruction:
    """The low half, which is all the kernel looks at in the arguments used here."""
    return (_LD_WORD, 0, 0, _ARGS_AT + 8 * argument)


def _only_zero(argument: int, refuse: int) -> list[Instruction]:
    return _only(argument, 0, [_answer(ALLOW)], refuse)


def _only(argument: int, value: int, then: list[Instruction], refuse: int) -> list[Instruction]:
    return [_load(argument), (_JEQ, 1, 0, value), _answer(refuse), *then]


def _without_bits(argument: int, bits: int, refuse: int) -> list[Instruction]:
    return [_load(argument), (_JSET, 0, 1, bits), _answer(refuse), _answer(ALLOW)]


def _only_sockets(families: Mapping[int, tuple[int, int]], refuse: int) -> list[Instruction]:
    block = [_load(0)]
    for family, (one, other) in families.items():
        checks: list[Instruction] = [_load(1), (_AND, 0, 0, _SOCK_TYPE_MASK), (_JEQ, 1, 0, one), (_JEQ, 0, 1, other)]
        checks += [_answer(ALLOW), _answer(refuse)]
        block += [(_JEQ, 0, len(checks), family), *checks]
    return [*block, _answer(refuse)]


def _no_truncating_read(argument: int, refuse: int) -> list[Instruction]:
    """Opening for reading with O_TRUNC empties a file that may only be read."""
    return [
        _load(argument),
        (_AND, 0, 0, _O_TRUNC | _O_ACCMODE),
        (_JEQ, 0, 1, _O_TRUNC),
        _answer(refuse),
        _answer(ALLOW),
    ]


def _number(name: str, architecture: Architecture) -> int | None:
    table = next(table for table in (REFUSED, OF_ANOTHER_PROCESS, CHECKED) if name in table)
    return table[name][architecture.column]


def call_name(machine: str, number: int) -> str | None:
    """The name of a call that `build_filter` looks at."""
    architecture = ARCHITECTURES.get(machine)
    if architecture is not None:
        for table in (REFUSED, OF_ANOTHER_PROCESS, CHECKED):
            for name, numbers in table.items():
                if numbers[architecture.column] == number:
                    return name
    return None


def describe_call(machine: str, number: int, arguments: Sequence[int]) -> str:
    """A refused call as the operator reads it: `ptrace`, `socket(AF_INET)`."""
    name = call_name(machine, number) or f"system call {number}"
    return f"{name}({_family_name(arguments)})" if name in ("socket", "socketpair") else name


def _family_name(arguments: Sequence[int]) -> str:
    family = arguments[0] & 0xFFFFFFFF
    name = _FAMILY_NAMES.get(family, f"family {family}")
    kind = arguments[1] & _SOCK_TYPE_MASK
    return name if kind == SOCK_STREAM else f"{name}, {'SOCK_DGRAM' if kind == SOCK_DGRAM else f'type {kind}'}"
