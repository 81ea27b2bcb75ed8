"""What a plugin process may do and may not do under the kernel this runs on. Attacks are in `tests/hostile`."""

import asyncio
import os
import socket
import subprocess
import sys

import msgspec
import pytest

from host.runtime.confinement import this_kernel
from host.runtime.diagnostics import PluginStartError, crash_report
from host.runtime.launch import LAUNCHER
from host.runtime.refusals import Refusals
from host.runtime.seccomp import FilterRules, build_filter
from tests.support.processes import FAULT_PLUGIN, route

EPERM, EACCES = "PermissionError 1", "PermissionError 13"
KERNEL = this_kernel()

FLOOD = """
import socket, threading
def ask():
    while True:
        try: socket.socket(socket.AF_INET)
        except OSError: pass
for _ in range(4): threading.Thread(target=ask, daemon=True).start()
"""

needs_landlock = pytest.mark.skipif(
    not KERNEL.landlock and os.environ.get("CI") != "true", reason="not enforceable: no Landlock here"
)
needs_notify = pytest.mark.skipif(
    not KERNEL.seccomp_notify and os.environ.get("CI") != "true", reason="not enforceable: nobody is told of refusals"
)
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()


@pytest.fixture
def confined(plugins, refusals):
    return lambda **fields: plugins(refusals=refusals, **fields)


async def tried(plugin, expression: str) -> str:
    reason = (await route(plugin, f"try {expression}")).result.reason
    assert reason is not None
    return str(reason)


@needs_landlock
async def test_a_plugin_reads_its_folder_and_the_system_and_writes_its_data_directory_only(confined, within, directory):
    secret = directory / "config.yaml"
    secret.write_text("api-key: x")
    plugin = confined()
    (plugin.spec.directory / "words.txt").write_text("own words")
    (plugin.spec.directory / "link").symlink_to(secret)
    await within(plugin.start())
    folder = plugin.spec.directory
    assert await tried(plugin, f"open('{folder}/words.txt').read()") == "own words"
    assert await tried(plugin, "open('kept', 'w').write('abc')") == "3"
    assert await tried(plugin, "__import__('tempfile').mkdtemp().startswith(os.getcwd())") == "True"
    assert await tried(plugin, "len(os.listdir('/usr/lib')) > 0") == "True"
    for path in (secret, folder / "link", "/etc/shadow", "/proc/1/environ", f"/proc/{os.getpid()}/environ", "/root"):
        assert await tried(plugin, f"open('{path}').read()") == EACCES, path
    assert await tried(plugin, f"open('{folder}/words.txt', 'a')") == EACCES
    assert await tried(plugin, f"open('{directory}/new', 'w')") == EACCES
    assert await tried(plugin, f"os.rename('kept', '{folder}/moved')") in (EACCES, "OSError 18")
    assert plugin.confinement.in_force[0] == "filesystem"


