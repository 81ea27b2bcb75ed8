"""What is tried, by whom, who has to refuse it, and where that is seen."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.hostile.stage import Stage

Guard = Literal["filesystem", "network", "syscalls", "signals", "host"]

AUDIT: Final = "the kernel's audit log"
"""Of Landlock's refusals, from version 7 on and where auditing is on; the host is not told."""
ANSWER: Final = "the answer"
"""The one who is asked says no, and logs it as any refused request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attack. `reported`: AUDIT, ANSWER, or what the host counts it as."""

    name: str
    attack: str
    guard: Guard
    reported: str
    by: str = "hostile"
    args: Callable[[Stage], Mapping[str, Any]] = lambda stage: {}
    dies: bool = False
    """The plugin is ended for it."""
    only_x86: bool = False


def path(of: Callable[[Stage], Any]) -> Callable[[Stage], Mapping[str, Any]]:
    return lambda stage: {"path": str(of(stage))}


def config(stage: Stage) -> str:
    return stage.config_file


def host_pid(stage: Stage) -> Mapping[str, Any]:
    return {"pid": os.getpid(), "address": stage.memory_address}


def victim_pid(stage: Stage) -> Mapping[str, Any]:
    return {"pid": stage.status("victim").pid}


def in_proc(name: str, of: Callable[[Stage], Mapping[str, Any]] = host_pid) -> Callable[[Stage], Mapping[str, Any]]:
    return lambda stage: {"path": f"/proc/{of(stage)['pid']}/{name}"}


def _file(name: str, attack: str, args: Callable[[Stage], Mapping[str, Any]]) -> Attempt:
    return Attempt(name=name, attack=attack, guard="filesystem", reported=AUDIT, args=args)


def _call(name: str, attack: str, reported: str, args: Callable[[Stage], Mapping[str, Any]] = host_pid) -> Attempt:
    return Attempt(name=name, attack=attack, guard="syscalls", reported=reported, args=args)


def _net(name: str, attack: str, reported: str, args: Callable[[Stage], Mapping[str, Any]], by: str) -> Attempt:
    return Attempt(name=name, attack=attack, guard="network", reported=reported, args=args, by=by)


FILES: Final = (
    _file("read the configuration", "read", path(config)),
    _file("read it through a link in its data directory", "read_through_link", path(config)),
    _file(
        "read it through a link in its own folder", "read", path(lambda stage: stage.directory / "plugins/hostile/link")
    ),
    _file("read it through a hard link", "read_through_hard_link", path(config)),
    _file("read it by a descriptor opened as a place", "read_by_descriptor", path(config)),
    _file("read it through /proc/self/root", "read", lambda stage: {"path": f"/proc/self/root{config(stage)}"}),
    _file("move it into its data directory", "take_away", path(config)),
    _file("read a credential file", "read", path(lambda stage: stage.directory / "auths/account.json")),
    _file("list the credential files", "list_directory", path(lambda stage: stage.directory / "auths")),
    _file("read another plugin's folder", "read", path(lambda stage: stage.directory / "plugins/victim/plugin.py")),
    _file("read another plugin's data", "list_directory", path(lambda stage: stage.directory / "plugin-data/victim")),
    _file("read /etc/shadow", "read", path(lambda stage: "/etc/shadow")),
    _file("list the home directory", "list_directory", path(lambda stage: os.path.expanduser("~"))),
    _file("list /tmp", "list_directory", path(lambda stage: "/tmp")),
    _file("read the environment of process 1", "read", path(lambda stage: "/proc/1/environ")),
    _file("read the host's environment", "read", in_proc("environ")),
    _file("read the host's memory map", "read", in_proc("maps")),
    _file("open the host's memory", "read", in_proc("mem")),
    _file("read the host's command line", "read", in_proc("cmdline")),
    _file("list the host's descriptors", "list_directory", in_proc("fd")),
    _file("read through the host's root", "read", in_proc("root/etc/shadow")),
    _file("read another plugin's environment", "read", in_proc("environ", victim_pid)),
    _file("list all processes", "list_directory", path(lambda stage: "/proc")),
    _file("make the disk's device and read it", "make_device", lambda stage: {"device": [254, 0]}),
    _file("write the configuration (its own policy)", "write", path(config)),
    _file("empty the configuration", "truncate", path(config)),
    _file("empty it while opening it for reading", "empty_while_reading", path(config)),
    _file("delete the configuration", "remove", path(config)),
    _file("put a file in its place", "replace", path(config)),
    _file("write its own manifest", "write", path(lambda stage: stage.directory / "plugins/hostile/plugin.toml")),
    _file("write its own code", "write", path(lambda stage: stage.directory / "plugins/hostile/plugin.py")),
    _file("add a plugin", "make_directory", path(lambda stage: stage.directory / "plugins/another")),
    _file(
        "write what the host remembers of it", "write", path(lambda stage: stage.directory / "plugin-data/.declared/x")
    ),
    _file("write another plugin's data", "write", path(lambda stage: stage.directory / "plugin-data/victim/x")),
    _file("write a credential file", "write", path(lambda stage: stage.directory / "auths/account.json")),
    _file("write into /tmp", "write", path(lambda stage: "/tmp/jackfield-hostile")),
    _file("write into /dev/shm", "write", path(lambda stage: "/dev/shm/jackfield-hostile")),
)

