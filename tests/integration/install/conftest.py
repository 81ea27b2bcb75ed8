"""A site with a configuration, and a web server on loopback that publishes archives and registries."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.integration.serve.conftest import Site


@dataclass(slots=True)
class Shelf:
    """What the server answers, by path; `asked` are the paths that were asked for, in order."""

    url: str
    content: dict[str, bytes | int | str] = field(default_factory=dict)
    """A body, a status, or where to redirect to."""
    redirect_status: int = 302
    asked: list[str] = field(default_factory=list)
    user_agents: set[str] = field(default_factory=set)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self.user_agents.add(request.headers.get("User-Agent", ""))
        found = self.content.get(request.path)
        if isinstance(found, bytes):
            return web.Response(body=found)
        if isinstance(found, str):
            return web.Response(status=self.redirect_status, headers={"Location": found})
        return web.Response(status=found or 404)


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    made = Shelf("")
    app = web.Application()
    app.router.add_get("/{path:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
def site() -> Iterator[Site]:
    # Short, because the control socket's path has a limit.
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        site = Site(Path(made))
        site.configure()
        yield site
