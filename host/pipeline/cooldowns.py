"""Which cooldowns are kept where, as the configuration says."""

from collections.abc import Callable
from typing import Final

from host.config.model import Config, config_path
from host.credentials.cooldown_files import CooldownFiles
from host.credentials.keeper import CooldownKeeper
from host.credentials.records import Credential
from host.pipeline.state import GatewayState
from host.registry.models import canonical
from host.tasks import TaskGroup


class Cooldowns:
    """Keeps the cooldowns of a gateway over restarts (`save-cooldown-status`)."""

    def __init__(self, state: Callable[[], GatewayState], *, keeps_files: bool, tasks: TaskGroup) -> None:
        """`keeps_files`: of several processes only one writes the files."""
        self._state: Final = state
        self._keeps_files: Final = keeps_files
        self._files: CooldownFiles | None = None
        self._keeper: Final = CooldownKeeper(state().pool.book, usable=self._usable, tasks=tasks, canonical=canonical)

    async def follow(self, config: Config) -> None:
        """Keep them as this configuration wants it, credentials and state being those of it already."""
        directory = config_path(config, config.auth_dir)
        if not (config.save_cooldown_status and self._keeps_files):
            self._files = None
        elif self._files is None or self._files.directory != directory:
            self._files = CooldownFiles(directory)
        await self._keeper.open([] if self._files is None else [self._files])

    async def stop(self) -> None:
        """Write what is left."""
        await self._keeper.stop()

    def _usable(self, credential_id: str) -> Credential | None:
        pool = self._state().pool
        credential = pool.by_id.get(credential_id)
        if credential is None or credential.is_off or not pool.policy.cools(credential):
            return None
        return credential
