"""What an example's README tells the reader to type is typed here, against the whole proxy."""

import asyncio
import itertools
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from host.app import Proxy
from host.config.load import LoadedConfig, load_config
from host.config.model import PluginPolicy
from tests.support.example_languages import need_compiler
from tests.support.example_proxy import PATIENT
from tests.support.example_scripts import SCRIPTS
from tests.support.example_steps import EXAMPLES
from tests.support.fake_upstream import FakeUpstream, running_upstream
from tests.support.plugin_process import Tail, plugin_environment, python, spawn
from tests.support.proxy import replace_config

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OTHER_RUNTIME = {"process": "inprocess", "inprocess": "process"}
WITHOUT_SDK = [script.folder for script in SCRIPTS if not script.in_python]
IN_PYTHON = [script.folder for script in SCRIPTS if script.in_python]


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """What an example writes beside itself lands in the test's folder, in-process too."""
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Readme:
    """The blocks of a README: the configuration, and commands with the fragments of their output."""

    config: str
    commands: list[tuple[str, list[str]]]


def readme_of(folder: str) -> Readme:
    blocks = FENCE.findall((EXAMPLES / folder / "README.md").read_text())
    (config,) = [text for kind, text in blocks if kind == "yaml"]
    commands = []
    for (kind, text), (next_kind, following) in itertools.pairwise(blocks):
        if kind == "sh":
            assert next_kind == "text", "a command is followed by what it prints"
            commands.append((text, following.splitlines()))
    assert commands
    return Readme(config, commands)


@asynccontextmanager
async def proxy_with(
    folder: str, tmp_path: Path, *, runtime: str | None = None, protocol: str | None = None
) -> AsyncIterator[tuple[Proxy, FakeUpstream]]:
    """The proxy as the README says, with the example copied into `plugins/` and its upstream replaced by a fake."""
    shutil.copytree(
        EXAMPLES / folder,
        tmp_path / "plugins" / folder,
        ignore=shutil.ignore_patterns("__pycache__", "target", "README.md"),
    )
    if protocol is not None:
        speak(tmp_path / "plugins" / folder / "plugin.toml", protocol)
    async with running_upstream() as upstream:
        config = readme_of(folder).config
        config = config.replace("https://api.acme.example", upstream.url)
        config = config.replace("http://localhost:11434", upstream.url).replace("[localhost]", "[127.0.0.1]")
        if runtime is not None:
            config = with_runtime(config, folder, runtime)
        path = tmp_path / "config.yaml"
        path.write_text(f"port: 0\n{config}")
        proxy = Proxy(patient(load_config(path), folder), config_path=path, watch=False)
        try:
            async with asyncio.timeout(60):
                await proxy.start()
                await proxy.management.pages.synced()
            yield proxy, upstream
        finally:
            async with asyncio.timeout(60):
                await proxy.stop()


def patient(loaded: LoadedConfig, folder: str) -> LoadedConfig:
    """With more time for every hook of the example than it has by itself, for busy machines."""
    plugins = loaded.config.plugins
    own = plugins.policy.get(folder, PluginPolicy())
    own = replace(own, timeouts={**PATIENT, **own.timeouts})
    return replace_config(loaded, plugins=replace(plugins, policy={**plugins.policy, folder: own}))


def speak(manifest: Path, protocol: str) -> None:
    lines = [line for line in manifest.read_text().splitlines() if not line.startswith("protocol =")]
    manifest.write_text("\n".join([f'protocol = "{protocol}"', *lines]))


def with_runtime(config: str, folder: str, runtime: str) -> str:
    if re.search(r"^  policy:", config, re.MULTILINE) is None:
        config += f"  policy:\n    {folder}:\n"
    config = re.sub(r"^      runtime:.*\n", "", config, flags=re.MULTILINE)
    return re.sub(rf"(^  policy:\n    {folder}:\n)", rf"\1      runtime: {runtime}\n", config, flags=re.MULTILINE)


async def typed(command: str, proxy: Proxy) -> str:
    """What a shell prints for `command`."""
    assert "localhost:8317" in command or command.startswith("jackfield ")
    command = command.replace("localhost:8317", proxy.url.removeprefix("http://"))
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        re.sub(r"^jackfield ", f"{sys.executable} -m host ", command),
        stdout=asyncio.subprocess.PIPE,
        cwd=proxy.config_path.parent,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return out.decode()


async def check_readme(folder: str, proxy: Proxy) -> None:
    for command, fragments in readme_of(folder).commands:
        output = await typed(command, proxy)
        for fragment in fragments:
            assert packed(fragment) in packed(output), f"{command}\n---\n{output}"


