"""What a plugin process does on its own: the wire, the command line, and all the ways to end."""

import asyncio
import json
import os
import pty
import signal
import textwrap
from pathlib import Path

import pytest

from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.frames import HostInfo
from pluginabi.handshake import HandshakeError, host_handshake
from pluginabi.stream_channel import connect_unix, open_pipes
from pluginapi import ModelRouteRequest, UsageHandleRequest
from pluginapi.lifeline import EXIT_ORPHANED, Lifeline
from tests.support.plugin_process import WAIT_S, Tail, plugin_environment, python, spawn, started

ROUTE = ModelRouteRequest(requested_model="m")


@pytest.fixture
def write(tmp_path):
    """`write(body)` makes `made.py` with a plugin class `Made`, and its manifest; returns the folder."""

    def make(body: str, *, manifest: str = 'id = "made"\nversion = "2.0.0"\n', before: str = "") -> Path:
        source = (
            "import asyncio, os, subprocess, sys, threading, time\n"
            + textwrap.dedent(before)
            + "from pluginapi import *\nfrom pluginapi import serve\n\n\nclass Made(Plugin):\n"
            + textwrap.indent(textwrap.dedent(body), "    ")
            + '\n\nif __name__ == "__main__":\n    serve(Made)\n'
        )
        (tmp_path / "made.py").write_text(source)
        (tmp_path / "plugin.toml").write_text(manifest)
        return tmp_path

    return make


def run_entry(folder):
    return started(python("-m", "pluginapi.run", "made:Made"), plugin_id="made", directory=folder)


async def finished(command, *, stdin=asyncio.subprocess.DEVNULL, env=None, cwd=None):
    """Exit code, stdout and stderr of a process that ends by itself."""
    process = await spawn(
        command, stdin=stdin, stdout=asyncio.subprocess.PIPE, env=env or plugin_environment(), cwd=cwd
    )
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


# -- the wire is private


async def test_F1_whatever_a_plugin_prints_goes_to_stderr_and_never_breaks_the_wire(write):
    folder = write(
        before="""
        print("printed at import", flush=True)
        os.write(1, b"written at import\\n")
        """,
        body="""
        async def model_route(self, request):
            print("printed")
            print('{"kind":"result","id":1,"ok":true}')
            os.write(1, b"written\\n")
            subprocess.run(["sh", "-c", "echo by a child; cat"], check=True)
            return ModelRouteResponse(reason=repr(sys.stdin.read()))
        """,
    )
    async with run_entry(folder) as plugin:
        assert (await plugin.call("model.route", ROUTE)).reason == "''"
        assert plugin.strays == []
        plugin.close_stdin()
        text = await plugin.stderr.all()
    for line in ("printed at import", "written at import", "printed", "written", "by a child"):
        assert f"{line}\n" in text


async def test_F1_a_script_that_prints_before_it_serves_does_not_break_the_wire(write):
    folder = write(before='print("printed at import")\n', body="async def model_route(self):\n    return None\n")
    async with started(python("made.py"), plugin_id="made", directory=folder) as plugin:
        await plugin.call("model.route", ROUTE)
        assert plugin.strays == []
        plugin.close_stdin()
        assert "printed at import\n" in await plugin.stderr.all()


async def test_the_wire_is_not_inherited_by_children(write):
    folder = write(
        body="""
        async def model_route(self, request):
            child = await asyncio.create_subprocess_exec("ls", "-l", "/proc/self/fd", stdout=subprocess.PIPE)
            listed, _ = await child.communicate()
            return ModelRouteResponse(reason=listed.decode())
        """
    )
    async with run_entry(folder) as plugin:
        listed = (await plugin.call("model.route", ROUTE)).reason
        pipes = [line for line in listed.splitlines() if "pipe:" in line]
        # Its own stdout, and the plugin's stderr.
        assert len(pipes) == 2, listed


# -- the event loop


@pytest.mark.parametrize(("has_uvloop", "loop"), [(True, "uvloop.Loop"), (False, "asyncio.unix_events")])
async def test_the_loop_is_uvloops_where_that_is_installed_and_otherwise_asyncios(write, has_uvloop, loop):
    folder = write(
        body="""
        async def model_route(self, request):
            return ModelRouteResponse(reason=repr(type(asyncio.get_running_loop())))
        """
    )
    if not has_uvloop:
        (folder / "uvloop.py").write_text('raise ImportError("not installed")\n')
    async with run_entry(folder) as plugin:
        assert loop in (await plugin.call("model.route", ROUTE)).reason


# -- the command line


