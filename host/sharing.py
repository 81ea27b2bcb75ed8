"""What several nodes or workers have in common, put together: cooldowns, and who refreshes a token."""

from collections.abc import Callable
from typing import Final

from host.credential_parts import CredentialParts
from host.credentials.refresh_turns import SharedTurns
from host.credentials.shared_cooldowns import SharedCooldowns
from host.pipeline.state import GatewayState
from host.state.store import SharedState
from host.tasks import TaskGroup


class Sharing:
    """One per process that may have others beside it. Made before the shared state is started."""

    def __init__(
        self, shared: SharedState, parts: CredentialParts, state: Callable[[], GatewayState], tasks: TaskGroup
    ) -> None:
        self._state: Final = state
        self.cooldowns: Final = SharedCooldowns(state().pool.book, shared, tasks, accepts=self._lets_rest)
        self.cooldowns.start()
        parts.refresher.turns = SharedTurns(parts.manager, parts.directory, shared)

    def follow(self) -> None:
        """The state is another one."""
        self.cooldowns.follow()

    def _lets_rest(self, credential_id: str, *, forced: bool) -> bool:
        pool = self._state().pool
        credential = pool.by_id.get(credential_id)
        if credential is None or credential.disabled:
            return False
        return forced or pool.policy.cools(credential)