def packed(text: str) -> str:
    """JSON may be spaced, header names may be written in capitals."""
    return re.sub(r"([:,]) ", r"\1", text).lower()


@pytest.mark.parametrize("folder", WITHOUT_SDK)
async def test_the_commands_of_a_readme_print_what_it_says(folder, tmp_path):
    need_compiler(folder)
    async with proxy_with(folder, tmp_path) as (proxy, _):
        await check_readme(folder, proxy)


@pytest.mark.parametrize("runtime", ["inprocess", "process"])
@pytest.mark.parametrize("folder", IN_PYTHON)
async def test_an_example_does_the_same_in_either_runtime(folder, runtime, tmp_path):
    async with proxy_with(folder, tmp_path, runtime=runtime) as (proxy, _):
        (status,) = [status for status in proxy.registry.statuses() if status.id == folder]
        assert (status.carrier, status.state) == (runtime, "ready")
        await check_readme(folder, proxy)


@pytest.mark.parametrize("folder", [folder for folder in IN_PYTHON if folder != "config-card"])
async def test_clients_get_the_same_answers_whatever_carries_an_example(folder, tmp_path):
    answers = {}
    for carrier, protocol in (("inprocess", None), ("process", "json"), ("process", "grpc")):
        here = tmp_path / f"{carrier}-{protocol}"
        here.mkdir()
        async with proxy_with(folder, here, runtime=carrier, protocol=protocol) as (proxy, _):
            (status,) = [status for status in proxy.registry.statuses() if status.id == folder]
            assert (status.carrier, status.state) == (carrier, "ready")
            commands = [command for command, _ in readme_of(folder).commands]
            said = [without_the_moment(await typed(command, proxy)) for command in commands]
            answers[carrier, protocol] = [text.replace(str(here), "HERE") for text in said]
    first, *others = answers.values()
    assert all(other == first for other in others), answers


def without_the_moment(output: str) -> str:
    """Ids and times differ from call to call."""
    output = re.sub(r"[0-9a-f]{24}", "ID", output)
    return re.sub(r'created(?:"|&quot;):\s*\d+|^date: .*$', "NOW", output, flags=re.MULTILINE | re.IGNORECASE)


async def test_a_debugger_may_run_the_plugin_and_the_proxy_leaves_it_alone(tmp_path, monkeypatch):
    socket = tmp_path / "s"
    process = await spawn(
        python(str(EXAMPLES / "storyteller" / "storyteller.py"), "--listen", f"unix:{socket}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=plugin_environment(),
    )
    tail = Tail(process.stderr)
    await tail.until("listening")
    monkeypatch.setenv("JACKFIELD_ATTACH", f"storyteller=unix:{socket}")
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        async with proxy_with("storyteller", tmp_path / str(number)) as (proxy, _):
            await check_readme("storyteller", proxy)
            (status,) = [status for status in proxy.registry.statuses() if status.id == "storyteller"]
            assert status.pid is None
    assert process.returncode is None
    process.terminate()
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    await tail.all()


async def test_cheap_first_sends_requests_with_tools_to_the_strong_model(tmp_path):
    async with proxy_with("cheap-first", tmp_path) as (proxy, upstream):
        ((command, _),) = readme_of("cheap-first").commands
        await typed(command, proxy)
        tools = '"tools": [{"type": "function", "function": {"name": "f"}}]'
        await typed(command.replace('"model": "auto"', f'"model": "auto", {tools}'), proxy)
    assert [request.json["model"] for request in upstream.requests] == ["acme-small", "acme-large"]


async def test_the_sticky_scheduler_keeps_a_session_on_one_key_and_lets_the_others_take_turns(tmp_path):
    async with proxy_with("sticky-scheduler", tmp_path) as (proxy, upstream):
        ((command, _),) = readme_of("sticky-scheduler").commands
        for _ in range(4):
            await typed(command, proxy)
        for _ in range(3):
            await typed(command.replace("-H 'x-session-id: s1'", ""), proxy)
    keys = [request.headers["Authorization"] for request in upstream.requests]
    assert len(set(keys[:4])) == 1
    assert len(set(keys[4:])) == 3


async def test_house_rules_change_what_the_executor_gets(tmp_path):
    async with proxy_with("house-rules", tmp_path) as (proxy, _):
        ((command, _),) = readme_of("house-rules").commands
        assert "HTTP/1.1 200" in await typed(command, proxy)


async def test_the_card_gate_lets_other_requests_pass(tmp_path):
    async with proxy_with("card-gate", tmp_path) as (proxy, _):
        ((command, _),) = readme_of("card-gate").commands
        assert "HTTP/1.1 200" in await typed(command.replace("4111 1111 1111 1111", "cash"), proxy)
