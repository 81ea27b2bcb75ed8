"""What changes while the proxy runs: its configuration, its plugins, and what happens to requests meanwhile."""

import asyncio
import signal

import aiohttp

from tests.integration.serve.conftest import CHAT, Site, enabled, provider
from tests.support.fake_upstream import FakeUpstream
from tests.support.plugin_folders import write_greeter
from tests.support.proxy import ServeProcess, serve_process
from tests.support.upstream_servers import ScriptedServer, ServerConnection


async def says(client: aiohttp.ClientSession, served: ServeProcess) -> object:
    async with client.post(f"{served.url}/v1/chat/completions", json=CHAT) as response:
        return (await response.json()).get("says")


async def status_of(client: aiohttp.ClientSession, served: ServeProcess, model: str) -> int:
    async with client.post(f"{served.url}/v1/chat/completions", json={**CHAT, "model": model}) as response:
        return response.status


async def test_an_edit_of_the_file_is_applied_without_a_restart(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    site.configure(openai_compatibility=provider(upstream, "m1"))
    async with serve_process(site.config_file) as served:
        assert (await status_of(client, served, "m1"), await status_of(client, served, "m2")) == (200, 400)
        site.configure(openai_compatibility=provider(upstream, "m2"))
        await served.event("config.applied")
        assert (await status_of(client, served, "m1"), await status_of(client, served, "m2")) == (400, 200)


async def test_a_running_request_keeps_the_configuration_it_started_with(
    site: Site, client: aiohttp.ClientSession
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        asked.set()
        await go_on.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with ScriptedServer(script) as server:
        site.configure(openai_compatibility=[{"name": "a", "base-url": f"{server.url}/v1", "models": [{"name": "m1"}]}])
        async with serve_process(site.config_file) as served:
            running = asyncio.create_task(status_of(client, served, "m1"))
            async with asyncio.timeout(60):
                await asked.wait()
            site.configure()
            await served.event("config.applied")
            assert await status_of(client, served, "m1") == 400
            go_on.set()
            assert await running == 200


async def test_a_broken_edit_is_reported_with_file_and_line_and_changes_nothing(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    site.configure(openai_compatibility=provider(upstream, "m1"))
    async with serve_process(site.config_file) as served:
        site.config_file.write_text("port: 0\nopenai-compatibility: []\nrequest-retry: many\n")
        rejected = await served.event("config.rejected")
        assert rejected["where"] == f"{site.config_file}:3"
        assert "request-retry" in rejected["message"]
        assert await status_of(client, served, "m1") == 200
        site.configure(openai_compatibility=provider(upstream, "m2"))
        await served.event("config.applied")
        assert await status_of(client, served, "m2") == 200


async def test_an_edit_that_would_open_the_proxy_to_everybody_is_rejected(
    site: Site, client: aiohttp.ClientSession
) -> None:
    site.configure(api_keys=["k-1"], host="0.0.0.0")
    async with serve_process(site.config_file) as served:
        site.configure(host="0.0.0.0")
        rejected = await served.event("config.rejected")
        assert "anybody could use it" in rejected["message"]
        async with client.get(f"{served.url}/v1/models") as response:
            assert response.status == 401


async def test_keys_that_need_a_restart_are_named(site: Site) -> None:
    async with serve_process(site.config_file) as served:
        site.configure(port=1)
        warned = await served.event("config.needs_restart")
        assert warned["keys"] == ["port"]


async def test_hangup_reads_the_configuration_and_every_plugin_anew(site: Site, client: aiohttp.ClientSession) -> None:
    write_greeter(site.plugins, says="first")
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file) as served:
        assert await says(client, served) == "first"
        write_greeter(site.plugins, says="second")
        served.send(signal.SIGHUP)
        await served.event("config.applied")
        await served.event("plugin.reload", plugin_id="greeter")
        assert await says(client, served) == "second"


async def test_a_plugin_whose_new_files_are_broken_keeps_running_as_it_was(
    site: Site, client: aiohttp.ClientSession
) -> None:
    folder = write_greeter(site.plugins, says="first")
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file) as served:
        (folder / "main.py").write_text("raise SystemExit('no more')")
        served.send(signal.SIGHUP)
        outcome = (await served.event("plugin.reload", plugin_id="greeter"))["outcome"]
        assert "its last words: no more" in outcome
        assert await says(client, served) == "first"


async def test_watching_picks_up_an_enabled_plugin_when_it_is_dropped_in_and_again_when_it_changes(
    site: Site, client: aiohttp.ClientSession
) -> None:
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file, "--watch") as served:
        assert await says(client, served) is None
        write_greeter(site.plugins, says="dropped in")
        runs = await served.past_event("plugin.state", plugin_id="greeter", new="ready", generation=1)
        await served.event("config.applied", after=runs)
        assert await says(client, served) == "dropped in"
        seen = len(served.lines)
        write_greeter(site.plugins, says="edited")
        await served.event("plugin.reload", plugin_id="greeter", after=seen)
        assert await says(client, served) == "edited"


async def test_watching_starts_a_plugin_that_was_dropped_in_first_and_enabled_later(
    site: Site, client: aiohttp.ClientSession
) -> None:
    async with serve_process(site.config_file, "--watch") as served:
        write_greeter(site.plugins, says="dropped in")
        await served.event("config.applied")
        assert await says(client, served) is None
        seen = len(served.lines)
        site.configure(plugins=enabled("greeter"))
        # The folder may have been applied more than once; the file has changed once.
        await served.event("config.changed", after=seen)
        assert await says(client, served) == "dropped in"


async def test_a_plugin_is_upgraded_without_losing_a_request(site: Site, client: aiohttp.ClientSession) -> None:
    write_greeter(site.plugins, says="first")
    site.configure(plugins=enabled("greeter"))
    answers: list[object] = []
    async with serve_process(site.config_file) as served:

        async def ask_until(word: str) -> None:
            while not answers or answers[-1] != word:
                answers.append(await says(client, served))

        answers.append(await says(client, served))
        write_greeter(site.plugins, says="second")
        asking = [asyncio.create_task(ask_until("second")) for _ in range(4)]
        served.send(signal.SIGHUP)
        async with asyncio.timeout(60):
            await asyncio.gather(*asking)
    assert set(answers) == {"first", "second"}
