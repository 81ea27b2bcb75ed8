"""Every example does what its README says, and does the same whatever carries it."""

import asyncio
import shutil
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pluginabi.payloads.lifecycle import RegisterRequest
from pluginapi import HttpResponse, Plugin
from pluginapi.testing import FakeHost, PluginHarness
from tests.support.example_languages import need_compiler
from tests.support.example_scripts import RELAY, SCRIPTS, STORYTELLER
from tests.support.example_steps import EXAMPLES, Script, chat, execute, run_step
from tests.support.in_process import in_process, load_class
from tests.support.plugin_process import python, started

IN_PYTHON = [script for script in SCRIPTS if script.in_python]
OTHERS = [script for script in SCRIPTS if not script.in_python]


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """What an example writes beside itself lands in the test's folder, in-process too."""
    monkeypatch.chdir(tmp_path)


def manifest_of(script: Script) -> dict[str, Any]:
    return tomllib.loads((script.directory / "plugin.toml").read_text())


def class_of(script: Script) -> type[Plugin]:
    return load_class(script.directory, manifest_of(script)["entry"])


def command_of(script: Script) -> list[str]:
    """What the host would run."""
    manifest = manifest_of(script)
    if "entry" in manifest:
        return python("-P", "-m", "pluginapi.run", manifest["entry"])
    return [
        str(script.directory / word) if (script.directory / word).is_file() else word for word in manifest["command"]
    ]


