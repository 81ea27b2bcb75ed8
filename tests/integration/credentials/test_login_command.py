"""`jackfield login` as an operator types it, beside a running proxy and without one."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.integration.credentials.conftest import ask, write_site
from tests.support.oauth_server import EMAIL, oauth_server
from tests.support.proxy import ROOT, serve_process

PROVIDER = "openai-compatible-acme"
NAME = f"{PROVIDER}-{EMAIL}.json"


@dataclass
class Command:
    """A login in a terminal."""

    process: asyncio.subprocess.Process

    async def line(self, wanted: str) -> str:
        """The next line with these words."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while line := (await self.process.stdout.readline()).decode():
                if wanted in line:
                    return line.strip()
        raise AssertionError(f"it ended without {wanted!r}")

    async def ended(self) -> tuple[int, str, str]:
        """Exit code, and what was left to print."""
        async with asyncio.timeout(60):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def login(config: Path, *arguments: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "host", "login", *arguments, "--no-browser", "--config", str(config)),
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(config.parent)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_login_beside_a_running_proxy_is_used_by_it_at_once(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    async with oauth_server() as server:
        config = write_site(tmp_path, server)
        async with serve_process(config) as served, login(config, PROVIDER) as command:
            address = await command.line("http://")
            async with client.get(address) as page:
                assert (page.status, "You can close this window" in await page.text()) == (200, True)
            code, out, err = await command.ended()
            assert (code, err) == (0, "")
            assert f"Stored {NAME} in {tmp_path / 'auths'}" in out
            await served.event("credential.files_changed", added=1)
            assert (await ask(client, served.url))[0] == 200
    assert json.loads((tmp_path / "auths" / NAME).read_text())["type"] == PROVIDER


async def test_a_device_shows_its_code_and_a_refusal_is_an_error(tmp_path: Path) -> None:
    async with oauth_server(device_answers=["access_denied"]) as server:
        config = write_site(tmp_path, server, flow="device")
        async with login(config, PROVIDER) as command:
            assert await command.line("type in the code") == "and type in the code  WDJB-MJHT"
            code, _, err = await command.ended()
        assert (code, "The login failed: access_denied" in err) == (1, True)
        async with login(config) as command:
            assert await command.ended() == (0, f"Who can be logged in to: {PROVIDER}\n", "")


async def test_mistakes_are_said_in_a_sentence(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    async with oauth_server() as server:
        config = write_site(tmp_path, server)
        async with login(config, "nobody") as command:
            code, _, err = await command.ended()
        assert code == 1
        assert f"no plugin logs in to 'nobody'\nWho can be logged in to: {PROVIDER}" in err
        async with login(config, PROVIDER) as command:
            address = await command.line("http://")
            callback = address.partition("redirect_uri=")[2].partition("&")[0].replace("%3A", ":").replace("%2F", "/")
            async with client.get(f"{callback}?state=other&code=c") as page:
                assert (page.status, "unknown or expired state" in await page.text()) == (404, True)
            command.process.send_signal(2)
            code, _, err = await command.ended()
        assert (code, "nothing was stored" in err) == (130, True)
    assert not (tmp_path / "auths").exists() or not list((tmp_path / "auths").iterdir())