async def test_describe_prints_exactly_the_hello(write):
    folder = write(
        body="""
        inputs = {"model.route": ["body:/tools"]}
        max_inflight = 3
        def __init__(self):
            raise RuntimeError("describing runs nothing")
        async def model_route(self, request): ...
        """
    )
    for command in (python("made.py", "--describe"), python("-m", "pluginapi.run", "made:Made", "--describe")):
        code, out, err = await finished(command, cwd=folder)
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        assert json.loads(out) == {
            "kind": "hello",
            "abi": [1],
            "schema": 1,
            "plugin": "made",
            "version": "2.0.0",
            "features": ["callback_streams", "cancel", "credit", "goaway", "ping"],
            "capabilities": ["plugin.register", "model.route"],
            "inputs": {"model.route": ["body:/tools"]},
            "limits": {"max_inflight": 3},
        }


async def test_describe_and_the_handshake_say_the_same(write):
    folder = write(body="async def model_route(self): ...")
    _, out, _ = await finished(python("made.py", "--describe"), cwd=folder)
    read, write_fd = os.pipe()
    answer, plugin_stdout = os.pipe()
    process = await spawn(python("made.py"), stdin=read, stdout=plugin_stdout, env=plugin_environment(), cwd=folder)
    os.close(read)
    os.close(plugin_stdout)
    os.write(write_fd, b'{"kind":"hello","abi":[1],"schema":1}\n')
    with os.fdopen(answer) as stream:
        assert await asyncio.to_thread(stream.readline) == out
        os.close(write_fd)
        assert await asyncio.to_thread(stream.read) == ""
    async with asyncio.timeout(WAIT_S):
        assert (await process.communicate(), process.returncode) == ((None, b""), 0)


@pytest.mark.parametrize("command", [["made.py"], ["-m", "pluginapi.run", "made:Made"]])
async def test_by_hand_on_a_terminal_it_says_one_sentence_and_exits_with_64(write, command):
    folder = write(body="async def model_route(self): ...")
    terminal, its_end = pty.openpty()
    try:
        code, out, err = await finished(python(*command), stdin=its_end, cwd=folder)
    finally:
        os.close(terminal)
        os.close(its_end)
    assert (code, out) == (64, "")
    assert "is a plugin of the Jackfield gateway" in err
    assert err.count("\n") == 1


async def test_describe_works_on_a_terminal(write):
    folder = write(body="async def model_route(self): ...")
    terminal, its_end = pty.openpty()
    try:
        code, out, _ = await finished(python("made.py", "--describe"), stdin=its_end, cwd=folder)
    finally:
        os.close(terminal)
        os.close(its_end)
    assert (code, json.loads(out)["plugin"]) == (0, "made")


@pytest.mark.parametrize("path", ["input", "/dev/null", "/dev/zero"])
async def test_without_pipes_it_says_so_and_exits_with_64(write, path):
    folder = write(body="async def model_route(self): ...")
    with (folder / path).open("a+b") as file:
        code, _, err = await finished(python("made.py"), stdin=file, cwd=folder)
    assert (code, "stdin and stdout are not a host's pipes" in err) == (64, True)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("made", "is not module:Class"),
        ("nowhere:Made", "no module 'nowhere'"),
        ("made:Nothing", "is no subclass of pluginapi.Plugin"),
        ("nowhere.py:Made", "no file"),
    ],
)
async def test_an_entry_that_names_no_plugin_exits_with_78_and_says_why(write, entry, complaint):
    folder = write(body="async def model_route(self): ...")
    code, _, err = await finished(python("-m", "pluginapi.run", entry, "--describe"), cwd=folder)
    assert (code, complaint in err, err.count("\n")) == (78, True, 1), err


async def test_an_import_error_in_the_authors_code_shows_its_traceback(write):
    folder = write(before="import not_there\n", body="async def model_route(self): ...")
    code, _, err = await finished(python("-m", "pluginapi.run", "made:Made", "--describe"), cwd=folder)
    assert (code, "ModuleNotFoundError: No module named 'not_there'" in err) == (1, True)


async def test_an_entry_may_be_a_path_whose_folder_is_importable(write):
    folder = write(before="import beside\n", body="async def model_route(self): ...")
    (folder / "beside.py").write_text("")
    command = python("-m", "pluginapi.run", f"{folder}/made.py:Made", "--describe")
    code, out, err = await finished(command, cwd="/")
    assert (code, err, json.loads(out)["plugin"]) == (0, "", "made")


async def test_a_plugin_without_an_id_is_refused_with_the_way_out(write):
    folder = write(body="async def model_route(self): ...", manifest="")
    code, _, err = await finished(python("made.py", "--describe"), cwd=folder)
    assert (code, "Made has no id: set `id` in the class or in" in err) == (78, True)


async def test_a_class_and_a_manifest_that_disagree_are_refused(write):
    folder = write(body='id = "other"\nasync def model_route(self): ...')
    code, _, err = await finished(python("made.py", "--describe"), cwd=folder)
    assert (code, "says it is 'other'" in err) == (78, True)


