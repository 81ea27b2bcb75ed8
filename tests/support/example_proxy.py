"""A proxy with examples dropped into its `plugins/`, as an operator has it."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from pluginabi.methods import PLUGIN_METHODS
from tests.support.example_steps import EXAMPLES
from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy

SHORT_MS = 5_000
PATIENT = {name: "30s" for name, spec in PLUGIN_METHODS.items() if (spec.timeout_ms or SHORT_MS) < SHORT_MS}
"""For hooks whose own deadlines a busy machine misses: a router that is too late would be passed over."""
UNHURRIED = {"hello-timeout": "60s", "ping-unresponsive": "30s", "ping-kill": "60s"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def acme(upstream: FakeUpstream, *models: str, keys: int = 1) -> dict[str, Any]:
    """A section for a provider with some keys (`k1`, `k2`, …), as part of a configuration."""
    entries = [{"api-key": f"k{number}"} for number in range(1, keys + 1)]
    provider = {"name": "acme", "base-url": f"{upstream.url}/v1", "api-key-entries": entries}
    return {"openai-compatibility": [{**provider, "models": [{"name": name} for name in models]}]}


def config_text(configs: dict[str, Any], policy: dict[str, Any] | None = None, **top: Any) -> str:
    """A configuration (JSON is YAML) with these plugin sections, all enabled."""
    sections = {plugin_id: {"enabled": True, **section} for plugin_id, section in configs.items()}
    given = policy or {}
    policies = {
        plugin_id: {**own, "timeouts": {**PATIENT, **own.get("timeouts", {})}}
        for plugin_id, own in ((plugin_id, given.get(plugin_id, {})) for plugin_id in {**configs, **given})
    }
    plugins = {"enabled": True, "configs": sections, "policy": policies, **UNHURRIED}
    return msgspec.json.encode({"port": 0, **top, "plugins": plugins}).decode()


@asynccontextmanager
async def example_proxy(
    folder: Path, configs: dict[str, Any], *, policy: dict[str, Any] | None = None, **top: Any
) -> AsyncIterator[RunningProxy]:
    """A proxy in `folder` with the examples named in `configs` (id -> section) and other top-level keys."""
    for name in configs:
        target = folder / "plugins" / name
        if not target.exists() and (EXAMPLES / name).is_dir():
            shutil.copytree(EXAMPLES / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    async with running_proxy(config_text(configs, policy, **top), directory=folder) as running:
        states = {status.id: status.state for status in running.proxy.registry.statuses() if status.id in configs}
        assert states == dict.fromkeys(configs, "ready"), states
        yield running


async def reconfigured(running: RunningProxy, configs: dict[str, Any], **top: Any) -> None:
    """Another configuration of the same proxy, applied when this returns."""
    running.config_file.write_text(config_text(configs, **top))
    async with asyncio.timeout(60):
        await running.reload()


async def settled() -> None:
    """Until plugins were told how the requests ended whose answers were read."""
    names = (":request.complete:", ":usage.handle:")
    tasks = [task for task in asyncio.all_tasks() if any(name in task.get_name() for name in names)]
    if tasks:
        async with asyncio.timeout(60):
            await asyncio.wait(tasks)
