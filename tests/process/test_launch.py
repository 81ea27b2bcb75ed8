"""What is executed, where, with which environment and limits."""

import asyncio
import json
import os
import platform
import sys

import pytest

from host.runtime.diagnostics import PluginStartError, crash_report, why_not_executable
from host.runtime.launch import ProcessLimits, build_environment, confine, resolve_command, spawn
from tests.support.processes import fault_spec


def write(path, text, mode=0o755):
    path.write_text(text)
    path.chmod(mode)
    return path


async def output_of(spec):
    """Everything a started process writes to stdout, and its exit code."""
    spawned = spawn(spec, None)
    os.close(spawned.stdin_fd)

    def read(fd):
        with os.fdopen(fd, "rb") as pipe:
            return pipe.read()

    async with asyncio.timeout(60):
        stdout, stderr = await asyncio.gather(
            asyncio.to_thread(read, spawned.stdout_fd), asyncio.to_thread(read, spawned.stderr_fd)
        )
        returncode = await spawned.child.wait()
    return stdout.decode(), stderr.decode(), returncode


def shell(directory, script, **fields):
    return fault_spec(directory, command=("/bin/sh", "-c", script), **fields)


async def test_the_environment_is_exactly_the_basic_names_and_what_was_allowed(directory, monkeypatch):
    for name in list(os.environ):
        if name not in ("PATH", "HOME"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.setenv("LANG", "C")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy")
    spec = fault_spec(directory, command=("/usr/bin/env", "-0"), environment={"EXAMPLE_REGION": "eu"})
    stdout, _, _ = await output_of(spec)
    environment = dict(entry.split("=", 1) for entry in stdout.split("\0") if entry)
    assert environment == {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "LANG": "C",
        "TZ": "Europe/Berlin",
        "JACKFIELD_PLUGIN_DIR": str(directory),
        "TMPDIR": str(directory / "data" / "tmp"),
        "EXAMPLE_REGION": "eu",
    }


async def test_the_process_works_in_its_data_directory_which_only_its_user_may_enter(directory):
    stdout, _, _ = await output_of(shell(directory, "pwd; stat -c %a ."))
    assert stdout.split() == [str(directory / "data"), "700"]


async def test_a_relative_program_and_files_beside_the_manifest_are_found_from_the_data_directory(directory):
    write(directory / "main.py", "")
    spec = fault_spec(
        directory, command=("./bin/tool", "./sub/x", "main.py", "serve", "--config=main.py", "{plugin_dir}/y")
    )
    assert resolve_command(spec) == (
        f"{directory}/bin/tool",
        f"{directory}/sub/x",
        f"{directory}/main.py",
        "serve",
        "--config=main.py",
        f"{directory}/y",
    )


async def test_L11_a_binary_for_this_platform_is_preferred_to_the_one_beside_the_manifest(directory):
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = directory / sys.platform / machine
    folder.mkdir(parents=True)
    write(folder / "tool", "#!/bin/sh\n")
    write(directory / "tool", "#!/bin/sh\n")
    assert resolve_command(fault_spec(directory, command=("./tool",))) == (str(folder / "tool"),)


def test_an_entry_runs_under_the_hosts_interpreter_with_pluginapi_importable(directory):
    spec = fault_spec(directory, command=(), entry="plugin:Demo")
    assert resolve_command(spec) == (sys.executable, "-P", "-B", "-m", "pluginapi.run", "plugin:Demo")
    paths = build_environment(spec)["PYTHONPATH"].split(os.pathsep)
    assert paths[0] == str(directory)
    confine(spec, resolve_command(spec), build_environment(spec), None)  # makes the links
    assert os.path.isfile(os.path.join(paths[1], "pluginapi", "run.py"))
    assert os.listdir(paths[1]) and not os.path.exists(os.path.join(paths[1], "host"))


def test_neither_command_nor_entry_is_a_permanent_start_error(directory):
    with pytest.raises(PluginStartError, match="neither `command` nor `entry`") as caught:
        resolve_command(fault_spec(directory, command=()))
    assert caught.value.report.permanent


def test_a_program_that_is_not_on_path_is_named(directory):
    with pytest.raises(PluginStartError, match="no-such-program is not on PATH"):
        resolve_command(fault_spec(directory, command=("no-such-program",)))


async def test_limits_and_no_new_privileges_hold_and_a_session_of_its_own_is_led(directory):
    script = (
        "import json, os, resource, signal\n"
        "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"
        "print(json.dumps({\n"
        "  'nnp': status['NoNewPrivs'].strip(), 'data': resource.getrlimit(resource.RLIMIT_DATA)[1],\n"
        "  'nofile': resource.getrlimit(resource.RLIMIT_NOFILE)[1],\n"
        "  'core': resource.getrlimit(resource.RLIMIT_CORE)[1],\n"
        "  'session': os.getsid(0) == os.getpid()}))\n"
    )
    limits = ProcessLimits(memory_bytes=512 * 1024 * 1024, open_files=100)
    stdout, _, _ = await output_of(fault_spec(directory, command=(sys.executable, "-c", script), limits=limits))
    assert json.loads(stdout) == {"nnp": "1", "data": 512 * 1024 * 1024, "nofile": 100, "core": 0, "session": True}


async def test_a_plugin_that_needs_more_memory_than_its_limit_fails_instead_of_the_machine(directory):
    limits = ProcessLimits(memory_bytes=64 * 1024 * 1024)
    spec = fault_spec(directory, command=(sys.executable, "-S", "-c", "x = bytearray(256 << 20)"), limits=limits)
    _, stderr, returncode = await output_of(spec)
    assert (returncode, "MemoryError" in stderr) == (1, True)


async def test_no_descriptor_of_the_host_is_inherited(directory):
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        script = "import os\nfor fd in range(64):\n try: os.fstat(fd); print(fd)\n except OSError: pass"
        stdout, _, _ = await output_of(fault_spec(directory, command=(sys.executable, "-S", "-c", script)))
    finally:
        os.close(read_end)
        os.close(write_end)
    assert stdout.split() == ["0", "1", "2"]


async def test_a_closed_pipe_ends_the_writer_as_in_any_shell(directory):
    # The shell's own file: of the processes it starts it sees none.
    script = 'while read -r name value; do [ "$name" = SigIgn: ] && echo "$value"; done < /proc/self/status'
    stdout, _, _ = await output_of(shell(directory, script))
    assert int(stdout, 16) >> 12 & 1 == 0  # bit 12: SIGPIPE


@pytest.mark.parametrize(
    ("text", "mode", "hint"),
    [
        ("#!/bin/sh\n", 0o644, "is not executable: chmod +x"),
        ("#!/no/such/interpreter\n", 0o755, "names /no/such/interpreter, which does not exist"),
        ("#!/usr/bin/env no-such-program\n", 0o755, "asks for no-such-program, which is not on PATH"),
        ("#!/bin/sh\r\necho\r\n", 0o755, "has Windows line ends"),
        ("just text\n", 0o755, "has no #! line"),
        ("#!python3\n", 0o755, "no absolute path; write #!/usr/bin/env python3"),
        ("\x7fELF\x02\x01\x01" + "\0" * 9 + "\x02\0\x08\0" + "\0" * 44, 0o755, "was built for machine type 8"),
    ],
    ids=["not-executable", "bad-shebang", "env-program-missing", "windows", "no-shebang", "relative", "wrong-machine"],
)
async def test_a_command_that_cannot_be_executed_is_explained(directory, text, mode, hint):
    program = directory / "tool"
    program.write_bytes(text.encode("latin-1"))
    program.chmod(mode)
    _, stderr, returncode = await output_of(fault_spec(directory, command=("./tool",)))
    report = crash_report(
        "faulty",
        phase="start",
        reason="it ended before its hello",
        returncode=returncode,
        stderr=stderr.splitlines(),
        command=(str(program),),
    )
    assert returncode in (126, 127)
    assert hint in report.hint
    assert report.permanent


def test_a_missing_file_and_a_directory_are_told_apart(directory):
    assert "does not exist" in (why_not_executable(directory / "nothing") or "")
    assert "is a directory" in (why_not_executable(directory) or "")
    assert why_not_executable(write(directory / "good", "#!/bin/sh\n")) is None


async def test_a_plugins_own_exit_code_127_is_not_taken_for_a_failed_start(directory):
    _, stderr, returncode = await output_of(shell(directory, "exit 127"))
    report = crash_report("faulty", phase="exit", reason="it ended", returncode=returncode, stderr=stderr.splitlines())
    assert (report.exit_code, report.permanent) == (127, False)