MEMORY_AND_KERNEL: Final = (
    _call("open the configuration to everybody", "change_mode", "chmod", path(config)),
    _call("change its own program's mode by descriptor", "change_mode_by_descriptor", "fchmod"),
    _call("change the configuration's owner", "change_owner", "chown", path(config)),
    _call("set an attribute of the configuration", "set_attribute", "setxattr", path(config)),
    _call("read the host's memory", "read_memory", "process_vm_readv"),
    _call("write the host's memory", "write_memory", "process_vm_writev"),
    _call("trace the host", "trace", "ptrace"),
    _call("trace another plugin", "trace", "ptrace", victim_pid),
    _call("take a descriptor of the host", "take_descriptor", "pidfd_getfd"),
    _call("compare itself with the host", "compare_processes", "kcmp"),
    _call("count the host's events", "count_events", "perf_event_open"),
    _call("read the host's limits", "read_limits", "prlimit64"),
    _call("change the host's priority", "change_priority", "setpriority"),
    _call("pin the host to a processor", "pin_to_processor", "sched_setaffinity"),
    _call("set up io_uring", "io_uring", "io_uring_setup"),
    _call("load a BPF program", "load_bpf", "bpf"),
    _call("handle page faults", "fault_handler", "userfaultfd"),
    _call("read the kernel's keys", "read_keys", "keyctl"),
    _call("mount a file system", "mount", "mount"),
    _call("make namespaces of its own", "own_namespaces", "unshare"),
    _call("fork into namespaces", "fork_into_namespaces", "clone"),
    _call("fork into namespaces with flags out of sight", "fork_with_hidden_flags", ""),
    _call("change its root", "change_root", "chroot"),
    _call("open a file without its path", "open_by_handle", "open_by_handle_at"),
    _call("restart the machine", "restart_machine", "reboot"),
    _call("load a kernel module", "load_module", "finit_module"),
    _call("share memory with everybody", "shared_memory", "shmget"),
    Attempt(
        name="call the kernel in 32 bits", attack="calls_of_32_bits", guard="syscalls", reported=AUDIT, only_x86=True
    ),
    Attempt(
        name="call the kernel by x32 numbers", attack="calls_of_x32", guard="syscalls", reported=AUDIT, only_x86=True
    ),
)

SIGNALS: Final = tuple(
    Attempt(name=name, attack=attack, guard="signals", reported=AUDIT, args=args)
    for name, attack, args in (
        ("signal the host", "send_signal", host_pid),
        ("signal the host by descriptor", "signal_by_descriptor", host_pid),
        ("signal the host's group", "signal_group", lambda stage: {"pid": os.getpgrp()}),
        ("kill another plugin", "kill", victim_pid),
        ("kill the plugin's launcher of old: process 1", "send_signal", lambda stage: {"pid": 1}),
    )
)

NETWORK: Final = (
    _net("connect by TCP", "tcp", "socket(AF_INET)", lambda stage: {"port": stage.port}, "hostile"),
    _net("send by UDP", "udp", "socket(AF_INET, SOCK_DGRAM)", host_pid, "hostile"),
    _net("open an IPv6 socket", "ipv6", "socket(AF_INET6)", host_pid, "hostile"),
    _net("open a raw socket", "raw", "socket(AF_INET, type 3)", host_pid, "hostile"),
    _net("open a packet socket", "packets", "socket(AF_PACKET, type 3)", host_pid, "hostile"),
    _net("open a netlink socket", "netlink", "socket(AF_NETLINK, type 3)", host_pid, "hostile"),
    _net("open a socket of the kernel's ciphers", "crypto", "socket(AF_ALG, type 5)", host_pid, "hostile"),
    _net("connect to the control socket", "unix", "connect", path(lambda stage: stage.control_path), "hostile"),
    _net("connect to another plugin's socket", "unix", "connect", path(Stage.victims_socket), "hostile"),
    _net("connect to an abstract socket", "unix", "connect", path(lambda stage: stage.abstract), "hostile"),
    _net(
        "send a Unix datagram",
        "unix_datagram",
        "socket(AF_UNIX, SOCK_DGRAM)",
        path(lambda stage: "/dev/log"),
        "hostile",
    ),
    _net(
        "send it from a pair",
        "unix_pair_datagram",
        "socketpair(AF_UNIX, SOCK_DGRAM)",
        path(lambda stage: "/dev/log"),
        "hostile",
    ),
    Attempt(
        name="with the network: open a raw socket",
        attack="raw",
        guard="syscalls",
        reported="socket(AF_INET, type 3)",
        by="netter",
    ),
    Attempt(
        name="with the network: connect to the control socket",
        attack="unix",
        guard="syscalls",
        reported="socket(AF_UNIX)",
        by="netter",
        args=path(lambda stage: stage.control_path),
    ),
    Attempt(
        name="with the network: change its policy through the management API",
        attack="management",
        guard="host",
        reported=ANSWER,
        by="netter",
        args=lambda stage: {"port": stage.port, "path": "/v0/management/plugins/netter/config"},
    ),
    Attempt(
        name="with network and a socket: ask the control socket",
        attack="control_socket",
        guard="host",
        reported=ANSWER,
        by="server",
        args=path(lambda stage: stage.control_path),
    ),
    Attempt(
        name="with network and a socket: connect to an abstract one",
        attack="unix",
        guard="signals",
        reported=AUDIT,
        by="server",
        args=path(lambda stage: stage.abstract),
    ),
)

