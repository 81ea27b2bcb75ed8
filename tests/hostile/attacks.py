"""The attacks. Each either returns something, which is a breach, or raises: OSError from the kernel, Refused from the
host. What could do damage where it is not refused has arguments that the kernel itself would not take: EINVAL, EFAULT
and their like are no refusal, and count as a breach."""

import ctypes
import mmap
import os
import platform
import signal
import socket
import struct
import subprocess

X86 = platform.machine() == "x86_64"
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


class Refused(Exception):
    """The host said no; the text is its error code."""


class Context:
    """One attack: the wire to the host, the call it runs in, and what the attacker is supposed to have found out."""

    def __init__(self, wire, call_id, shown, args):
        self.wire, self.call_id, self.shown, self.args = wire, call_id, shown, args

    def __getattr__(self, name):
        try:
            return self.args[name]
        except KeyError:
            raise AttributeError(name) from None

    def ask(self, callback, *, parent=None, **params):
        return self.wire.ask(callback, params, parent or self.call_id)


def kernel(on_x86, elsewhere, *arguments):
    """A system call by number. Raises OSError."""
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = LIBC.syscall(ctypes.c_long(on_x86 if X86 else elsewhere), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def readable(path):
    with open(path, "rb") as file:
        return file.read(100)


def writable(path):
    with open(path, "ab") as file:
        return file.write(b" ")


# -- files

read = lambda it: readable(it.path)  # noqa: E731
write = lambda it: writable(it.path)  # noqa: E731
list_directory = lambda it: os.listdir(it.path)  # noqa: E731
remove = lambda it: os.unlink(it.path)  # noqa: E731
truncate = lambda it: os.truncate(it.path, 0)  # noqa: E731
change_mode = lambda it: os.chmod(it.path, 0o777)  # noqa: E731
change_owner = lambda it: os.chown(it.path, os.getuid(), os.getgid())  # noqa: E731
set_attribute = lambda it: os.setxattr(it.path, "user.evil", b"1")  # noqa: E731
make_directory = lambda it: os.mkdir(it.path)  # noqa: E731
replace = lambda it: os.rename(__file__, it.path)  # noqa: E731


def read_through_link(it):
    link = "link"
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(it.path, link)
    return readable(link)


def read_through_hard_link(it):
    os.link(it.path, "hard")
    return readable("hard")


def take_away(it):
    os.rename(it.path, "taken")
    return readable("taken")


def read_by_descriptor(it):
    fd = os.open(it.path, os.O_PATH)
    return readable(f"/proc/self/fd/{fd}")


def empty_while_reading(it):
    return os.close(os.open(it.path, os.O_RDONLY | os.O_TRUNC))


def change_mode_by_descriptor(it):
    return os.fchmod(os.open(__file__, os.O_RDONLY), 0o777)


def make_device(it):
    os.mknod("disk", 0o600 | 0o060000, os.makedev(*it.device))
    return readable("disk")


# -- other processes


def read_memory(it):
    local = ctypes.create_string_buffer(16)
    ours = struct.pack("PN", ctypes.addressof(local), 16)
    theirs = struct.pack("PN", it.address, 16)
    return kernel(310, 270, it.pid, ours, 1, theirs, 1, 0)


def write_memory(it):
    return kernel(311, 271, it.pid, 0, 1, 0, 1, 0)


PTRACE_SEIZE = 0x4206


def trace(it):
    kernel(101, 117, PTRACE_SEIZE, it.pid, 0, 0)
    return "attached"


def take_descriptor(it):
    return kernel(438, 438, os.pidfd_open(it.pid), 0, 0)


def compare_processes(it):
    return kernel(312, 272, os.getpid(), it.pid, 0, 0, 0)


def read_limits(it):
    return kernel(302, 261, it.pid, 7, 0, ctypes.create_string_buffer(16))


def change_priority(it):
    return os.setpriority(os.PRIO_PROCESS, it.pid, 0)


def pin_to_processor(it):
    return os.sched_setaffinity(it.pid, os.sched_getaffinity(0))


def send_signal(it):
    os.kill(it.pid, 0)
    return "it could have been any signal"


def kill(it):
    os.kill(it.pid, signal.SIGKILL)
    return "killed"


def signal_by_descriptor(it):
    signal.pidfd_send_signal(os.pidfd_open(it.pid), 0)
    return "it could have been any signal"


def signal_group(it):
    os.killpg(it.pid, 0)
    return "it could have been any signal"


def signal_everybody(it):
    os.kill(-1, 0)
    return "it could have been any signal"


# -- the kernel


def io_uring(it):
    return kernel(425, 425, 1, ctypes.create_string_buffer(120))


def load_bpf(it):
    return kernel(321, 280, 0, ctypes.create_string_buffer(128), 128)


def fault_handler(it):
    return kernel(323, 282, 1)


def read_keys(it):
    return kernel(250, 219, 0, ctypes.c_int(-3).value, 0)


def count_events(it):
    attributes = struct.pack("=II", 1, 112) + bytes(104)
    return kernel(298, 241, attributes, it.pid, -1, -1, 0)


def mount(it):
    return kernel(165, 40, 0, 0, 0, 0, 0)


def own_namespaces(it):
    return kernel(272, 97, 0x10000000 | 1)


def fork_into_namespaces(it):
    clone_newuser, clone_fs = 0x10000000, 0x200
    return kernel(56, 220, clone_newuser | clone_fs | 17, 0, 0, 0, 0)


def fork_with_hidden_flags(it):
    return kernel(435, 435, 0, 0)


def change_root(it):
    return os.chroot("/")


def open_by_handle(it):
    return kernel(304, 265, -100, struct.pack("=II", 8, 1) + bytes(8), 0)


def restart_machine(it):
    return kernel(169, 142, 0, 0, 0, 0)


def load_module(it):
    return kernel(313, 273, 0, b"", 0)


def shared_memory(it):
    return kernel(29, 194, 0x6A66, -1, 0o1600)


def in_a_child(work):
    """How a child that does `work` ends: Refused with the name of the signal, or what it found."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise Refused(signal.Signals(os.WTERMSIG(status)).name)
    return "survived"


def calls_of_32_bits(it):
    def work():
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # getpid by int 0x80
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()

    return in_a_child(work)


def calls_of_x32(it):
    return in_a_child(lambda: LIBC.syscall(ctypes.c_long(0x40000000 | 41), 2, 1, 0))


def regain_rights(it):
    """A set-user-id program, or a file with capabilities, changes nothing."""
    found = subprocess.run(["su", "-c", "id -u"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if found.returncode == 0 and os.getuid() != 0:
        return found.stdout
    return os.setuid(os.getuid() + 1)


# -- the network


def tcp(it):
    return socket.create_connection(("127.0.0.1", it.port), 2)


def udp(it):
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))


def ipv6(it):
    return socket.socket(socket.AF_INET6, socket.SOCK_STREAM)


def raw(it):
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)


def packets(it):
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def netlink(it):
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


def crypto(it):
    return socket.socket(38, socket.SOCK_SEQPACKET)


def unix(it):
    """A pathname, or with a leading zero an abstract name."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(it.path)
    return "connected"


def unix_datagram(it):
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", it.path)


def unix_pair_datagram(it):
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", it.path)


def control_socket(it):
    """The answer of the proxy's control socket, when it can be connected to."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(it.path)
    peer.sendall(b"GET /plugins HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return http_status(peer)


def management(it):
    peer = socket.create_connection(("127.0.0.1", it.port), 5)
    body = b'{"permissions":["http","auth.read"]}'
    head = f"PUT {it.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    peer.sendall(head.encode() + body)
    return http_status(peer)


def http_status(peer):
    status = int(peer.recv(100).split()[1])
    if status in (401, 403, 404, 405):
        raise Refused(f"HTTP {status}")
    return status


# -- the host


def http(it):
    more = {"credential": it.args["credential"]} if "credential" in it.args else {}
    return it.ask("host.http.do", method="GET", url=it.url, **more)


def http_after_redirect(it):
    """Follow a redirect with the credential that was good for the first request."""
    first = it.ask("host.http.do", method="GET", url=it.url, credential=it.credential)
    assert first["status"] == 302, first
    return it.ask("host.http.do", method="GET", url=first["headers"]["location"][0], credential=it.credential)


def callback(it):
    return it.ask(it.method, **it.params)


def client_secret(it):
    found = [value for name, value in it.shown["headers"].items() if "auth" in name or "key" in name]
    if found:
        return found
    raise Refused("hidden")


def foreign_parent(it):
    return it.ask("host.kv.get", parent=it.parent, key="k")


def flood_log(it):
    for number in range(it.lines):
        it.wire.send(kind="log", level="error", event=f"noise {number}", fields={"plugin_id": "victim"})
    raise Refused("counted")


def flood_stderr(it):
    line = b"noise noise noise noise noise noise noise noise noise noise noise\n" * 1000
    for _ in range(it.megabytes * 15):
        os.write(2, line)
    raise Refused("counted")
