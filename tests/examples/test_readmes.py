"""What an example's README tells the reader to type is typed here, against the whole proxy."""

import asyncio
import itertools
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from host.app import Proxy
from host.config.load import load_config
from tests.support.example_scripts import EXAMPLES, SCRIPTS
from tests.support.fake_upstream import FakeUpstream, running_upstream

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OTHER_RUNTIME = {"process": "inprocess", "inprocess": "process"}
FOLDERS = [script.folder for script in SCRIPTS if script.folder != "shouter"]
IN_PYTHON = [script.folder for script in SCRIPTS if script.in_python and script.folder != "shouter"]


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
    folder: str, tmp_path: Path, *, runtime: str | None = None
) -> AsyncIterator[tuple[Proxy, FakeUpstream]]:
    """The proxy as the README says, with the example copied into `plugins/` and its upstream replaced by a fake."""
    shutil.copytree(
        EXAMPLES / folder, tmp_path / "plugins" / folder, ignore=shutil.ignore_patterns("__pycache__", "README.md")
    )
    async with running_upstream() as upstream:
        config = readme_of(folder).config
        config = config.replace("https://api.acme.example", upstream.url)
        config = config.replace("http://localhost:11434", upstream.url).replace("[localhost]", "[127.0.0.1]")
        if runtime is not None:
            config = with_runtime(config, folder, runtime)
        path = tmp_path / "config.yaml"
        path.write_text(f"port: 0\n{config}")
        proxy = Proxy(load_config(path), config_path=path, watch=False)
        try:
            async with asyncio.timeout(20):
                await proxy.start()
            yield proxy, upstream
        finally:
            async with asyncio.timeout(20):
                await proxy.stop()


def with_runtime(config: str, folder: str, runtime: str) -> str:
    if re.search(r"^  policy:", config, re.MULTILINE) is None:
        config += f"  policy:\n    {folder}:\n"
    config = re.sub(r"^      runtime:.*\n", "", config, flags=re.MULTILINE)
    return re.sub(rf"(^  policy:\n    {folder}:\n)", rf"\1      runtime: {runtime}\n", config, flags=re.MULTILINE)


async def typed(command: str, proxy: Proxy) -> str:
    """What a shell prints for `command`."""
    assert "localhost:8317" in command
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command.replace("localhost:8317", proxy.url.removeprefix("http://")), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
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


@pytest.mark.parametrize("folder", FOLDERS)
async def test_the_commands_of_a_readme_print_what_it_says(folder, tmp_path):
    async with proxy_with(folder, tmp_path) as (proxy, _):
        await check_readme(folder, proxy)


@pytest.mark.parametrize("runtime", ["inprocess", "process"])
@pytest.mark.parametrize("folder", IN_PYTHON)
async def test_an_example_does_the_same_in_either_runtime(folder, runtime, tmp_path):
    async with proxy_with(folder, tmp_path, runtime=runtime) as (proxy, _):
        (status,) = [status for status in proxy.registry.statuses() if status.id == folder]
        assert (status.carrier, status.state) == (runtime, "ready")
        await check_readme(folder, proxy)


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
