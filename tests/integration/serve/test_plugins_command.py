"""`jackfield plugins …` against a running proxy, and on the file alone when none runs."""

import json

import aiohttp

from tests.integration.serve.conftest import CHAT, Site, enabled
from tests.support.plugin_folders import write_greeter
from tests.support.proxy import run_command, serve_process


async def test_the_whole_life_of_a_plugin_by_command(site: Site, client: aiohttp.ClientSession) -> None:
    write_greeter(site.plugins, says="first")
    site.config_file.write_text("port: 0   # any\n# a comment of the operator\n")

    async def says(url: str) -> object:
        async with client.post(f"{url}/v1/chat/completions", json=CHAT) as response:
            return (await response.json()).get("says")

    async with serve_process(site.config_file) as served:
        done = await run_command(site.config_file, "plugins", "list")
        assert done.exit_code == 0
        assert f"the running proxy on {site.config_file}" in done.stdout
        row = next(line for line in done.stdout.splitlines() if line.startswith("greeter"))
        assert row.split()[:3] == ["greeter", "1.0.0", "discovered"]

        done = await run_command(site.config_file, "plugins", "enable", "greeter")
        assert (done.exit_code, "the running proxy picks it up" in done.stdout) == (0, True)
        await served.event("plugin.state", plugin_id="greeter", new="ready")
        await served.event("config.applied")
        assert await says(served.url) == "first"
        assert "# a comment of the operator" in site.config_file.read_text()

        done = await run_command(site.config_file, "plugins", "list", "--json")
        rows = {row["id"]: row for row in json.loads(done.stdout)}
        assert rows["greeter"]["state"] == "ready"
        assert rows["greeter"]["pid"] > 0
        assert rows["echo"]["state"] == "discovered"

        done = await run_command(site.config_file, "plugins", "describe", "greeter")
        described = json.loads(done.stdout)
        assert (done.exit_code, described["state"], described["directory"]) == (
            0,
            "ready",
            str(site.plugins / "greeter"),
        )
        assert described["manifest"]["command"]

        write_greeter(site.plugins, says="second")
        done = await run_command(site.config_file, "plugins", "reload", "greeter")
        assert done.exit_code == 0, done.stdout
        assert await says(served.url) == "second"

        seen = len(served.lines)
        assert (await run_command(site.config_file, "plugins", "disable", "greeter")).exit_code == 0
        await served.event("config.applied", after=seen)
        assert await says(served.url) is None
        await served.event("plugin.state", plugin_id="greeter", new="stopped")


async def test_a_reload_of_broken_files_says_why_and_exits_with_1(site: Site) -> None:
    folder = write_greeter(site.plugins)
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file) as served:
        (folder / "main.py").write_text("raise SystemExit('no more')")
        done = await run_command(site.config_file, "plugins", "reload", "greeter")
        assert done.exit_code == 1, (done.stdout, done.stderr)
        assert "no more" in done.stdout + done.stderr
        done = await run_command(site.config_file, "plugins", "reload", "nobody")
        assert (done.exit_code, "nobody" in done.stderr) == (1, True)
        assert served.process.returncode is None


async def test_without_a_running_proxy_the_file_is_what_counts(site: Site) -> None:
    write_greeter(site.plugins)
    done = await run_command(site.config_file, "plugins", "list")
    assert done.exit_code == 0
    assert f"no proxy runs on {site.config_file}" in done.stdout
    assert (await run_command(site.config_file, "plugins", "enable", "greeter")).exit_code == 0
    done = await run_command(site.config_file, "plugins", "list")
    row = next(line for line in done.stdout.splitlines() if line.startswith("greeter"))
    assert "enabled" in row
    done = await run_command(site.config_file, "plugins", "reload", "greeter")
    assert (done.exit_code, "no proxy runs" in done.stderr) == (1, True)
    done = await run_command(site.config_file, "plugins", "enable", "nobody")
    assert (done.exit_code, "there are:" in done.stderr) == (1, True)


async def test_describing_a_plugin_that_is_not_enabled_runs_nothing(site: Site) -> None:
    ran = site.directory / "ran"
    write_greeter(site.plugins, prelude=f"open({str(ran)!r}, 'w')")
    async with serve_process(site.config_file):
        done = await run_command(site.config_file, "plugins", "describe", "greeter")
        assert (done.exit_code, json.loads(done.stdout)["state"]) == (0, "discovered")
    assert not ran.exists()
