"""A plugin's calls are recorded by the running proxy, and replayed against the plugin as it was and as it is now."""

import asyncio
import contextlib
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path

import aiohttp
import msgspec
import pytest

from host.control import ControlServer, socket_path
from host.recording.format import read_recording
from host.recording.replay import ReplayError, replay
from host.recording.run import RecordingRuns, RecordOrder
from tests.support.example_proxy import CHAT, acme, config_text, example_proxy, settled
from tests.support.example_steps import EXAMPLES
from tests.support.fake_upstream import Behaviour, running_upstream
from tests.support.management import managed_proxy
from tests.support.proxy import ROOT, run_command, running_proxy, runtime_dir, serve_process
from tests.support.runtime import plugin_folder

ROUTER = {"cheap-first": {"provider": "openai-compatible-acme", "cheap": "small", "strong": "large"}}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


@pytest.fixture
def folder():
    # Short, because the control socket's path has a limit.
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        yield Path(made)


@pytest.fixture
async def upstream():
    async with running_upstream() as running:
        yield running


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        yield session


async def ask(http, url, model, **more):
    headers = more.pop("headers", {})
    async with http.post(
        f"{url}/v1/chat/completions", json={"model": model, **CHAT, **more}, headers=headers
    ) as answer:
        return answer.status, await answer.text()


@contextlib.asynccontextmanager
async def recorded(proxy, plugin_id, file, **options):
    """Records while the block runs; the file is whole afterwards."""
    order = RecordOrder(plugin_id=plugin_id, limit_s=60, **{"max_bytes": 1 << 20, **options})
    lines = proxy.proxy.recordings.start(order)

    async def write():
        with file.open("wb") as target:
            async for line in lines:
                target.write(line.strip() and line)

    writing = asyncio.create_task(write())
    try:
        yield
        await settled()
    finally:
        proxy.proxy.recordings.stop()
        async with asyncio.timeout(60):
            await writing


def copy_of(example, folder):
    target = folder / "candidate"
    shutil.copytree(EXAMPLES / example, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


async def test_the_commands_record_a_running_proxy_and_show_what_another_version_decides_otherwise(
    folder, upstream, http
):
    shutil.copytree(EXAMPLES / "cheap-first", folder / "plugins" / "cheap-first")
    (folder / "config.yaml").write_text(config_text(ROUTER, **acme(upstream, "small", "large")))
    file = folder / "calls.jsonl"
    async with serve_process(folder / "config.yaml") as served:
        recorder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "host", "record", "--plugin", "cheap-first", "--out", str(file)),
            *("--config", str(folder / "config.yaml")),
            cwd=ROOT,
            env={"XDG_RUNTIME_DIR": runtime_dir(folder / "config.yaml"), "PATH": "/usr/bin:/bin"},
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            assert b"Ctrl-C ends it" in await recorder.stderr.readline()
            again = await run_command(folder / "config.yaml", "record", "--plugin", "cheap-first")
            assert again.exit_code == 1 and "one recording at a time" in again.stderr
            for more in ({}, TOOLS, {}):
                assert (await ask(http, served.url, "auto", **more))[0] == 200
            # Written as it happens: nothing has to end first.
            while file.read_bytes().count(b'"kind":"call"') < 3:
                async with http.get(f"{served.url}/healthz") as answer:
                    assert answer.status == 200
            recorder.send_signal(signal.SIGINT)
            out, _ = await recorder.communicate()
    assert recorder.returncode == 0 and b"3 calls; it was stopped" in out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_recording(file).tail.reason == "stopped"

    same = await run_replay(file, EXAMPLES / "cheap-first")
    assert same.exit_code == 0 and "3 calls: 3 the same, 0 different, 0 skipped" in same.stdout
    candidate = copy_of("cheap-first", folder)
    edit(candidate / "cheap_first.py", "the cheap model will do", "cheap is enough")
    edit(candidate / "cheap_first.py", 'self.config.get("strong", "acme-large")', '"huge"')
    changed = await run_replay(file, candidate)
    assert changed.exit_code == 1
    assert '/answer/target_model: "large" -> "huge"' in changed.stdout
    assert "3 calls: 0 the same, 3 different, 0 skipped" in changed.stdout
    fewer = await run_replay(file, candidate, "--ignore", "/answer/reason", "--json")
    report = msgspec.json.decode(fewer.stdout)
    assert fewer.exit_code == 1 and report["same"] is False
    assert [call["number"] for call in report["calls"] if call.get("differences")] == [2]
    other = await run_replay(file, candidate, "--ignore", "/answer", "--plugin-config", "{}")
    assert other.exit_code == 0 and "3 calls: 3 the same" in other.stdout
    for words, said in ((["--plugin-config", "["], "is a JSON object"), ([], "plugin.toml")):
        broken = await run_replay(file, candidate if words else folder, *words)
        assert broken.exit_code == 2 and said in broken.stderr