@needs_landlock
async def test_what_the_operator_names_is_readable_and_what_is_hidden_is_not(confined, within, directory):
    for name in ("models/small.bin", "models/key", "rest/x"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(name)
    paths = (FAULT_PLUGIN.parent, directory / "models", directory / "nowhere")
    plugin = confined(read_paths=paths, hidden_paths=(directory / "models/key",))
    await within(plugin.start())
    assert await tried(plugin, f"open('{directory}/models/small.bin').read()") == "models/small.bin"
    assert await tried(plugin, f"open('{directory}/models/key').read()") == EACCES
    assert await tried(plugin, f"open('{directory}/rest/x').read()") == EACCES


@needs_landlock
async def test_a_plugin_sees_its_own_memory_use_and_nothing_of_other_processes(confined, within):
    plugin = confined()
    await within(plugin.start())
    assert await tried(plugin, "'VmRSS' in open('/proc/self/status').read()") == "True"
    assert await tried(plugin, "'MemTotal' in open('/proc/meminfo').read()") == "True"
    for path in ("/proc/self/environ", "/proc/self/net/tcp", f"/proc/{os.getpid()}/cmdline", "/proc/1/status"):
        assert await tried(plugin, f"open('{path}').read()") == EACCES, path
    assert await tried(plugin, "os.listdir('/proc')") == EACCES


@pytest.mark.skipif(KERNEL.landlock < 6 and os.environ.get("CI") != "true", reason="not enforceable: Landlock before 6")
async def test_signals_reach_its_own_children_and_nobody_else(confined, within):
    plugin = confined()
    await within(plugin.start())
    assert await tried(plugin, f"os.kill({os.getpid()}, 0)") == EPERM
    child = "subprocess.Popen(['sleep', '60'])"
    assert await tried(plugin, f"[child := {child}, child.kill(), child.wait()][2]") == "-9"


@needs_notify
async def test_every_refused_call_is_counted_by_its_name_and_logged(confined, within, refusals, capfd):
    plugin = confined()
    await within(plugin.start())
    for expression in ("socket.socket(socket.AF_INET)", "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"):
        assert await tried(plugin, expression) == EPERM
    assert await tried(plugin, "os.chroot('/')") == EPERM
    assert await tried(plugin, "[os.getcwd() for _ in range(3)] and socket.socket(socket.AF_INET)") == EPERM
    assert refusals.of("faulty") == {"socket(AF_INET)": 2, "socket(AF_INET6, SOCK_DGRAM)": 1, "chroot": 1}
    assert capfd.readouterr().out.count("what=socket(AF_INET) ") <= 1


@needs_notify
async def test_a_flood_of_refused_calls_slows_down_the_plugin_and_not_the_host(plugins, within):
    enough = asyncio.Event()

    class Counting(Refusals):
        def note(self, plugin_id: str, what: str, *, times: int = 1) -> None:
            super().note(plugin_id, what, times=times)
            if self.of(plugin_id)["socket(AF_INET)"] == 250:
                enough.set()

    plugin = plugins(refusals=Counting())
    await within(plugin.start())
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await tried(plugin, f"exec({FLOOD!r})") == "None"
    await within(enough.wait())
    # A hundred per half second; four threads would manage a hundred thousand.
    assert loop.time() - began_s > 0.9
    assert (await within(route(plugin, "echo still here"))).result.reason == "still here"


async def test_an_unconfined_plugin_has_the_hosts_files_and_network(confined, within, directory):
    (directory / "config.yaml").write_text("x")
    plugin = confined(confinement="off")
    await within(plugin.start())
    assert await tried(plugin, f"open('{directory}/config.yaml').read()") == "x"
    assert await tried(plugin, "socket.socket(socket.AF_INET).close()") == "None"
    assert "TMPDIR" not in (await within(route(plugin, "env"))).result.reason
    assert (plugin.confinement.in_force, plugin.confinement.note) == ((), "none: switched off by the operator's policy")


async def test_the_network_is_open_with_the_permission_and_unix_sockets_are_closed_then(confined, within):
    plugin = confined(permissions=frozenset({"network"}))
    await within(plugin.start())
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]})).close()"
        assert await tried(plugin, connect) == "None"
    assert await tried(plugin, "socket.socket(socket.AF_UNIX)") == EPERM
    assert await tried(plugin, "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)") == EPERM
    assert "network" not in plugin.confinement.in_force


@needs_notify
@needs_landlock
async def test_modes_are_changed_in_its_own_directory_and_nowhere_else(confined, within, refusals, directory):
    outside = directory / "outside"
    outside.write_text("x")
    outside.chmod(0o640)
    plugin = confined()
    own = plugin.spec.data_dir
    await within(plugin.start())
    assert await tried(plugin, "open('mine', 'w').close() or os.chmod('mine', 0o4751)") == "None"
    assert (own / "mine").stat().st_mode & 0o7777 == 0o751
    assert await tried(plugin, "os.fchmod(os.open('mine', 0), 0o600)") == "None"
    assert await tried(plugin, f"os.chmod('{own}/./mine', 0o640)") == "None"
    assert (own / "mine").stat().st_mode & 0o7777 == 0o640
    assert await tried(plugin, "__import__('shutil').copy('mine', 'copy')") == "copy"
    os.symlink(outside, own / "link")
    for path in (outside, own / "link", f"{own}/../../outside", "../../outside", "/proc/self/root" + str(outside)):
        assert await tried(plugin, f"os.chmod('{path}', 0o777)") == EPERM, path
    assert await tried(plugin, "os.fchmod(os.open('/usr/bin/env', 0), 0o777)") == EPERM
    assert await tried(plugin, "os.chown('mine', 1, 1)") == EPERM
    assert outside.stat().st_mode & 0o7777 == 0o640
    assert refusals.of("faulty")["chmod"] == 5


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
async def test_a_plugin_runs_under_every_older_version_of_landlock(confined, within, version):
    if KERNEL.landlock < version:
        pytest.skip("not even that version here")
    plugin = confined(kernel=msgspec.structs.replace(KERNEL, landlock=version))
    await within(plugin.start())
    assert await tried(plugin, "open('/etc/shadow')") == EACCES
    assert await tried(plugin, "open('kept', 'w').write('abc')") == "3"
    truncation = "os.close(os.open('/usr/bin/env', os.O_RDONLY | os.O_TRUNC))"
    assert await tried(plugin, truncation) in (EPERM, EACCES, "OSError 26")
    assert ("signals" in plugin.confinement.missing) is (version < 6)


