"""A proxy with hostile plugins, a victim beside them, and things worth stealing."""

import asyncio
import ctypes
import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from host.app import Proxy
from host.config.load import load_config
from host.control import socket_path
from host.runtime.status import PluginStatus
from tests.support.proxy import RunningProxy

WAIT_S: Final = 60.0
HERE: Final = Path(__file__).resolve().parent
SECRET: Final = b"sk-host-memory-secret"
CLIENT_KEY: Final = "client-key-of-somebody"
_EVERYTHING: Final = ["http", "model", "kv", "auth.read", "auth.write", "client_credentials", "credential_secrets"]
_MANIFEST: Final = """\
id = "{plugin_id}"
version = "1.0.0"
command = ["{{python}}", "-S", "plugin.py", "{plugin_id}"]
transport = "{transport}"
permissions = {permissions}
http_hosts = {hosts}
[inputs]
"request.intercept_before" = ["body"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """One plugin: what it wishes for and what it gets."""

    plugin_id: str
    wishes: Sequence[str] = ()
    granted: Sequence[str] = ()
    hosts: Sequence[str] = ()
    transport: str = "stdio"


PLUGINS: Final = (
    # Wishes for everything and is granted HTTP to one host.
    Hostile(plugin_id="hostile", wishes=_EVERYTHING, granted=["http"], hosts=["api.example.com"]),
    # Wishes for HTTP, and is granted more than that; executes a provider of its own.
    Hostile(plugin_id="thief", wishes=["http"], granted=["http", "kv"], hosts=["*"]),
    # Names no host, and is given none.
    Hostile(plugin_id="caller", wishes=["http"], granted=["http"]),
    # Have the network, over stdio and over a socket of their own.
    Hostile(plugin_id="netter", wishes=["network"], granted=["network"]),
    Hostile(plugin_id="server", wishes=["network"], granted=["network"], transport="unix"),
    # Breaks the protocol, which ends it.
    Hostile(plugin_id="forger", wishes=["kv"], granted=["kv"]),
    Hostile(plugin_id="victim", wishes=["kv"], granted=["kv"], transport="unix"),
)


@dataclass(slots=True)
class Upstreams:
    """Two servers: the first redirects to the second. Both write down the secrets they were sent."""

    first: str = ""
    second: str = ""
    secrets: dict[str, list[str]] = field(default_factory=lambda: {"first": [], "second": []})


@dataclass(slots=True)
class Stage:
    """Everything the attacks need to know, and the ways to look at what came of them."""

    running: RunningProxy
    directory: Path
    upstreams: Upstreams
    client: aiohttp.ClientSession
    abstract: str
    memory: Any = field(default_factory=lambda: ctypes.create_string_buffer(SECRET))

    @property
    def memory_address(self) -> int:
        return ctypes.addressof(self.memory)

    @property
    def port(self) -> int:
        return int(self.running.url.rpartition(":")[2])

    @property
    def control_path(self) -> str:
        return str(socket_path(self.running.config_file))

    @property
    def config_file(self) -> str:
        return str(self.running.config_file)

    def status(self, plugin_id: str) -> PluginStatus:
        found = self.running.proxy.registry.status(plugin_id)
        assert found is not None
        return found

    def handle_of(self, provider: str) -> str:
        """The handle that plugins get of a provider's credential."""
        pool = self.running.proxy.gateway.state.pool
        return next(found.handle for found in pool.credentials if found.provider == provider)

    def victims_socket(self) -> str:
        """Where the victim serves, found by its process: the name is random."""
        places = [Path(base) for base in {tempfile.gettempdir(), "/tmp"}]
        inside = {str(path) for place in places for path in place.glob("jf-*/s")}
        named = Path("/proc/net/unix").read_text().split()
        return next(path for path in sorted(inside) if path in named)

    async def attack(self, plugin_id: str, name: str, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the plugin says came of it; `{"died": …}` when it could not say anything any more."""
        order = {"model": "nobody-serves-it", "messages": [], "plugin": plugin_id, "attack": name, "args": args}
        headers = {"authorization": f"Bearer {CLIENT_KEY}"}
        url = f"{self.running.url}/v1/chat/completions"
        async with self.client.post(url, json=order, headers=headers) as response:
            text = await response.text()
        found = json.loads(text) if text.startswith("{") else {}
        if response.status == 200 and ("got" in found or "refused" in found):
            return dict(found)
        return {"died": found.get("error", {}).get("code") or str(response.status)}


@asynccontextmanager
async def hostile_stage(confinement: str = "auto") -> AsyncIterator[Stage]:
    """All of it, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="jf-") as name:
        directory = Path(name)
        for plugin in PLUGINS:
            _install(directory, plugin)
        (directory / "auths").mkdir(mode=0o700)
        (directory / "auths" / "account.json").write_text('{"type": "x", "access_token": "sk-account"}')
        (directory / "plugins" / "hostile" / "link").symlink_to(directory / "config.yaml")
        async with _upstreams() as upstreams, aiohttp.ClientSession() as client:
            abstract = socket.socket(socket.AF_UNIX)
            abstract.bind(b"\0jackfield-hostile-%d" % os.getpid())
            abstract.listen(4)
            with abstract:
                async with _proxy(directory, _config(upstreams, confinement)) as running:
                    yield Stage(running, directory, upstreams, client, f"\0jackfield-hostile-{os.getpid()}")