@pytest.mark.parametrize(("on_error", "warned"), [("", True), ('[on_error]\n"model.route" = "fail"\n', False)])
async def test_a_process_that_would_fail_open_while_it_is_down_is_told_what_to_write(write, on_error, warned):
    folder = write(
        body='on_error = {"model.route": "fail"}\nasync def model_route(self): ...',
        manifest=f'id = "made"\nversion = "1"\n{on_error}',
    )
    async with run_entry(folder) as plugin:
        plugin.close_stdin()
        text = await plugin.stderr.all()
    assert ('write "model.route" = "fail" under [on_error] in plugin.toml' in text) is warned


async def test_an_unknown_option_exits_with_64(write):
    folder = write(body="async def model_route(self): ...")
    code, _, err = await finished(python("made.py", "--nonsense"), cwd=folder)
    assert (code, "--nonsense" in err) == (64, True)


# -- the ways to end

LIVELY = """
    async def model_route(self):
        return None
    async def usage_handle(self):
        print("started", file=sys.stderr, flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("cleaned up", file=sys.stderr, flush=True)
    async def plugin_shutdown(self, request):
        print(f"shut down: {request.reason}", file=sys.stderr, flush=True)
"""


async def test_the_end_of_stdin_ends_the_process_in_order(write):
    async with run_entry(write(body=LIVELY)) as plugin:
        task = asyncio.create_task(plugin.call("usage.handle", UsageHandleRequest()))
        await plugin.stderr.until("started")
        plugin.close_stdin()
        assert await plugin.exit_code() == 0
        text = await plugin.stderr.all()
        with pytest.raises(PluginTransportError) as caught:
            await task
        assert caught.value.phase == "exit"
    assert text.splitlines() == ["started", "cleaned up", "shut down: ended"]


async def test_SIGTERM_closes_what_runs_says_goaway_and_exits_with_0(write):
    async with run_entry(write(body=LIVELY)) as plugin:
        task = asyncio.create_task(plugin.call("usage.handle", UsageHandleRequest()))
        await plugin.stderr.until("started")
        plugin.process.send_signal(signal.SIGTERM)
        with pytest.raises(PluginError) as caught:
            await task
        assert (caught.value.code, caught.value.http_status) == ("cancelled", 499)
        assert await plugin.exit_code() == 0
        assert "shut down: ended" in await plugin.stderr.all()


async def test_a_shutdown_the_host_asked_for_is_not_repeated_at_the_end(write):
    async with run_entry(write(body=LIVELY)) as plugin:
        await plugin.call("plugin.shutdown")
        plugin.close_stdin()
        assert await plugin.exit_code() == 0
        assert (await plugin.stderr.all()).splitlines() == ["shut down: "]


async def test_a_stuck_blocking_hook_does_not_hold_up_the_end(write):
    body = """
    @blocking
    def scheduler_pick(self, ctx):
        print("stuck", file=sys.stderr, flush=True)
        threading.Event().wait()
    """
    async with run_entry(write(body=body)) as plugin:
        task = asyncio.create_task(plugin.call("scheduler.pick"))
        await plugin.stderr.until("stuck")
        plugin.close_stdin()
        assert await plugin.exit_code() == 0
        with pytest.raises(PluginTransportError) as caught:
            await task
        assert caught.value.phase == "exit"


async def test_a_thread_of_the_authors_own_that_never_ends_cannot_keep_the_process(write):
    body = """
    async def usage_handle(self):
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    """
    async with run_entry(write(body=body)) as plugin:
        await plugin.call("usage.handle", UsageHandleRequest())
        plugin.close_stdin()
        assert await plugin.exit_code() == 71


async def test_F13_a_plugin_whose_loop_is_blocked_dies_with_its_parent(write):
    """The parent dies without a word, its pipes stay open elsewhere, and the plugin cannot read them anyway."""
    folder = write(
        body="""
        async def usage_handle(self):
            print("blocked", os.getpid(), file=sys.stderr, flush=True)
            threading.Event().wait()
        """
    )
    parent_source = (
        "import subprocess, sys, threading\n"
        "subprocess.Popen([sys.executable, '-m', 'pluginapi.run', 'made:Made'])\n"
        "threading.Event().wait()\n"
    )
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    parent = await spawn(
        python("-c", parent_source), stdin=stdin_read, stdout=stdout_write, env=plugin_environment(folder), cwd=folder
    )
    os.close(stdin_read)
    os.close(stdout_write)
    tail = Tail(parent.stderr)
    control = await open_pipes(stdout_read, stdin_write)
    await host_handshake(control, plugin_id="made", host=HostInfo())
    os.write(stdin_write, b'{"kind":"call","id":1,"method":"usage.handle","params":{}}\n')
    await tail.until("blocked")
    parent.kill()
    # stderr is held by the two of them only: its end is the death of both.
    assert "blocked" in await tail.all()
    control.close()
    await control.wait_closed()
    await parent.wait()


