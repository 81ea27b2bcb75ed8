"""Nothing of a plugin outlives the host, however the host dies."""

import asyncio
import os
import signal
import sys
import textwrap

from host.runtime.guardian import Guardian
from tests.support.processes import FAULT_PLUGIN, route

HOST = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from host.runtime.guardian import Guardian
    from host.runtime.process import ProcessPlugin
    from host.tasks import TaskGroup
    from tests.support.processes import HostDouble, fault_spec

    async def main():
        directory = Path(sys.argv[1])
        environment = {"TEST_LIFE": sys.argv[2]}
        guardian = Guardian()
        for number, mode in enumerate(sys.argv[3:]):
            mode, _, transport = mode.partition("/")
            spec = fault_spec(
                directory / str(number), mode, environment=environment, transport=transport or "stdio",
                runtime_dir=directory,
            )
            plugin = ProcessPlugin(spec, callbacks=HostDouble(), tasks=TaskGroup("host"), guardian=guardian)
            await plugin.start()
        print(guardian.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
    """
)


async def spawn_host(directory, life, *modes):
    """A host in a process of its own with one plugin per mode, all of them ready; and its guardian's pid."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, str(directory), life.path, *modes, stdout=asyncio.subprocess.PIPE
    )
    line = b"log"
    while not line.strip().isdigit():  # the host logs to stdout as well
        line = await process.stdout.readline()
        assert line, "the host ended"
    return process, int(line)


async def test_a_killed_host_leaves_no_plugin_behind_not_even_one_that_ignores_everything(directory, life, within):
    process, _ = await within(spawn_host(directory, life, "healthy", "ignores-everything", "ignores-eof"))
    lives = [await within(life.born()) for _ in range(3)]
    process.kill()
    await within(process.wait())
    for one in lives:
        await within(one.ended())


async def test_a_killed_host_leaves_no_grandchild_behind(directory, life, within):
    process, _ = await within(spawn_host(directory, life, "grandchild"))
    lives = [await within(life.born()) for _ in range(2)]
    assert {one.name for one in lives} == {"grandchild"}
    process.kill()
    await within(process.wait())
    for one in lives:
        await within(one.ended())


async def test_a_killed_host_leaves_no_socket_directory_behind(directory, life, within):
    process, guardian_pid = await within(spawn_host(directory, life, "ignores-everything/unix"))
    assert len(list(directory.glob("jf-*"))) == 1
    guardian_end = os.pidfd_open(guardian_pid)
    process.kill()
    await within(process.wait())
    await within(readable(guardian_end))
    assert list(directory.glob("jf-*")) == []


async def readable(fd):
    """Wait until a pidfd tells the end of its process."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_reader(fd, event.set)
    await event.wait()
    asyncio.get_running_loop().remove_reader(fd)
    os.close(fd)


async def test_the_guardian_itself_goes_when_the_host_is_gone(directory, life, within):
    process, guardian_pid = await within(spawn_host(directory, life, "healthy"))
    guardian_end = os.pidfd_open(guardian_pid)
    process.kill()
    await within(process.wait())
    await within(readable(guardian_end))


def sleeper(life_path):
    """A process group of its own that ignores TERM; its life socket proves its end."""
    code = (
        "import os, signal, socket, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "life = socket.socket(socket.AF_UNIX)\n"
        "life.connect(sys.argv[1])\n"
        "life.sendall(b'sleeper\\n')\n"
        "life.recv(1)\n"
    )
    return asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, life_path, start_new_session=True)


async def test_a_watched_group_is_killed_and_a_forgotten_one_lives_when_the_pipe_closes(guardian, life, within):
    doomed = await sleeper(life.path)
    doomed_life = await within(life.born())
    spared = await sleeper(life.path)
    spared_life = await within(life.born())
    guardian.watch(doomed.pid)
    guardian.watch(spared.pid)
    guardian.forget(spared.pid)
    await within(guardian.stop())
    await within(doomed_life.ended())
    assert await within(doomed.wait()) == -signal.SIGKILL
    assert spared_life.alive()
    spared.kill()
    await within(spared.wait())


async def test_a_guardian_that_was_killed_is_replaced_and_the_new_one_knows_all_groups(life, within):
    guardian = Guardian(restart_after_s=0.0)
    doomed = await sleeper(life.path)
    doomed_life = await within(life.born())
    guardian.watch(doomed.pid)
    first = guardian.pid
    os.kill(first, signal.SIGKILL)
    await within(guardian.replaced())
    assert guardian.pid not in (None, first)
    await within(guardian.stop())
    await within(doomed_life.ended())
    await within(doomed.wait())


async def test_without_a_guardian_plugins_run_all_the_same(plugins, within):
    guardian = Guardian(python="/no/such/python")
    plugin = plugins(guardian=guardian)
    await within(plugin.start())
    assert guardian.pid is None
    assert (await within(route(plugin, "echo alone"))).result.reason == "alone"
    await within(plugin.stop())
    await within(guardian.stop())


async def test_a_guardian_without_groups_ends_quietly(guardian, within):
    guardian.watch(999_999_999)  # nobody has it: not an error
    await within(guardian.stop())
    await within(guardian.stop())


def test_the_guardians_imports_stay_few():
    """It lives as long as the host: what it imports is memory the host costs."""
    script = FAULT_PLUGIN.parents[2] / "host" / "runtime" / "guardian_script.py"
    imports = [line for line in script.read_text().splitlines() if line.startswith(("import", "from"))]
    assert [line.split()[1] for line in imports] == ["_signal", "os", "sys", "time"]
