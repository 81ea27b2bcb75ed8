"""Credential files of a running proxy: dropped in, changed, broken, removed; how their tokens reach the upstream."""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from tests.integration.serve.conftest import CHAT, Site
from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import ServeProcess, serve_process

CLAUDE: dict[str, Any] = {"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
HEADERS = {"X-Org": "o", "X-User": "$X-Client-User"}


def put(site: Site, name: str, **members: Any) -> None:
    """As programs write a file: beside it, then renamed."""
    folder = site.directory / "auths"
    folder.mkdir(exist_ok=True)
    (folder / "draft").write_text(json.dumps(members))
    (folder / "draft").rename(folder / name)


def sent(upstream: FakeUpstream) -> dict[str, str]:
    """The headers of the last request, names in lower case."""
    return {name.lower(): value for name, value in upstream.requests[-1].headers.items()}


async def ask(
    client: aiohttp.ClientSession, served: ServeProcess, path: str, body: Any, headers: Mapping[str, str] | None = None
) -> int:
    async with client.post(f"{served.url}{path}", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_files_are_used_from_the_start_and_follow_every_change(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    put(site, "claude.json", type="claude", access_token="first", base_url=upstream.url, headers=HEADERS)
    (site.directory / "auths" / "bad.json").write_text("{")
    entry = {"name": "acme", "base-url": f"{upstream.url}/v1", "disabled": True, "models": [{"name": "m1"}]}
    site.configure(openai_compatibility=[entry])
    async with serve_process(site.config_file) as served:
        rejected = await served.event("credential.file_rejected")
        assert rejected["path"].endswith("bad.json") and "no JSON object" in rejected["reason"]

        assert await ask(client, served, "/v1/messages", CLAUDE) == 200
        seen = sent(upstream)
        assert (seen["authorization"], seen["x-org"]) == ("Bearer first", "o")
        assert "x-api-key" not in seen and "x-user" not in seen
        assert await ask(client, served, "/v1/messages", CLAUDE | {"stream": True}, {"X-Client-User": "ann"}) == 200
        assert sent(upstream)["x-user"] == "ann"

        lines = len(served.lines)
        put(site, "claude.json", type="claude", api_key="second", base_url=upstream.url)
        await served.event("credential.files_changed", after=lines)
        assert await ask(client, served, "/v1/messages", CLAUDE) == 200
        seen = sent(upstream)
        assert seen["x-api-key"] == "second" and "authorization" not in seen

        lines = len(served.lines)
        (site.directory / "auths" / "claude.json").write_text("")
        await served.event("credential.file_rejected", after=lines, records_kept=1)
        assert await ask(client, served, "/v1/messages", CLAUDE) == 200

        lines = len(served.lines)
        put(site, "compat.json", type="openai-compatible-acme", access_token="third")
        await served.event("credential.files_changed", after=lines, added=1)
        assert await ask(client, served, "/v1/chat/completions", CHAT) == 200
        assert sent(upstream)["authorization"] == "Bearer third"

        lines = len(served.lines)
        (site.directory / "auths" / "claude.json").unlink()
        await served.event("credential.files_changed", after=lines, removed=1)
        assert await ask(client, served, "/v1/messages", CLAUDE) != 200


async def test_the_first_file_of_a_provider_starts_the_plugin_that_serves_it_and_another_directory_is_followed(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with serve_process(site.config_file) as served:
        assert await ask(client, served, "/v1/messages", CLAUDE) != 200
        put(site, "a.json", type="claude", api_key="k", base_url=upstream.url)
        await served.event("credential.plugins_started")
        assert await ask(client, served, "/v1/messages", CLAUDE) == 200

        (site.directory / "elsewhere").mkdir()
        site.configure(auth_dir="elsewhere")
        await served.event("config.applied")
        assert await ask(client, served, "/v1/messages", CLAUDE) != 200
        lines = len(served.lines)
        (site.directory / "auths" / "a.json").rename(site.directory / "elsewhere" / "b.json")
        await served.event("credential.files_changed", after=lines, added=1)
        assert await ask(client, served, "/v1/messages", CLAUDE) == 200
