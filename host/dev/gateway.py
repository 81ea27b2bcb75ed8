"""The private gateway: its configuration, the fake upstream behind it, and the plugin in front."""

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from host.app import Proxy
from host.config.load import load_config
from host.dev.lines import QUIET
from host.runtime.carriers import attachments
from host.runtime.manifest import Manifest
from host.runtime.status import PluginStatus
from pluginabi.methods import PLUGIN_METHODS

ECHO: Final = "echo"
MODELS: Final = ("dev-model", "dev-claude", "dev-gemini")
"""Served by the fake upstream, in its three protocols, as a provider with keys would serve them."""
_DEBUGGER_DEADLINE: Final = "1h"


class DevGateway:
    """Two proxies in this process, on loopback: the author's, and one that plays the providers (the plugin `echo`)."""

    def __init__(self, base: Path, source: Path, *, port: int) -> None:
        """`base` is an empty directory of ours, `source` the plugin's folder."""
        self._base = base
        self._source = source
        self._port = port
        self._upstream: Proxy | None = None
        self.proxy: Proxy | None = None
        self._plugin_id = ""

    @property
    def url(self) -> str:
        assert self.proxy is not None
        return self.proxy.url

    @property
    def status(self) -> PluginStatus | None:
        """How the plugin is."""
        assert self.proxy is not None
        return self.proxy.registry.status(self._plugin_id)

    def place_of(self, manifest: Manifest) -> Path:
        """Where the gateway finds the plugin."""
        return self._base / "gateway" / "plugins" / manifest.id

    async def start(self, manifest: Manifest) -> None:
        """Come up; the plugin may still have failed to start, see `status`. Raises StartError."""
        self._plugin_id = manifest.id
        token = QUIET.set(True)
        try:
            self._upstream = self._make("upstream", {"plugins": {"configs": {ECHO: {"enabled": True}}}})
            await self._upstream.start()
        finally:
            QUIET.reset(token)
        place = self.place_of(manifest)
        place.parent.mkdir(parents=True)
        place.symlink_to(self._source)
        self.proxy = self._make("gateway", self._config(manifest))
        await self.proxy.start()

    async def stop(self) -> None:
        """Stop both, and the plugin with them."""
        for proxy in (self.proxy, self._upstream):
            if proxy is not None:
                await proxy.stop()

    async def renew(self, manifest: Manifest) -> str:
        """Load the plugin's files anew, beside the old ones; a sentence says what came of it."""
        assert self.proxy is not None
        if self._write("gateway", self._config(manifest)):
            await self.proxy.reload_config()
        return await self.proxy.registry.reload(manifest.id)

    def _make(self, name: str, config: dict[str, Any]) -> Proxy:
        self._write(name, config)
        path = self._base / name / "config.yaml"
        return Proxy(load_config(path), config_path=path, watch=False)

    def _write(self, name: str, config: dict[str, Any]) -> bool:
        """Whether that changed anything. JSON is YAML."""
        path = self._base / name / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.encode(config).decode()
        if path.exists() and path.read_text("utf-8") == text:
            return False
        path.write_text(text, "utf-8")
        return True

    def _config(self, manifest: Manifest) -> dict[str, Any]:
        assert self._upstream is not None
        url = self._upstream.url
        keys = [{"api-key": "dev-key-1"}, {"api-key": "dev-key-2"}]
        names = [[{"name": ECHO, "alias": alias}] for alias in MODELS]
        openai = {"name": "dev", "base-url": f"{url}/v1", "api-key-entries": keys, "models": names[0]}
        section = {"enabled": True, **msgspec.to_builtins(manifest.dev.config)}
        return {
            "port": self._port,
            "openai-compatibility": [openai],
            "claude-api-key": [{"api-key": "dev-key", "base-url": url, "models": names[1]}],
            "gemini-api-key": [{"api-key": "dev-key", "base-url": url, "models": names[2]}],
            "plugins": {
                "enabled": True,
                "configs": {ECHO: {"enabled": True}, manifest.id: section},
                "policy": {manifest.id: _policy(manifest)},
            },
        }


def _policy(manifest: Manifest) -> dict[str, Any]:
    """Everything the plugin wishes for: this gateway is its author's alone."""
    policy: dict[str, Any] = {"permissions": list(manifest.permissions), "environment": list(manifest.environment)}
    if manifest.http_hosts:
        policy["http-hosts"] = list(manifest.http_hosts)
    if manifest.id in attachments(os.environ):
        # A plugin that stands at a breakpoint must not miss its deadlines.
        methods = [name for name in PLUGIN_METHODS if not name.startswith("plugin.")]
        policy["timeouts"] = dict.fromkeys(methods, _DEBUGGER_DEADLINE)
    return policy
