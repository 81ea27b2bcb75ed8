"""The filter of system calls, run over calls of both machines."""

import re
import socket
from pathlib import Path

import pytest

from host.runtime.seccomp import (
    ALLOW,
    ARCHITECTURES,
    CHECKED,
    EPERM,
    KILL_PROCESS,
    NOTIFY,
    OF_ANOTHER_PROCESS,
    REFUSED,
    FilterRules,
    build_filter,
    describe_call,
)
from tests.support.bpf import run_filter

ERRNO = 0x00050000
MACHINES = list(ARCHITECTURES)
TABLES = {**REFUSED, **OF_ANOTHER_PROCESS, **CHECKED}
AF_INET, AF_INET6, AF_NETLINK = int(socket.AF_INET), int(socket.AF_INET6), 16
STREAM, DGRAM, RAW = int(socket.SOCK_STREAM), int(socket.SOCK_DGRAM), int(socket.SOCK_RAW)
NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
UNIX = int(socket.AF_UNIX)


def ask(machine: str, name: str, *arguments: int, **rules: bool) -> int:
    program = build_filter(machine, FilterRules(**rules))
    assert program is not None
    architecture = ARCHITECTURES[machine]
    number = TABLES[name][architecture.column]
    assert number is not None
    return run_filter(program, arch=architecture.audit, number=number, arguments=arguments)


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_refused_is_refused_whatever_the_arguments(machine: str):
    column = ARCHITECTURES[machine].column
    for name, numbers in REFUSED.items():
        if numbers[column] is not None:
            assert ask(machine, name, 0, 1, 2, 3) == NOTIFY, name


def test_ordinary_calls_pass(machine: str):
    ordinary = {"x86_64": [0, 1, 9, 59, 202, 257, 231], "aarch64": [63, 64, 222, 221, 98, 56, 94]}[machine]
    program = build_filter(machine, FilterRules())
    assert program is not None
    arch = ARCHITECTURES[machine].audit
    assert {run_filter(program, arch=arch, number=number) for number in ordinary} == {ALLOW}


def test_calls_of_another_architecture_end_the_process(machine: str):
    program = build_filter(machine, FilterRules())
    assert program is not None
    for arch in (0x40000003, 0x40000028):
        assert run_filter(program, arch=arch, number=1) == KILL_PROCESS


def test_calls_with_the_x32_bit_end_the_process():
    program = build_filter("x86_64", FilterRules())
    assert program is not None
    assert run_filter(program, arch=0xC000003E, number=0x40000000 | 41) == KILL_PROCESS


def test_without_a_supervisor_the_kernel_answers_eperm(machine: str):
    assert ask(machine, "ptrace", report=False) == ERRNO | EPERM


def test_a_machine_without_numbers_has_no_filter():
    assert build_filter("riscv64", FilterRules()) is None


@pytest.mark.parametrize(
    ("family", "kind", "closed", "with_network", "with_both"),
    [
        (UNIX, STREAM, True, False, True),
        (UNIX, STREAM | NONBLOCK_CLOEXEC, True, False, True),
        (UNIX, DGRAM, False, False, False),
        (UNIX, RAW, False, False, False),
        (AF_INET, STREAM | NONBLOCK_CLOEXEC, False, True, True),
        (AF_INET6, DGRAM, False, True, True),
        (AF_INET, RAW, False, False, False),
        (AF_NETLINK, RAW, False, False, False),
        (38, STREAM, False, False, False),
        (40, STREAM, False, False, False),
        (17, RAW, False, False, False),
        (1 << 32 | AF_INET, STREAM, False, True, True),
    ],
)
def test_sockets_are_unix_streams_or_with_the_permission_tcp_and_udp(
    machine: str, family: int, kind: int, closed: bool, with_network: bool, with_both: bool
):
    """`with_network`: served over stdio; `with_both`: it serves a Unix socket as well."""
    answers = {True: ALLOW, False: NOTIFY}
    assert ask(machine, "socket", family, kind) == answers[closed]
    assert ask(machine, "socket", family, kind, network=True) == answers[with_network]
    assert ask(machine, "socket", family, kind, network=True, unix_socket=True) == answers[with_both]


def test_pairs_of_unix_streams_are_always_there_and_pairs_of_datagrams_never(machine: str):
    for network in (False, True):
        assert ask(machine, "socketpair", UNIX, STREAM, network=network) == ALLOW
        assert ask(machine, "socketpair", UNIX, DGRAM, network=network) == NOTIFY


def test_nothing_is_connected_to_without_the_permission(machine: str):
    assert ask(machine, "connect", 5) == NOTIFY
    assert ask(machine, "connect", 5, network=True) == ALLOW


def test_processes_and_threads_are_made_but_no_namespaces(machine: str):
    clone_vm_thread = 0x3D0F00
    assert ask(machine, "clone", clone_vm_thread) == ALLOW
    assert ask(machine, "clone", 17) == ALLOW
    assert ask(machine, "clone", 0x10000000 | 17) == NOTIFY
    assert ask(machine, "clone3", 1, 88) == ERRNO | 38
    assert ask(machine, "unshare", 0x400) == ALLOW
    assert ask(machine, "unshare", 0x80) == NOTIFY


def test_limits_and_priorities_are_the_callers_own(machine: str):
    assert ask(machine, "prlimit64", 0, 7) == ALLOW
    assert ask(machine, "prlimit64", 1, 7) == NOTIFY
    assert ask(machine, "sched_setaffinity", 4711) == NOTIFY
    assert ask(machine, "setpriority", 0, 0, 5) == ALLOW
    assert ask(machine, "setpriority", 0, 4711, 5) == NOTIFY
    assert ask(machine, "setpriority", 2, 0, 5) == NOTIFY
    assert ask(machine, "ioprio_set", 1, 0, 5) == ALLOW
    assert ask(machine, "ioprio_set", 3, 0, 5) == NOTIFY


def test_where_landlock_does_not_see_truncation_the_filter_does(machine: str):
    rdonly_trunc, wronly_trunc = 0o1000, 0o1001
    assert ask(machine, "openat", 0, 0, rdonly_trunc) == ALLOW
    assert ask(machine, "openat", 0, 0, rdonly_trunc, guard_truncation=True) == NOTIFY
    assert ask(machine, "openat", 0, 0, wronly_trunc, guard_truncation=True) == ALLOW
    assert ask(machine, "truncate", guard_truncation=True) == NOTIFY
    assert ask(machine, "openat2", guard_truncation=True) == ERRNO | 38


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_the_numbers_are_those_of_the_kernels_headers(header: str, column: int):
    if not Path(header).is_file():
        pytest.skip("the kernel's headers are not installed here")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    official = {name.removeprefix("3264_"): int(number) for name, number in found}
    compared = {name: (numbers[column], official[name]) for name, numbers in TABLES.items() if name in official}
    assert len(compared) > 80
    assert {name: pair for name, pair in compared.items() if pair[0] != pair[1]} == {}
    # What old headers lack is the same on both machines.
    assert all(numbers[0] == numbers[1] for name, numbers in TABLES.items() if name not in official and numbers[1])


def test_a_refused_call_is_named_for_the_operator():
    assert describe_call("x86_64", 101, [0]) == "ptrace"
    assert describe_call("aarch64", 198, [2, 1, 0]) == "socket(AF_INET)"
    assert describe_call("x86_64", 41, [16, 3, 0]) == "socket(AF_NETLINK, type 3)"
    assert describe_call("x86_64", 9999, [0]) == "system call 9999"
