"""What surrounds the credential pool of one proxy: models of single credentials, cooldowns that are kept."""

from collections.abc import Callable
from typing import Final

from host.config.model import Config
from host.credential_parts import host_summary
from host.pipeline.auth_models import Amend, AuthModels
from host.pipeline.cooldowns import Cooldowns
from host.pipeline.state import GatewayState
from host.runtime.invoke import Invoker
from host.state.bindings import SharedBindings
from host.state.store import SharedState
from host.tasks import TaskGroup
from host.worker import Worker


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
    ) -> None:
        first = state()
        is_shared = bool(first.config.state.url or worker.state_url)
        tasks = self._tasks = TaskGroup("pool")
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
        # Of several workers one writes the files; nodes on a server of the operator's find everything there.
        keeps_files = worker.number == 1 and not first.config.state.url
        self._cooldowns: Final = Cooldowns(state, keeps_files=keeps_files, tasks=tasks)

    def swapped(self, state: GatewayState) -> None:
        """`state` is the present one."""
        self._models.follow(state)

    async def follow(self, config: Config) -> None:
        """`config` is the present one, and so are the credentials."""
        await self._cooldowns.follow(config)

    async def stop(self) -> None:
        """Write what is left and end what runs."""
        await self._cooldowns.stop()
        await self._tasks.stop()
