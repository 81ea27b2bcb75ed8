"""Everything about credentials of one proxy, put together: records, files, the plugins that know them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from host.config.model import Config, config_path
from host.credentials.auth_dir import AuthDirectory
from host.credentials.manager import CredentialManager
from host.credentials.records import CredentialChange
from host.credentials.watch import AuthDirWatcher
from host.runtime.auth_plugins import AuthProviders
from host.runtime.bundled import bundled_for, bundled_needed
from host.runtime.handle import PluginSnapshot
from host.runtime.invoke import Invoker
from host.tasks import TaskGroup
from pluginabi.payloads.common import HostSummary

log = structlog.get_logger("host.credentials")


class CredentialParts:
    """`rebuild` makes the next gateway state; `reapply` makes plugins match again, for a file that needs one more."""

    def __init__(
        self,
        config: Config,
        *,
        invoker: Invoker,
        tasks: TaskGroup,
        snapshot: Callable[[], PluginSnapshot],
        rebuild: Callable[[], None],
        reapply: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.manager: Final = CredentialManager()
        self.manager.apply_config(config)
        self.manager.on_change = self._changed
        self.plugins: Final = AuthProviders(invoker, snapshot=snapshot, host=lambda: host_summary(self._config))
        self.directory: Final = AuthDirectory(self.manager, self.plugins, config)
        self.watcher: Final = AuthDirWatcher(self.directory)
        self._config = config
        self._tasks: Final = tasks
        self._snapshot: Final = snapshot
        self._rebuild: Final = rebuild
        self._reapply: Final = reapply
        self._parsers: object = None
        """Who parsed the files; None: nobody yet."""
        self._settles_soon = False
        self._follows = False

    def needed(self, config: Config) -> frozenset[str]:
        """The bundled plugins that the configuration or a credential file needs."""
        return bundled_needed(config) | bundled_for(self.directory.providers())

    async def start(self) -> None:
        """Begin to watch the files; returns when a change is seen."""
        self._tasks.start(self.watcher.run(), name="credentials:watch")
        self._tasks.start(self.watcher.retry_waiting(), name="credentials:waiting")
        await self.watcher.tried.wait()

    async def open(self) -> None:
        """Read the files, so that it is known which plugins they need. Raises NotADirectoryError, OSError."""
        await self.directory.scan()

    async def follow(self, config: Config) -> bool:
        """Take a configuration over, after the plugins have; whether they have to be applied again for new files."""
        self._follows = True
        try:
            before = self.needed(config)
            self._config = config
            self.manager.apply_config(config)
            change = await self.directory.apply_config(config)
            if self.plugins.signature() != self._parsers:
                change = await self._load()
            return bool(change) and not self.needed(config) <= before
        finally:
            self._follows = False

    def plugins_changed(self) -> None:
        """The snapshot of plugins is another one: files may belong to somebody else now."""
        if not self._follows and self._parsers is not None and self.plugins.signature() != self._parsers:
            self._tasks.start(self._load(), name="credentials:parse")

    async def _load(self) -> CredentialChange:
        self._parsers = self.plugins.signature()
        return await self.directory.load()

    def _changed(self, change: CredentialChange) -> None:
        """Gathers what changes in one turn of the loop; a new token needs no new state at all."""
        if change.routing and not self._settles_soon and not self._follows:
            self._settles_soon = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._settles_soon = False
        running = self._snapshot().plugins.keys()
        if not bundled_for(self.directory.providers()) <= running:
            self._tasks.start(self._start_plugins(), name="credentials:plugins")
        self._rebuild()

    async def _start_plugins(self) -> None:
        """A new file belongs to a bundled plugin that does not run yet."""
        await self._reapply()
        log.info("credential.plugins_started", plugins=sorted(bundled_for(self.directory.providers())))


def host_summary(config: Config) -> HostSummary:
    """What auth plugins may know of the configuration."""
    return HostSummary(
        auth_dir=config_path(config, config.auth_dir),
        proxy_url=config.proxy_url,
        force_model_prefix=config.force_model_prefix,
        excluded_models={name.strip().lower(): found for name, found in config.oauth_excluded_models.items()},
    )