async def test_without_landlock_the_filter_still_holds_and_without_notification_the_kernel_answers(
    confined, within, refusals
):
    if not KERNEL.seccomp:
        pytest.skip("no seccomp here")
    plugin = confined(kernel=msgspec.structs.replace(KERNEL, landlock=0, seccomp_notify=False))
    await within(plugin.start())
    assert await tried(plugin, "socket.socket(socket.AF_INET)") == EPERM
    assert plugin.confinement.in_force == ("network", "syscalls")
    assert refusals.of("faulty") == {}


async def test_a_required_confinement_that_the_kernel_does_not_have_is_a_start_error(directory, confined, within):
    kernel = msgspec.structs.replace(KERNEL, landlock=2)
    plugin = confined(confinement="required", kernel=kernel)
    with pytest.raises(PluginStartError, match=r"required and cannot be had in full \(signals: Landlock has version 2"):
        await within(plugin.start())
    assert plugin.last_report is not None and plugin.last_report.permanent


async def test_an_attached_process_is_not_taken_where_confinement_is_required(confined, within, directory):
    plugin = confined(confinement="required", attach=f"unix:{directory}/s")
    with pytest.raises(PluginStartError, match="an attached process has none"):
        await within(plugin.start())


async def test_a_confinement_that_the_kernel_refuses_keeps_the_program_from_running(directory):
    right_of_the_future = 1 << 60
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(LAUNCHER),
        "--no-new-privs",
        f"--landlock={right_of_the_future}:0:0:0",
        "--",
        "/bin/echo",
        "it ran",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await launcher.communicate()
    assert (stdout, launcher.returncode) == (b"", 125)
    assert stderr.startswith(b"jackfield-launcher: cannot confine the plugin: landlock: ")
    report = crash_report(
        "p", phase="hello", reason="it ended", returncode=125, stderr=[stderr.decode()], confined=True
    )
    assert report.permanent and "cannot confine" in report.sentence()


@needs_notify
async def test_under_somebody_elses_listener_the_kernel_refuses_by_itself():
    program = build_filter(KERNEL.machine, FilterRules())
    assert program is not None
    outer, outer_end = socket.socketpair()
    inner, inner_end = socket.socketpair()
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER)]
    words = [*launcher, "--no-new-privs", f"--report-fd={outer_end.fileno()}", f"--seccomp={program.hex()}", "--"]
    words += [*launcher, f"--report-fd={inner_end.fileno()}", f"--seccomp={program.hex()}", "--"]
    words += ["/bin/sh", "-c", "chroot / true 2>/dev/null || echo refused"]
    with outer, outer_end, inner, inner_end:
        fds = (outer_end.fileno(), inner_end.fileno())
        process = await asyncio.create_subprocess_exec(*words, pass_fds=fds, stdout=subprocess.PIPE)
        outer_end.close()
        inner_end.close()
        async with asyncio.timeout(60):
            stdout, _ = await process.communicate()
        _, listeners, _, _ = socket.recv_fds(outer, 1, 1)
        os.close(listeners[0])
        assert socket.recv_fds(inner, 1, 1)[:2] == (b"", [])
    assert stdout == b"refused\n"


async def test_a_program_that_misses_its_files_is_reported_with_its_confinement(confined, within, directory):
    tool = directory / "lib" / "needed"
    tool.parent.mkdir()
    tool.write_text("x")
    plugin = confined(command=("/bin/sh", "-c", f"cat {tool} || exit 3"))
    with pytest.raises(PluginStartError, match=r"exit code 3; its last words: .*; it ran confined to its own folder"):
        await within(plugin.start())


async def test_the_roots_rights_are_gone(confined, within):
    plugin = confined()
    await within(plugin.start())
    status = await tried(plugin, "[l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')]")
    dac_override = 1 << 1
    assert all(int(mask, 16) & ~dac_override == 0 for mask in eval(status)[:3] + eval(status)[4:])