def test_the_lifeline_leaves_when_the_parent_changes():
    parents = iter([10, 10, 10, 1])
    codes = []
    watched = Lifeline(interval_s=0, getppid=lambda: next(parents), exit_process=codes.append)
    watched._watch()
    assert codes == [EXIT_ORPHANED]


async def test_nonsense_instead_of_a_hello_exits_with_76_and_says_what_came(write):
    folder = write(body="async def model_route(self): ...")
    process = await spawn(
        python("made.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=plugin_environment(),
        cwd=folder,
    )
    async with asyncio.timeout(WAIT_S):
        _, err = await process.communicate(b'{"kind":"call","id":1,"method":"model.route","params":{}}\n')
    assert (process.returncode, err.decode()) == (76, "made: a call frame before its hello\n")


# -- errors


async def test_the_traceback_of_a_hook_is_on_stderr_and_begins_in_the_authors_file(write):
    folder = write(body="async def model_route(self):\n    raise ValueError('secret')\n")
    async with run_entry(folder) as plugin:
        with pytest.raises(PluginError, match=r"ValueError in model\.route"):
            await plugin.call("model.route", ROUTE)
        await plugin.stderr.until("ValueError: secret")
        assert plugin.stderr.text.splitlines()[1].strip().startswith(f'File "{folder}/made.py"')
        ((line),) = plugin.logs
        assert (line.event, line.fields["error"]) == ("plugin.exception", "ValueError")
        assert "secret" not in str(line.fields)


async def test_a_constructor_that_fails_ends_the_process_with_its_traceback(write):
    folder = write(body="def __init__(self):\n    raise RuntimeError('no disk')\nasync def model_route(self): ...")
    code, _, err = await finished(python("made.py"), stdin=asyncio.subprocess.PIPE, cwd=folder)
    assert (code, "RuntimeError: no disk" in err) == (1, True)


# -- sockets


async def test_a_host_that_names_an_endpoint_is_served_there_and_stdin_stays_the_lifeline(write, tmp_path):
    folder = write(body='async def model_route(self):\n    return ModelRouteResponse(reason="socket")\n')
    command = python("-m", "pluginapi.run", "made:Made")
    async with started(command, plugin_id="made", directory=folder, socket_dir=tmp_path) as plugin:
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        assert (await plugin.call("model.route", ROUTE)).reason == "socket"
        second = await connect_unix(str(tmp_path / "s"))
        with pytest.raises(HandshakeError, match="ended before its hello"):
            await host_handshake(second, plugin_id="made", host=HostInfo(), token="anything", timeout_s=WAIT_S)
        assert (await plugin.call("model.route", ROUTE)).reason == "socket"
        plugin.close_stdin()
        assert await plugin.exit_code() == 0


async def test_a_wrong_token_is_hung_up_on_and_the_right_one_is_still_let_in(write, tmp_path):
    folder = write(body="async def model_route(self): ...")
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    process = await spawn(
        python("-m", "pluginapi.run", "made:Made"),
        stdin=stdin_read,
        stdout=stdout_write,
        env=plugin_environment(folder),
    )
    os.close(stdin_read)
    os.close(stdout_write)
    control = await open_pipes(stdout_read, stdin_write)
    path = str(tmp_path / "s")
    await host_handshake(control, plugin_id="made", host=HostInfo(), endpoint=path, token="right")
    wrong = await connect_unix(path)
    with pytest.raises(HandshakeError, match="ended before its hello"):
        await host_handshake(wrong, plugin_id="made", host=HostInfo(), token="wrong", timeout_s=WAIT_S)
    right = await connect_unix(path)
    greeting = await host_handshake(right, plugin_id="made", host=HostInfo(), token="right", timeout_s=WAIT_S)
    assert greeting.peer.plugin == "made"
    control.close()
    async with asyncio.timeout(WAIT_S):
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    right.close()


async def test_listening_for_a_debugger_serves_one_connection_after_the_other(write, tmp_path):
    folder = write(body="async def model_route(self): ...")
    path = str(tmp_path / "s")
    process = await spawn(
        python("made.py", "--listen", f"unix:{path}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=plugin_environment(),
        cwd=folder,
    )
    tail = Tail(process.stderr)
    await tail.until(f"made: listening on unix:{path}")
    for _ in range(2):
        channel = await connect_unix(path)
        greeting = await host_handshake(channel, plugin_id="made", host=HostInfo(), timeout_s=WAIT_S)
        assert greeting.peer.version == "2.0.0"
        busy = await connect_unix(path)
        with pytest.raises(HandshakeError, match="ended before its hello"):
            await host_handshake(busy, plugin_id="made", host=HostInfo(), timeout_s=WAIT_S)
        channel.close()
        await channel.wait_closed()
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == 0
    await tail.all()