async def run_replay(file, directory, *words):
    """`jackfield replay` in a thread: it has an event loop of its own."""
    from click.testing import CliRunner

    from host.cli import main

    async with asyncio.timeout(60):
        arguments = ["replay", str(file), "--plugin", str(directory), *words]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments)


SECRETIVE = """
class P(Plugin):
    async def request_intercept_before(self, request, ctx):
        return RequestInterceptResponse(headers={"x-upstream-token": (self.config["password"],)})

    async def executor_execute(self, request, ctx):
        answer = await ctx.http.do("POST", self.config["url"], credential=request.credential, body=request.body)
        return ExecutorResponse(body=answer.body)

    async def plugin_register(self, request):
        return RegisterResponse(
            providers=("openai-compatible-acme",),
            executor=ExecutorRegistration(input_formats=("openai",), output_formats=("openai",)),
        )
"""
MANIFEST = """
runtime = "process"
entry = "plugin:P"
permissions = ["http", "client_credentials"]
[[config]]
name = "password"
secret = true
"""


async def test_no_secret_is_in_a_recording_however_it_got_into_a_call(folder, upstream, http):
    plugin_folder(folder / "plugins", "p", SECRETIVE, manifest=MANIFEST)
    top = acme(upstream, "m")
    top["openai-compatibility"][0]["api-key-entries"] = [{"api-key": "upstream-secret"}]
    config = {"p": {"password": "plugin-secret", "url": f"{upstream.url}/v1/chat/completions?key=url-secret"}}
    policy = {"p": {"permissions": ["http", "client_credentials"]}}
    top["api-keys"] = ["client-secret"]
    file = folder / "calls.jsonl"
    upstream.behave("m", Behaviour(text="upstream-secret sk-abcdefghijklmnop1234"))
    async with example_proxy(folder, config, policy=policy, **top) as proxy:
        async with recorded(proxy, "p", file):
            headers = {"authorization": "Bearer client-secret", "cookie": "session-secret"}
            said = {"messages": [{"role": "user", "content": "plugin-secret"}], "mcp": {"password": "body-secret"}}
            assert (await ask(http, proxy.url, "m", headers=headers, **said))[0] == 200
            handles = [credential.handle for credential in proxy.proxy.gateway.state.pool.credentials]
    text = file.read_text()
    assert "secret" not in text.replace("[secret]", "") and "sk-" not in text
    assert not any(handle in text for handle in handles)
    recording = read_recording(file)
    before, execute = recording.calls
    assert (before.method, execute.method) == ("request.intercept_before", "executor.execute")
    assert before.answer == {"headers": {"x-upstream-token": ["[redacted]"]}}
    assert execute.params["credential"]["handle"] == "credential-1"
    (callback,) = execute.callbacks
    assert callback.params["credential"] == "credential-1" and callback.params["url"].endswith("?key=[redacted]")
    assert recording.head.config["password"] == "[redacted]"

    report = await replay(recording, folder / "plugins" / "p")
    # The call of the upstream is answered from the recording: nothing went there again.
    assert [call.differences for call in report.calls] == [[], []] and len(upstream.requests) == 1


COUNTS = """
class P(Plugin):
    async def model_route(self, request, ctx):
        seen = await ctx.kv.increment("seen")
        if seen == STEP:
            await ctx.kv.set("reached", seen)
        return ModelRouteResponse(target_kind="provider", target="openai-compatible-acme", reason=f"number {seen}")
"""