def spoken(script: Script, folder: Path, protocol: str) -> Path:
    """The example's folder, as a copy with another `protocol` in its manifest where that is asked for."""
    manifest = manifest_of(script)
    if "entry" not in manifest or manifest.get("protocol", "json") == protocol:
        return script.directory
    copy = folder / script.folder
    shutil.copytree(script.directory, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "plugin.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("protocol =", "transport ="))]
    (copy / "plugin.toml").write_text("\n".join([f'protocol = "{protocol}"', *lines]))
    return copy


@asynccontextmanager
async def carried(script: Script, carrier: str, socket_dir: Path, host: FakeHost | None = None) -> AsyncIterator[Any]:
    """The example, registered, over one carrier."""
    host = host or script.host()
    register = RegisterRequest(config=script.config, permissions=script.permissions)
    if carrier == "inprocess":
        async with in_process(class_of(script), host=host, register=register) as plugin:
            yield plugin
        return
    async with started(
        command_of(script),
        plugin_id=script.folder,
        directory=spoken(script, socket_dir, "grpc" if carrier == "grpc" else "json"),
        cwd=socket_dir,
        host=host,
        register=register,
        socket_dir=socket_dir if carrier != "pipes" else None,
        protocol="grpc" if carrier == "grpc" else "json",
    ) as plugin:
        yield plugin


async def transcript(script: Script, carrier: str, socket_dir: Path) -> list[Any]:
    async with carried(script, carrier, socket_dir) as plugin:
        return [await run_step(plugin, step) for step in script.steps]


def expected(script: Script) -> list[Any]:
    return [(step.expected, step.usage) for step in script.steps]


def test_every_example_has_a_script_a_manifest_and_a_readme_of_one_screen():
    folders = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
    assert folders == sorted(script.folder for script in SCRIPTS)
    for script in SCRIPTS:
        assert manifest_of(script)["id"] == script.folder
        readme = (script.directory / "README.md").read_text()
        assert len(readme.splitlines()) <= 45, script.folder
        assert ("curl " in readme or "jackfield --" in readme) and "plugins:" in readme, script.folder


@pytest.mark.parametrize("script", OTHERS, ids=lambda script: script.folder)
async def test_an_example_without_the_sdk_answers_its_script(script, tmp_path):
    need_compiler(script.folder)
    assert await transcript(script, "pipes", tmp_path) == expected(script)


@pytest.mark.parametrize("carrier", ["inprocess", "pipes", "unix", "grpc"])
@pytest.mark.parametrize("script", IN_PYTHON, ids=lambda script: script.folder)
async def test_an_example_gives_the_same_transcript_over_every_carrier(script, carrier, tmp_path):
    assert await transcript(script, carrier, tmp_path) == expected(script)


@pytest.mark.parametrize("script", IN_PYTHON, ids=lambda script: script.folder)
async def test_an_example_in_python_also_runs_as_a_script_of_its_own(script, tmp_path):
    module = manifest_of(script)["entry"].partition(":")[0]
    async with started(
        python(str(script.directory / f"{module}.py")),
        plugin_id=script.folder,
        cwd=tmp_path,
        host=script.host(),
        register=RegisterRequest(config=script.config, permissions=script.permissions),
    ) as plugin:
        assert [await run_step(plugin, step) for step in script.steps] == expected(script)
        plugin.close_stdin()
        assert await plugin.exit_code() == 0


@pytest.mark.parametrize("script", IN_PYTHON, ids=lambda script: script.folder)
def test_an_example_in_python_declares_in_its_manifest_what_its_class_declares(script):
    manifest, plugin = manifest_of(script), class_of(script)
    assert {method: list(words) for method, words in plugin.inputs.items()} == manifest.get("inputs", {}) or (
        "inputs" not in manifest
    )
    assert dict(plugin.on_error) == {} or manifest["on_error"].items() <= dict(plugin.on_error).items()


async def test_the_relay_closes_its_upstream_when_the_client_leaves(tmp_path, within):
    host = FakeHost()
    host.on_stream("host.http.do_stream", HttpResponse(status=200), [b"data: 1\n\n"], hold=asyncio.Event())
    async with carried(RELAY, "pipes", tmp_path, host) as plugin:
        _, items = await plugin.open_stream("executor.execute_stream", execute("relay/m", chat("hi"), stream=True))
        assert (await within(anext(items))).raw.to_bytes() == b"data: 1\n\n"
        assert host.closed_streams == 0
        await items.aclose()
        await within(host.stream_closed.wait())


async def test_the_relay_sends_the_model_without_its_prefix(tmp_path):
    host = RELAY.host()
    async with carried(RELAY, "pipes", tmp_path, host) as plugin:
        await plugin.reply("executor.execute", execute("relay/m1", chat("hi", temperature=1)))
    (request,) = host.asked("host.http.do_stream")
    assert request.url == RELAY.config["url"]
    assert request.body.value() == {"messages": [{"role": "user", "content": "hi"}], "temperature": 1, "model": "m1"}


async def test_the_relay_refuses_a_configuration_without_an_address():
    with pytest.raises(Exception, match="set url"):
        async with PluginHarness(class_of(RELAY)):
            pytest.fail("registered")


async def test_the_node_router_describes_itself_as_it_says_hello(tmp_path):
    process = await asyncio.create_subprocess_exec(
        "node", str(EXAMPLES / "node-router" / "router.mjs"), "--describe", stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert b'"plugin":"node-router"' in out


async def test_the_jq_router_is_of_the_minimal_profile(tmp_path):
    jq = next(script for script in SCRIPTS if script.folder == "jq-router")
    async with carried(jq, "pipes", tmp_path) as plugin:
        assert (plugin.greeting.features, plugin.greeting.max_inflight) == (frozenset(), 1)
        plugin.close_stdin()
        assert await plugin.exit_code() == 0


async def test_the_story_is_told_to_its_end(tmp_path):
    async with carried(STORYTELLER, "pipes", tmp_path) as plugin:
        _, items = await plugin.open_stream("executor.execute_stream", execute("storyteller", chat("go"), stream=True))
        words = [item.body.value()["choices"][0]["delta"].get("content", "") async for item in items]
    assert "".join(words) == (
        "Once upon a time there was a jack that fitted every socket. It lived happily ever after. "
    )
