"""A proxy with the OAuth example as a plugin, and the OAuth server it logs in to."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from ruamel.yaml import YAML

from tests.support.example_steps import EXAMPLES
from tests.support.oauth_server import OAuthServer
from tests.support.proxy import RunningProxy, running_proxy

CHAT: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "Hi"}]}


def write_site(directory: Path, server: OAuthServer, *, runtime: str = "process", **config: Any) -> Path:
    """A configuration folder whose provider `acme` is the server's API; returns the file."""
    if not (directory / "plugins").exists():
        shutil.copytree(EXAMPLES / "oauth-login", directory / "plugins" / "oauth-login")
    provider = {"name": "acme", "base-url": f"{server.url}/v1", "disabled": True, "models": [{"name": "m1"}]}
    policy = {"permissions": ["http"], "http-hosts": ["127.0.0.1"], "runtime": runtime}
    document = {
        "port": 0,
        "openai-compatibility": [provider],
        "plugins": {
            "enabled": True,
            "configs": {"oauth-login": server.plugin_config | config},
            "policy": {"oauth-login": policy},
        },
    }
    path = directory / "config.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(document, file)
    return path


@asynccontextmanager
async def proxy_of(directory: Path, server: OAuthServer, **config: Any) -> AsyncIterator[RunningProxy]:
    """The proxy on such a folder."""
    path = write_site(directory, server, **config)
    async with running_proxy(path.read_text(), directory=directory) as running:
        yield running


async def ask(client: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    """Status and body of one chat."""
    async with client.post(f"{url}/v1/chat/completions", json=CHAT) as response:
        return response.status, await response.json(content_type=None)