async def test_callbacks_are_answered_as_they_were_when_they_were_recorded(folder, upstream, http):
    manifest = 'runtime = "process"\nentry = "plugin:P"\npermissions = ["kv"]\n'
    plugin_folder(folder / "plugins", "p", COUNTS.replace("STEP", "3"), manifest=manifest)
    file = folder / "calls.jsonl"
    async with example_proxy(folder, {"p": {}}, policy={"p": {"permissions": ["kv"]}}, **acme(upstream, "m")) as proxy:
        await ask(http, proxy.url, "m")
        async with recorded(proxy, "p", file):
            for _ in range(3):
                await ask(http, proxy.url, "m")
    recording = read_recording(file)
    assert [call.answer["reason"] for call in recording.calls] == ["number 2", "number 3", "number 4"]
    assert [callback.method for callback in recording.calls[1].callbacks] == ["host.kv.increment", "host.kv.set"]
    assert [call.differences for call in (await replay(recording, folder / "plugins" / "p")).calls] == [[], [], []]
    candidate = plugin_folder(folder / "other", "p", COUNTS.replace("STEP", "4"), manifest=manifest)
    changed = (await replay(recording, candidate)).calls
    assert [[(it.at, it.recorded, it.now) for it in call.differences] for call in changed] == [
        [],
        [("/callbacks/host.kv.set", {"key": "reached", "value": 3}, "(nothing)")],
        # Asked for the first time: there is no answer to it.
        [
            ("/answer", recording.calls[2].answer, "(nothing)"),
            ("/error", "(nothing)", changed[2].differences[1].now),
            ("/callbacks/host.kv.set", "(nothing)", {"key": "reached", "value": 4}),
        ],
    ]


HANGS = """        if self.config["wait"]:
            await asyncio.Event().wait()
        return ExecutorResponse(body=Body.from_value({}))

    async def plugin_register(self, request):
        return RegisterResponse(models=(ModelInfo(id="p-model"),), executor=ExecutorRegistration())
"""
REFUSES = """
class P(Plugin):
    async def plugin_register(self, request):
        raise PluginError("not like this")
"""


async def test_streams_errors_and_bodies_without_texts_are_recorded_too(folder, http):
    file = folder / "calls.jsonl"
    async with example_proxy(folder, {"storyteller": {}}) as proxy:
        async with recorded(proxy, "storyteller", file, redact_bodies=True):
            status, text = await ask(http, proxy.url, "storyteller", stream=True)
            assert status == 200 and "Once" in text
            assert (await ask(http, proxy.url, "storyteller", max_tokens=0))[0] == 422
    recording = read_recording(file)
    stream = next(call for call in recording.calls if call.method == "executor.execute_stream")
    assert len(stream.items) == 18 and stream.usage["output_tokens"] == 17
    assert stream.params["body"]["json"]["messages"] == [{"role": "user", "content": "[redacted: 2 characters]"}]
    refused = next(call for call in recording.calls if call.method == "executor.execute")
    assert (refused.error["http_status"], refused.error["code"]) == (422, "story_too_short")
    assert recording.head.redacted_bodies and stream.masked > 0
    report = await replay(recording, EXAMPLES / "storyteller")
    assert [call.differences for call in report.calls] == [[]] * 4
    candidate = copy_of("storyteller", folder)
    edit(candidate / "storyteller.py", "422", "409")
    edit(candidate / "storyteller.py", " It lived happily ever after.", "")
    changed = {call.method: call.differences for call in (await replay(recording, candidate)).changed}
    assert [it.at for it in changed["executor.execute"]] == ["/error/http_status"]
    assert changed["executor.execute_stream"]


async def test_a_recording_ends_by_its_size_and_leaves_nothing_in_the_way(folder, upstream, http):
    file = folder / "calls.jsonl"
    async with example_proxy(folder, ROUTER, **acme(upstream, "small", "large")) as proxy:
        parts = proxy.proxy
        assert parts.invoker.tap is None and parts.callbacks.tap is None
        async with recorded(proxy, "cheap-first", file, max_bytes=2000):
            with pytest.raises(RecordingRuns, match="cheap-first is being recorded"):
                parts.recordings.start(RecordOrder(plugin_id="cheap-first", limit_s=1, max_bytes=1))
            for _ in range(5):
                assert (await ask(http, proxy.url, "auto"))[0] == 200
        with pytest.raises(KeyError):
            parts.recordings.start(RecordOrder(plugin_id="nobody", limit_s=1, max_bytes=1))
        assert parts.invoker.tap is None and parts.callbacks.tap is None
    tail = read_recording(file).tail
    assert tail.reason == "size" and 0 < tail.calls < 5 and file.stat().st_size < 2200


