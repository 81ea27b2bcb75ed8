"""A shadow in a real proxy: it gets copies, its answers are counted, and clients never notice it."""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import pytest

from host.runtime.states import StateMachine
from host.shadow.run import Shadows
from host.shadow.shadow import Shadow
from tests.integration.serve.conftest import CHAT, Site, provider
from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import run_command, running_proxy, runtime_dir

ROUTER = """
import asyncio, os, signal, time
from pluginapi import *


class Fork(Plugin):
    async def plugin_register(self, request):
        self.seen = list(request.permissions)

    async def model_route(self, request, ctx):
        {route}


if __name__ == "__main__":
    serve(Fork)
"""
SERVES = 'return ModelRouteResponse(target_kind="provider", target="openai-compatible-acme", target_model="m1")'
MANIFEST = 'id = "fork"\nversion = "{version}"\nentry = "fork:Fork"\npermissions = ["kv", "http"]\n'


def write_version(folder: Any, version: str, route: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plugin.toml").write_text(MANIFEST.format(version=version))
    (folder / "fork.py").write_text(ROUTER.format(route=route))


def configure(site: Site, upstream: FakeUpstream, **shadow: Any) -> None:
    policy = {"permissions": ["kv", "http"], "shadow": {"dir": "next", **shadow}}
    site.configure(
        openai_compatibility=provider(upstream, "m1", "m2"),
        plugins={"enabled": True, "configs": {"fork": {"enabled": True}}, "policy": {"fork": policy}},
    )


@pytest.fixture(autouse=True)
def news(site: Site, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set whenever something changes that a shadow's status shows."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir(site.config_file))
    news = asyncio.Event()
    for owner, name in ((Shadow, "_count"), (StateMachine, "move"), (Shadows, "_bring"), (Shadows, "_end")):
        monkeypatch.setattr(owner, name, _noted(getattr(owner, name), news))
    return news


def _noted(inner: Callable[..., Any], news: asyncio.Event) -> Callable[..., Any]:
    async def noted_async(*args: Any, **kwargs: Any) -> Any:
        result = await inner(*args, **kwargs)
        news.set()
        return result

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        news.set()
        return result

    return noted_async if inspect.iscoroutinefunction(inner) else noted


class Stage:
    """A proxy in this loop, its clients, and its list of plugins."""

    def __init__(self, running: Any, client: aiohttp.ClientSession, news: asyncio.Event) -> None:
        self._running, self._client, self._news = running, client, news

    async def ask(self, model: str = "m1") -> tuple[int, Mapping[str, Any]]:
        async with self._client.post(
            f"{self._running.url}/v1/chat/completions", json={**CHAT, "model": model}
        ) as response:
            return response.status, await response.json()

    def shadow(self) -> Any:
        row = self._running.proxy.registry.status("fork")
        return row.shadow if row is not None else None

    async def until(self, reached: Callable[[Any], bool], *, gone: bool = False) -> Any:
        """The shadow's status, as soon as it is like this, or there is none."""
        async with asyncio.timeout(60):
            while not (gone if (found := self.shadow()) is None else reached(found)):
                self._news.clear()
                await self._news.wait()
        return found


async def test_what_another_version_decides_is_compared_and_reaches_nobody(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream, news: asyncio.Event
) -> None:
    write_version(site.plugins / "fork", "1.0.0", SERVES)
    other = f'if request.requested_model == "m2":\n            {SERVES.replace("m1", "m2")}\n        {SERVES}'
    write_version(site.directory / "next", "2.0.0", other)
    configure(site, upstream)
    async with running_proxy(site.config_file.read_text(), directory=site.directory) as running:
        stage = Stage(running, client, news)
        await stage.until(lambda shadow: shadow.state == "ready")
        for model in ("m1", "m2", "m1"):
            assert (await stage.ask(model))[0] == 200
        shadow = await stage.until(lambda shadow: shadow.equal + shadow.different == 3)
        assert [recorded.model for recorded in upstream.requests] == ["m1"] * 3
        assert (shadow.version, shadow.equal, shadow.different, shadow.error, shadow.timeout) == ("2.0.0", 2, 1, 0, 0)
        assert shadow.methods == {"model.route": {"equal": 2, "different": 1}}
        (example,) = shadow.examples
        assert [(it.at, it.serving, it.shadow) for it in example.differences] == [
            ("/answer/target_model", '"m1"', '"m2"')
        ]
        listed = await run_command(site.config_file, "plugins", "list")
        assert "shadow 2.0.0 is ready: 2 equal, 1 different, 0 errors, 0 timeouts, 0 dropped" in listed.stdout
        shown = await run_command(site.config_file, "plugins", "shadow", "fork")
        assert '/answer/target_model: "m1" -> "m2"' in shown.stdout
        row = json.loads((await run_command(site.config_file, "plugins", "shadow", "fork", "--json")).stdout)
        assert (row["different"], row["examples"][0]["request_id"]) == (1, example.request_id)


async def test_a_shadow_that_dies_hangs_and_fails_is_counted_and_clients_never_notice(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream, news: asyncio.Event
) -> None:
    write_version(site.plugins / "fork", "1.0.0", SERVES)
    does = {
        "dies": "os.kill(os.getpid(), signal.SIGKILL)",
        "hangs": "await asyncio.Event().wait()",
        "fails": 'raise PluginError("not mine", http_status=418)',
    }
    route = "".join(
        f'if request.requested_model == "{model}":\n            {code}\n        ' for model, code in does.items()
    )
    write_version(site.directory / "next", "2.0.0", route + SERVES)
    configure(site, upstream)
    async with running_proxy(site.config_file.read_text(), directory=site.directory) as running:
        stage = Stage(running, client, news)
        await stage.until(lambda shadow: shadow.state == "ready")
        assert (await stage.ask("fails"))[0] == 200
        shadow = await stage.until(lambda shadow: shadow.error == 1)
        assert "not mine" in shadow.last_error
        assert (await stage.ask("dies"))[0] == 200
        await stage.until(lambda shadow: shadow.error == 2)
        await stage.until(lambda shadow: shadow.state in ("backoff", "ready"))
        configure(site, upstream, timeout="200ms")  # another one, with counts of its own
        await running.reload()
        await stage.until(lambda shadow: shadow.state == "ready" and shadow.error == 0)
        assert (await stage.ask("hangs"))[0] == 200
        await stage.until(lambda shadow: shadow.timeout == 1)
        assert (await stage.ask("m1"))[0] == 200
        assert running.proxy.registry.status("fork").state == "ready"


async def test_a_shadow_reads_the_store_and_has_no_effect_on_anything(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream, news: asyncio.Event
) -> None:
    write_version(site.plugins / "fork", "1.0.0", f'await ctx.kv.set("k", "v")\n        {SERVES}')
    route = """
        assert await ctx.kv.get("k") == "v"
        assert self.seen == ["kv"], self.seen
        for asked in (ctx.kv.set("k", "w"), ctx.kv.increment("n"), ctx.kv.delete("k"),
                      ctx.http.do("GET", "http://127.0.0.1:1/"), ctx.model.execute("m1", {{}}), ctx.auth.list()):
            try:
                await asked
            except PluginError as error:
                assert error.code == "permission_denied", error
            else:
                raise ValueError("it was done")
        """
    write_version(site.directory / "next", "2.0.0", route.replace("{{}}", "{}") + SERVES)
    configure(site, upstream)
    async with running_proxy(site.config_file.read_text(), directory=site.directory) as running:
        stage = Stage(running, client, news)
        await stage.until(lambda shadow: shadow.state == "ready")
        assert (await stage.ask())[0] == 200
        shadow = await stage.until(lambda shadow: shadow.equal + shadow.error == 1)
        assert (shadow.equal, shadow.last_error) == (1, "")
        refused = ("host.kv.set", "host.kv.increment", "host.kv.delete", "host.http.do", "host.model.execute")
        assert shadow.refused == {**dict.fromkeys(refused, 1), "host.auth.list": 1}
        assert len(upstream.requests) == 1


async def test_a_shadow_follows_the_configuration_and_its_files(
    site: Site, client: aiohttp.ClientSession, upstream: FakeUpstream, news: asyncio.Event
) -> None:
    write_version(site.plugins / "fork", "1.0.0", SERVES)
    write_version(site.directory / "next", "2.0.0", SERVES)
    configure(site, upstream)
    async with running_proxy(site.config_file.read_text(), directory=site.directory) as running:
        stage = Stage(running, client, news)
        await stage.until(lambda shadow: shadow.state == "ready")
        write_version(site.directory / "next", "3.0.0", SERVES)
        await running.proxy.registry.reload("fork")
        await stage.until(lambda shadow: shadow.version == "3.0.0" and shadow.state == "ready")
        write_version(site.directory / "next", "4.0.0", SERVES)
        (site.directory / "next" / "plugin.toml").write_text('id = "other"\nversion = "1"\nentry = "fork:Fork"\n')
        await running.proxy.registry.reload("fork")
        broken = await stage.until(lambda shadow: shadow.state == "failed")
        assert "holds the plugin other" in broken.reason
        checked = await run_command(site.config_file, "check")
        assert "warning: shadow of fork: " in checked.stdout
        assert "holds the plugin other" in checked.stdout
        assert (await stage.ask())[0] == 200
        off = await run_command(site.config_file, "plugins", "shadow", "fork", "--off")
        assert off.exit_code == 0
        assert await stage.until(lambda shadow: False, gone=True) is None
        assert running.proxy.invoker.copier is None
        on = await run_command(site.config_file, "plugins", "shadow", "fork", str(site.plugins / "fork"))
        assert on.exit_code == 0
        await stage.until(lambda shadow: shadow.state == "ready" and shadow.version == "1.0.0")
