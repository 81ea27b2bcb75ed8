"""What surrounds the credential pool of one proxy: models of single credentials, cooldowns that are kept."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from host.config.model import Config
from host.pipeline.auth_models import Amend, AuthModels
from host.pipeline.cooldowns import Cooldowns
from host.pipeline.executed import unserved
from host.pipeline.state import GatewayState
from host.runtime.host_summary import host_summary
from host.runtime.invoke import Invoker
from host.state.bindings import SharedBindings
from host.state.store import SharedState
from host.tasks import TaskGroup
from host.worker import Worker

log = structlog.get_logger("host.pool")

REFRESH_MODELS_EVERY_S: Final = 3 * 3600.0


class PoolParts:
    """Follows the gateway's states and configurations. `rebuild` makes the next state."""

    def __init__(
        self,
        state: Callable[[], GatewayState],
        *,
        invoker: Invoker,
        shared: SharedState,
        worker: Worker,
        amend: Amend,
        rebuild: Callable[[], None],
        list_models: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`list_models` asks plugins for the models they list for everybody."""
        first = state()
        is_shared = bool(first.config.state.url or worker.state_url)
        tasks = self._tasks = TaskGroup("pool")
        self._state: Final = state
        self._stopped = False
        self._are_plugins_known = False
        self._unserved: frozenset[str] = frozenset()
        """Providers that nobody executes, of which a line was written."""
        if is_shared:
            health = first.pool.health
            health.sessions = SharedBindings(shared.store, "sessions", tasks)
            health.origins = SharedBindings(shared.store, "origins", tasks)
        self._models: Final = AuthModels(
            first,
            invoker=invoker,
            tasks=tasks,
            host=lambda: host_summary(state().config),
            amend=amend,
            rebuild=rebuild,
        )
        self._list_models: Final = list_models
        tasks.start(self._refresh(sleep), name="model-refresh")
        # Of several workers one writes the files; nodes on a server of the operator's find everything there.
        keeps_files = worker.number == 1 and not first.config.state.url
        self._cooldowns: Final = Cooldowns(state, keeps_files=keeps_files, tasks=tasks)

    def swapped(self, state: GatewayState) -> None:
        """`state` is the present one. After `stop` nobody is asked any more: plugins leave one by one."""
        if not self._stopped:
            self._models.follow(state)
            self._tell_unserved(state)

    async def follow(self, config: Config) -> None:
        """`config` is the present one, and so are the credentials and the plugins."""
        self._are_plugins_known = True
        self._tell_unserved(self._state())
        await self._cooldowns.follow(config)

    def _tell_unserved(self, state: GatewayState) -> None:
        """A line for each provider that nobody executes, once: its models are not offered, and nobody would know why.

        None before the plugins of the first configuration have said whom they execute.
        """
        if not self._are_plugins_known:
            return
        groups = [state.groups[it] for it in unserved(state.plugins, state.groups)]
        found = Counter({group.source.provider: 0 for group in groups})
        for group in groups:
            found[group.source.provider] += len(group.members)
        for provider in sorted(found.keys() - self._unserved):
            log.warning("provider.not_executed", provider=provider, credentials=found[provider])
        self._unserved = frozenset(found)

    async def refresh_models(self) -> None:
        """Ask plugins again which models there are, and which of them each credential serves."""
        await self._list_models()
        self._models.refresh()

    async def _refresh(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            await sleep(REFRESH_MODELS_EVERY_S)
            await self.refresh_models()

    async def stop(self) -> None:
        """Write what is left and end what runs."""
        self._stopped = True
        await self._cooldowns.stop()
        await self._tasks.stop()