async def test_a_call_that_nobody_waited_for_is_made_and_not_compared(folder, http):
    source = "class P(Plugin):\n    async def executor_execute(self, request, ctx):\n" + HANGS
    plugin_folder(folder / "plugins", "p", source, manifest='runtime = "process"\nentry = "plugin:P"\n')
    file = folder / "calls.jsonl"
    async with example_proxy(folder, {"p": {"wait": True}}) as proxy:
        async with recorded(proxy, "p", file):
            asking = asyncio.create_task(ask(http, proxy.url, "p-model"))
            async with asyncio.timeout(60):
                while not proxy.proxy.recordings._running[1]._open:
                    await asyncio.wait([asking], timeout=0)
            asking.cancel()
            await asyncio.wait([asking])
            async with asyncio.timeout(60):
                while proxy.proxy.recordings._running[1]._open:
                    async with http.get(f"{proxy.url}/healthz"):
                        pass
    recording = read_recording(file)
    report = await replay(recording, folder / "plugins" / "p", config={"wait": False})
    assert [call.skipped for call in report.calls] == ["nobody waited for its answer when it was recorded"]
    with pytest.raises(ReplayError, match="another one is given with --plugin-config"):
        await replay(recording, plugin_folder(folder / "other", "p", REFUSES))


async def test_the_time_ends_a_recording_too(folder):
    async with example_proxy(folder, {"storyteller": {}}) as proxy:
        order = RecordOrder(plugin_id="storyteller", limit_s=0.0, max_bytes=1000)
        async with asyncio.timeout(60):
            lines = [line async for line in proxy.proxy.recordings.start(order)]
    assert msgspec.json.decode(lines[-1]) == {"kind": "end", "reason": "time"}


async def test_a_recording_is_not_to_be_had_over_http_and_not_without_a_proxy(folder, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    async with managed_proxy(folder, {"router": "class P(Plugin): ..."}) as managed:
        answer = await managed.api.get("/plugins/router/record")
        assert answer.status == 403
        assert answer.json["command"] == "jackfield record --plugin router"
        unknown = await run_command(managed.file, "record", "--plugin", "nobody")
        assert unknown.exit_code == 1 and "does not run" in unknown.stderr
        bad = await run_command(managed.file, "record", "--plugin", "router", "--for", "soon")
        assert bad.exit_code == 2 and "--for" in bad.stderr
        taken = await run_command(managed.file, "record", "--plugin", "router", "--out", str(managed.file))
        assert taken.exit_code == 1 and "exists" in taken.stderr
    nobody = await run_command(folder / "config.yaml", "record", "--plugin", "router")
    assert nobody.exit_code == 1 and "no proxy runs" in nobody.stderr


async def test_of_several_workers_the_calls_of_all_are_in_the_file(folder, monkeypatch, http):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "1"))
    file = folder / "calls.jsonl"
    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for name in ("1", "2"):
            (folder / name).mkdir()
            workers.append(await stack.enter_async_context(example_proxy(folder / name, {"storyteller": {}})))
        # The second stands for another worker of the first: that is where it would listen.
        second = ControlServer(socket_path(workers[0].config_file, 2), workers[1].proxy.management.app.handle_local)
        await second.start()
        stack.push_async_callback(second.stop)
        words = ("record", "--plugin", "storyteller", "--out", str(file))
        recording = asyncio.create_task(run_command(workers[0].config_file, *words))
        async with asyncio.timeout(60):
            while any(worker.proxy.invoker.tap is None for worker in workers):
                await asyncio.wait([recording], timeout=0.0)
            for worker in workers:
                assert (await ask(http, worker.url, "storyteller"))[0] == 200
            for worker in workers:
                worker.proxy.recordings.stop()
            done = await recording
    assert done.exit_code == 0 and "4 calls; the proxy went down" in done.stdout
    recording = read_recording(file)
    assert len({call.request_id for call in recording.calls}) == 2 and recording.tail.calls == 4
    assert [call.differences for call in (await replay(recording, EXAMPLES / "storyteller")).calls] == [[]] * 4


async def test_client_authentication_is_counted_only(folder, http):
    file = folder / "calls.jsonl"
    async with example_proxy(folder, {"exclusive-auth": {}}, demo=True) as proxy:
        async with recorded(proxy, "exclusive-auth", file):
            headers = {"x-example-frontend-auth": "exclusive"}
            async with http.get(f"{proxy.url}/v1/models", headers=headers) as answer:
                assert answer.status == 200
    recording = read_recording(file)
    assert recording.calls == [] and recording.tail.not_recorded == 1
    assert "exclusive" not in file.read_text().replace("exclusive-auth", "")


@pytest.mark.usefixtures("upstream")
async def test_a_proxy_that_goes_down_ends_the_recording(folder):
    (folder / "config.yaml").write_text(config_text({}))
    async with running_proxy((folder / "config.yaml").read_text(), directory=folder, demo=True) as running:
        lines = running.proxy.recordings.start(RecordOrder(plugin_id="echo", limit_s=60, max_bytes=1000))
    async with asyncio.timeout(60):
        left = [line async for line in lines]
    assert msgspec.json.decode(left[-1])["reason"] == "shutdown"
