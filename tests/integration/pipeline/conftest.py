"""A gateway with the bundled providers in this process, in front of a provider on a real port."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, ProviderKey
from host.observe.trace import DecisionTrace
from host.pipeline.execute import Gateway
from host.pipeline.settle import Completed
from host.pipeline.state import build_state
from host.runtime.apply import PluginRegistry
from host.runtime.bundled import BUNDLED_PACKAGE, bundled_dir
from host.runtime.callback_http import HttpCallbacks, http_settings
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers
from host.runtime.invoke import Invoker
from host.runtime.processes import Processes, timings_of
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from host.upstream import UpstreamClient
from tests.support.fake_upstream import FakeUpstream


@dataclass
class Rig:
    """The parts of a proxy below the web layer."""

    gateway: Gateway
    registry: PluginRegistry
    upstream: FakeUpstream
    tasks: TaskGroup
    config: Config
    completed: list[Completed] = field(default_factory=list)

    async def apply(self, config: Config) -> None:
        """Reload."""
        self.config = config
        snapshot = await self.registry.apply(config)
        self.gateway.state = build_state(config, snapshot, previous=self.gateway.state)


def config_for(upstream: FakeUpstream, *, keys: tuple[str, ...] = ("key-a",), **fields: Any) -> Config:
    """Chat, Responses and embeddings at `acme`, and one key each of the native providers."""
    models = [ModelEntry(name="m")]
    return Config(
        openai_compatibility=[
            CompatProvider(
                name="acme",
                base_url=f"{upstream.url}/v1",
                responses=True,
                models=models,
                api_key_entries=[CompatKey(api_key=key) for key in keys],
            )
        ],
        claude_api_key=[ProviderKey(api_key="key-claude", base_url=upstream.url)],
        gemini_api_key=[ProviderKey(api_key="key-gemini", base_url=upstream.url)],
        **fields,
    )


@pytest.fixture
async def rig(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start with `await rig(config)`; stopped at the end."""
    stops: list[Callable[[], Any]] = []

    async def start(config: Config | None = None) -> Rig:
        config = msgspec.structs.replace(config or config_for(upstream), directory=str(tmp_path))
        tasks, client = TaskGroup("test"), UpstreamClient()
        http = HttpCallbacks(client, settings=http_settings(config))
        callbacks = HostCallbacks(http=http, kv=KvCallbacks(MemoryStore()), tasks=tasks)
        invoker = Invoker()
        processes = Processes(callbacks=callbacks, tasks=tasks, timings=lambda: timings_of(config.plugins))
        registry = PluginRegistry(
            carriers=Carriers(callbacks=callbacks, tasks=tasks, process=processes),
            callbacks=callbacks,
            invoker=invoker,
            tasks=tasks,
            bundled_dir=bundled_dir(),
            bundled_package=BUNDLED_PACKAGE,
        )
        completed: list[Completed] = []
        state = build_state(config, await registry.apply(config))
        gateway = Gateway(invoker=invoker, state=state, tasks=tasks, trace=DecisionTrace(), observe=completed.append)
        http.attacher_of = lambda scope: (scope.request.state if scope.request else gateway.state).attacher
        callbacks.models = gateway.models
        stops.extend((client.close, tasks.stop, processes.stop, registry.stop))
        return Rig(gateway, registry, upstream, tasks, config, completed)

    yield start
    async with asyncio.timeout(20):
        for stop in reversed(stops):
            await stop()
