"""What several nodes or workers have in common, put together: cooldowns, and who refreshes a token."""

from collections.abc import Callable, Sequence
from typing import Final

from host.credential_parts import CredentialParts
from host.credentials.pool import Tier
from host.credentials.ready import Members
from host.credentials.refresh_turns import SharedTurns
from host.credentials.shared_cooldowns import SharedCooldowns
from host.credentials.shared_cursors import SharedCursors
from host.pipeline.state import GatewayState
from host.state.store import SharedState
from host.tasks import TaskGroup


class Sharing:
    """One per process that may have others beside it. Made before the shared state is started."""

    def __init__(
        self, shared: SharedState, parts: CredentialParts, state: Callable[[], GatewayState], tasks: TaskGroup
    ) -> None:
        self._state: Final = state
        self.cooldowns: Final = SharedCooldowns(
            state().pool.book, shared, tasks, accepts=self._lets_rest, wall_clock=shared.wall_s
        )
        self.cooldowns.start()
        self._members: dict[str, Members] = {}
        self._plans = 0
        self._cursors: Final = SharedCursors(
            state().pool.health.cursors, shared, members_of=self._members_of, wall_clock=shared.wall_s
        )
        self._cursors.start(tasks)
        parts.refresher.turns = SharedTurns(parts.manager, parts.directory, shared)

    def follow(self) -> None:
        """The state is another one."""
        self.cooldowns.follow()
        self._members, self._plans = {}, 0

    def _members_of(self, cursor: str) -> Members | None:
        """Over whom a cursor goes; None before the first request for its model."""
        plans = self._state().plans.values()
        if cursor not in self._members and self._plans != len(plans):
            self._plans, self._members = len(plans), {}
            for plan in plans:
                self._note(plan.cursor, plan.tiers)
                self._note(f"{plan.cursor}#websockets", plan.websocket_tiers)
        return self._members.get(cursor)

    def _note(self, cursor: str, tiers: Sequence[Tier]) -> None:
        for number, tier in enumerate(tiers):
            self._members.setdefault(f"{cursor}#{number}" if number else cursor, tier.ready.members)

    def _lets_rest(self, credential_id: str, *, forced: bool) -> bool:
        pool = self._state().pool
        credential = pool.by_id.get(credential_id)
        if credential is None or credential.disabled:
            return False
        return forced or pool.policy.cools(credential)