_PLAIN: Final = "host.http to a host that is not allowed"
_PRIVATE: Final = "host.http to an address that is not public"
_CREDENTIAL: Final = "host.http with a credential that is not its own or not for this host"


def _http(name: str, reported: str, url: Callable[[Stage], str], *, by: str = "thief") -> Attempt:
    return Attempt(
        name=name, attack="http", guard="host", reported=reported, by=by, args=lambda stage: {"url": url(stage)}
    )


def _steal(
    name: str,
    provider: str,
    *,
    attack: str = "http",
    url: Callable[[Stage], str] = lambda stage: f"{stage.upstreams.second}/steal",
) -> Attempt:
    """A call with the credential of a provider, or with a handle that is made up when there is no provider."""

    def args(stage: Stage) -> Mapping[str, Any]:
        return {"url": url(stage), "credential": stage.handle_of(provider) if provider else "cred-1"}

    return Attempt(name=name, attack=attack, guard="host", reported=_CREDENTIAL, by="thief", args=args)


def _denied(name: str, method: str, params: Mapping[str, Any], *, by: str = "hostile") -> Attempt:
    reported = f"{method} without permission"
    order = {"method": method, "params": params}
    return Attempt(name=name, attack="callback", guard="host", reported=reported, by=by, args=lambda stage: order)


HOST: Final = (
    _http("call a host its manifest does not name", _PLAIN, lambda stage: "http://other.example/", by="hostile"),
    _http("call any host without naming one", _PLAIN, lambda stage: "http://example.com/", by="caller"),
    _http("call a host in disguise", _PLAIN, lambda stage: "http://api.example.com@127.0.0.1/", by="hostile"),
    _http("call the management API through the host", _PRIVATE, lambda stage: f"{stage.running.url}/v0/management"),
    _http("call it by another spelling", _PRIVATE, lambda stage: f"http://2130706433:{stage.port}/"),
    _http("call it by IPv6", _PRIVATE, lambda stage: f"http://[::ffff:127.0.0.1]:{stage.port}/"),
    _http("call a cloud's metadata service", _PRIVATE, lambda stage: "http://169.254.169.254/latest/meta-data"),
    _steal("use another provider's credential", "openai-compatible-acme"),
    _steal("use a credential whose handle it guesses", ""),
    _steal("send its credential to another host", "openai-compatible-evil"),
    _steal(
        "carry its credential along a redirect",
        "openai-compatible-evil",
        attack="http_after_redirect",
        url=lambda stage: f"{stage.upstreams.first}/go",
    ),
    _denied("keep values (wished for, not granted)", "host.kv.get", {"key": "k"}),
    _denied("keep values (granted, not wished for)", "host.kv.get", {"key": "k"}, by="thief"),
    _denied("run a model", "host.model.execute", {"model": "m", "body": {"json": {}}}),
    _denied("list the credentials", "host.auth.list", {}),
    _denied("read a credential", "host.auth.get", {"auth_index": "0"}),
    _denied("save a credential", "host.auth.save", {"name": "x.json", "file": {}}),
    Attempt(name="see the client's key", attack="client_secret", guard="host", reported="", by="thief"),
    Attempt(
        name="flood the log with frames",
        attack="flood_log",
        guard="host",
        reported="log frame",
        args=lambda stage: {"lines": 8_000},
    ),
    Attempt(
        name="flood the log with stderr",
        attack="flood_stderr",
        guard="host",
        reported="stderr line",
        args=lambda stage: {"megabytes": 2},
    ),
    Attempt(
        name="ask in the name of a call it never got",
        attack="foreign_parent",
        guard="host",
        reported="",
        by="forger",
        args=lambda stage: {"parent": 10_000_000},
        dies=True,
    ),
)

ATTEMPTS: Final = (*FILES, *MEMORY_AND_KERNEL, *SIGNALS, *NETWORK, *HOST)
