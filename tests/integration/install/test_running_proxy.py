"""Install, upgrade and remove while a proxy serves: it takes part, and no client notices."""

import asyncio
from pathlib import Path

import aiohttp

from tests.integration.serve.conftest import CHAT, Site
from tests.support.archives import zip_of_folder
from tests.support.plugin_folders import write_greeter
from tests.support.proxy import run_command, serve_process


def greeter(tmp_path: Path, says: str, version: str, **fields: str) -> Path:
    """An archive of a plugin that answers every request itself."""
    folder = write_greeter(tmp_path / version, says=says, **fields)
    manifest = (folder / "plugin.toml").read_text()
    (folder / "plugin.toml").write_text(manifest.replace("1.0.0", version))
    return zip_of_folder(tmp_path / f"greeter-{version}.zip", folder)


async def test_a_plugins_life_beside_a_running_proxy(site: Site, tmp_path: Path) -> None:
    first, second = greeter(tmp_path, "first", "1.0.0"), greeter(tmp_path, "second", "2.0.0")
    broken = greeter(tmp_path, "third", "3.0.0", prelude="raise SystemExit('no more')")
    site.configure(plugins={"enabled": True})
    async with serve_process(site.config_file) as served, aiohttp.ClientSession() as client:

        async def says() -> object:
            async with client.post(f"{served.url}/v1/chat/completions", json=CHAT) as response:
                return (await response.json()).get("says")

        done = await run_command(site.config_file, "plugins", "install", str(first), "--yes", "--enable")
        assert done.exit_code == 0, (done.stdout, done.stderr)
        assert await says() == "first"

        stop, heard = asyncio.Event(), set()

        async def keep_asking() -> None:
            while not stop.is_set():
                heard.add(await says())

        asking = asyncio.create_task(keep_asking())
        done = await run_command(site.config_file, "plugins", "upgrade", "greeter", str(second), "--yes")
        assert (done.exit_code, "greeter 2.0.0 is loaded" in done.stdout) == (0, True), (done.stdout, done.stderr)
        assert await says() == "second"
        stop.set()
        await asking
        assert heard <= {"first", "second"}

        done = await run_command(site.config_file, "plugins", "upgrade", "greeter", str(broken), "--yes")
        assert (done.exit_code, "2.0.0 was put back" in done.stderr) == (1, True), (done.stdout, done.stderr)
        assert "no more" in done.stderr
        assert await says() == "second"
        assert (await run_command(site.config_file, "plugins", "verify")).stdout == "greeter 2.0.0: fine\n"
        row = (await run_command(site.config_file, "plugins", "list")).stdout
        assert next(line.split()[:3] for line in row.splitlines() if line.startswith("greeter")) == [
            "greeter",
            "2.0.0",
            "ready",
        ]

        main = site.plugins / "greeter" / "main.py"
        main.write_text(main.read_text() + "\n")
        done = await run_command(site.config_file, "plugins", "reload", "greeter")
        assert (done.exit_code, "changed: main.py" in done.stderr) == (1, True)
        assert await says() == "second"
        done = await run_command(site.config_file, "plugins", "lock", "greeter", "--yes")
        assert (done.exit_code, "is loaded" in done.stdout) == (0, True), (done.stdout, done.stderr)

        done = await run_command(site.config_file, "plugins", "remove", "greeter", "--yes", "--forget")
        assert done.exit_code == 0, (done.stdout, done.stderr)
        assert not (site.plugins / "greeter").exists()
        assert {entry["new"] for entry in served.log if entry["event"] == "plugin.state"} >= {"draining", "stopped"}
        assert await says() is None


async def test_an_installed_plugin_that_is_enabled_already_starts_at_once_and_remove_waits_for_its_calls(
    site: Site, tmp_path: Path
) -> None:
    # Its calls wait until somebody opens the other end of a pipe and closes it.
    gate = tmp_path / "gate"
    wait = f"import os\nos.mkfifo({str(gate)!r})\n_loads = json.loads\n"
    wait += "def loads(line):\n    frame = _loads(line)\n    if frame['kind'] == 'call':\n"
    wait += f"        open({str(gate)!r}).read()\n    return frame\njson.loads = loads\n"
    timeout = "[timeouts]\n'request.intercept_before' = '30s'\n"
    folder = write_greeter(tmp_path / "made", says="late", prelude=wait, toml=timeout)
    archive = zip_of_folder(tmp_path / "greeter.zip", folder)
    enabled = {"configs": {"greeter": {"enabled": True}}, "policy": {"greeter": {"confinement": "off"}}}
    site.configure(plugins={"enabled": True, **enabled})
    async with serve_process(site.config_file) as served, aiohttp.ClientSession() as client:
        done = await run_command(site.config_file, "plugins", "install", str(archive), "--yes")
        assert (done.exit_code, "is loaded" in done.stdout) == (0, True), (done.stdout, done.stderr)

        async def ask() -> object:
            async with client.post(f"{served.url}/v1/chat/completions", json=CHAT) as response:
                return (await response.json()).get("says")

        asking = asyncio.create_task(ask())
        writer = await asyncio.to_thread(open, gate, "w")
        seen = len(served.lines)
        removing = asyncio.create_task(run_command(site.config_file, "plugins", "remove", "greeter", "--yes"))
        await served.event("config.applied", after=seen)
        assert (site.plugins / "greeter").exists()
        writer.close()
        assert await asking == "late"
        done = await removing
        assert (done.exit_code, (site.plugins / "greeter").exists()) == (0, False), (done.stdout, done.stderr)
        assert "greeter" in site.config_file.read_text()