@asynccontextmanager
async def _proxy(directory: Path, config: Mapping[str, Any]) -> AsyncIterator[RunningProxy]:
    """Seven plugins take their time to start and to stop on a busy machine."""
    file = directory / "config.yaml"
    file.write_text(json.dumps(config))
    proxy = Proxy(load_config(file), config_path=file, watch=False)
    try:
        async with asyncio.timeout(WAIT_S):
            await proxy.start()
        states = {plugin.plugin_id: proxy.registry.status(plugin.plugin_id) for plugin in PLUGINS}
        assert {
            name: status.state for name, status in states.items() if status is not None and status.state != "ready"
        } == {}
        yield RunningProxy(proxy.url, proxy, file)
    finally:
        async with asyncio.timeout(WAIT_S):
            await proxy.stop()


def _install(directory: Path, plugin: Hostile) -> None:
    folder = directory / "plugins" / plugin.plugin_id
    folder.mkdir(parents=True)
    for name in ("plugin.py", "attacks.py"):
        shutil.copy(HERE / name, folder / name)
    text = _MANIFEST.format(
        plugin_id=plugin.plugin_id,
        transport=plugin.transport,
        permissions=json.dumps(list(plugin.wishes)),
        hosts=json.dumps(list(plugin.hosts)),
    )
    (folder / "plugin.toml").write_text(text)


def _config(upstreams: Upstreams, confinement: str) -> dict[str, Any]:
    def provider(name: str, url: str) -> dict[str, Any]:
        return {
            "name": name,
            "base-url": url,
            "api-key-entries": [{"api-key": f"sk-{name}"}],
            "models": [{"name": "m"}],
        }

    return {
        "port": 0,
        "api-keys": [CLIENT_KEY],
        "remote-management": {"secret-key": "a-management-key"},
        "openai-compatibility": [provider("acme", upstreams.second), provider("evil", upstreams.first)],
        "plugins": {
            "enabled": True,
            "hello-timeout": "30s",
            "configs": {plugin.plugin_id: {"enabled": True} for plugin in PLUGINS},
            "policy": {
                plugin.plugin_id: {
                    "permissions": list(plugin.granted),
                    "confinement": confinement,
                    "timeouts": {"request.intercept_before": "30s"},
                }
                for plugin in PLUGINS
            },
        },
    }


@asynccontextmanager
async def _upstreams() -> AsyncIterator[Upstreams]:
    found = Upstreams()

    async def first(request: web.BaseRequest) -> web.Response:
        found.secrets["first"].append(request.headers.get("authorization", ""))
        return web.Response(status=302, headers={"location": f"{found.second}/taken"})

    async def second(request: web.BaseRequest) -> web.Response:
        found.secrets["second"].append(request.headers.get("authorization", ""))
        return web.Response(text="taken")

    runners = []
    for name, handler in (("first", first), ("second", second)):
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        setattr(found, name, f"http://127.0.0.1:{runner.addresses[0][1]}")
        runners.append(runner)
    try:
        yield found
    finally:
        await asyncio.gather(*(runner.cleanup() for runner in runners))
