"""A plugin in any language can be run by a debugger: it listens, and gateways come and go."""

import asyncio
import signal
import tempfile
from pathlib import Path

import aiohttp
import pytest

from tests.support import toolchains
from tests.support.example_proxy import config_text
from tests.support.plugin_process import Tail, plugin_environment, spawn
from tests.support.proxy import running_proxy
from tests.support.scaffolds import build, made

pytestmark = pytest.mark.timeout(400)
COMMANDS = {"node": ["node", "main.mjs"], "go": ["./plugin"], "rust": ["./plugin"], "c": ["./plugin"]}


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_gateway_attaches_to_a_plugin_that_somebody_else_runs(language, tmp_path, monkeypatch):
    toolchains.need({**toolchains.COMPILERS, "node": "node"}[language])
    folders = made(language)
    if language != "node":
        build(language, folders)
    (folder,) = [folder for folder in folders if folder.name == "my-router"]
    with tempfile.TemporaryDirectory(prefix="jf-") as short:
        path = f"{short}/s"
        process = await spawn(
            [*COMMANDS[language], "--listen", f"unix:{path}"],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env=plugin_environment(),
            cwd=folder,
        )
        tail = Tail(process.stderr)
        await tail.until("listening")
        assert Path(path).stat().st_mode & 0o077 == 0, "for this user only"
        monkeypatch.setenv("JACKFIELD_ATTACH", f"my-router=unix:{path}")
        for number in range(2):
            await ask(tmp_path / str(number), folder)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.wait()
        await tail.all()


async def ask(directory: Path, folder: Path) -> None:
    """One gateway, one request."""
    (directory / "plugins").mkdir(parents=True)
    (directory / "plugins" / folder.name).symlink_to(folder)
    text = config_text({folder.name: {"model": "auto"}, "echo": {}})
    async with running_proxy(text, directory=directory) as running:
        (status,) = [status for status in running.proxy.registry.statuses() if status.id == folder.name]
        assert (status.state, status.pid) == ("ready", None)
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{running.url}/v1/chat/completions", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
