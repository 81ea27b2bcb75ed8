"""Everything about credentials of one proxy, put together: records, files, the plugins that know them."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import structlog

from host.config.model import Config, config_path
from host.credentials import files
from host.credentials.auth_dir import AuthDirectory
from host.credentials.editor import CredentialEditor, CredentialError, SetExcluded
from host.credentials.listing import disk_listing, entry_for_index, listing, masked
from host.credentials.login import LoginSessions
from host.credentials.manager import CredentialManager
from host.credentials.records import CredentialChange
from host.credentials.refresh import WORKERS, Refresher
from host.credentials.renew import Renewer
from host.credentials.watch import AuthDirWatcher
from host.runtime.auth_plugins import PARSE, REFRESH, AuthProviders
from host.runtime.bundled import bundled_for, bundled_needed
from host.runtime.callback_auth import AuthRefused
from host.runtime.handle import PluginSnapshot
from host.runtime.host_summary import host_summary
from host.runtime.invoke import Invoker
from host.tasks import TaskGroup

log = structlog.get_logger("host.credentials")


class PluginAuthFiles:
    """`AuthFiles` over the manager: what `host.auth.*` sees. Before there are records the files alone are listed."""

    def __init__(self, manager: CredentialManager, directory: AuthDirectory, editor: CredentialEditor) -> None:
        self._manager: Final = manager
        self._directory: Final = directory
        self._editor: Final = editor

    async def list(self) -> Sequence[Mapping[str, Any]]:
        if not self._directory.is_loaded:
            return await asyncio.to_thread(disk_listing, self._directory)
        return await listing(self._manager, self._directory)

    async def read(self, auth_index: str, *, secrets: bool) -> tuple[str, str, Mapping[str, Any]]:
        record = self._manager.by_index(auth_index)
        if record is None and not self._directory.is_loaded:
            raise _not_yet()
        if record is None:
            raise AuthRefused(404, "auth_not_found", f"auth not found for auth_index {auth_index}")
        if not record.path:
            raise AuthRefused(404, "auth_file_not_found", f"auth file path not found for auth_index {auth_index}")
        content = await asyncio.to_thread(files.read, record.path)
        if content is None:
            raise AuthRefused(404, "auth_file_not_found", f"auth file not found for auth_index {auth_index}")
        if content.members is None:
            raise AuthRefused(500, "auth_file_invalid", f"auth file for auth_index {auth_index} {content.problem}")
        return record.file_name, record.path, content.members if secrets else masked(content.members)

    async def runtime(self, auth_index: str) -> Mapping[str, Any]:
        found = await entry_for_index(self._manager, self._directory, auth_index)
        if found is None and not self._directory.is_loaded:
            raise _not_yet()
        if found is None:
            raise AuthRefused(404, "auth_not_found", f"auth runtime info not found for auth_index {auth_index}")
        return found

    async def save(self, name: str, members: Mapping[str, Any]) -> tuple[str, str]:
        try:
            path, _ = await self._editor.save_for_plugin(name, members)
        except CredentialError as error:
            raise AuthRefused(error.http_status, "auth_file_invalid", str(error)) from None
        return os.path.basename(path), path


def _not_yet() -> AuthRefused:
    return AuthRefused(503, "auth_unavailable", "the credential files are still being read")


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
        set_excluded: SetExcluded | None = None,
    ) -> None:
        self.manager: Final = CredentialManager()
        self.manager.apply_config(config)
        self.plugins: Final = AuthProviders(invoker, snapshot=snapshot, host=lambda: host_summary(self._config))
        self.directory: Final = AuthDirectory(self.manager, self.plugins, config)
        self.editor: Final = CredentialEditor(self.manager, self.directory, self.plugins, set_excluded=set_excluded)
        self.renewer: Final = Renewer(self.manager, self.directory, self.plugins)
        self.refresher: Final = Refresher(
            self.manager,
            self.renewer,
            tasks,
            workers=config.auth_auto_refresh_workers if config.auth_auto_refresh_workers > 0 else WORKERS,
            refresh_disabled=config.auth_refresh_disabled,
        )
        self.manager.refresher = self.refresher
        self.logins: Final = LoginSessions(self.plugins, self.editor, tasks)
        self.files: Final = PluginAuthFiles(self.manager, self.directory, self.editor)
        self.watcher: Final = AuthDirWatcher(self.directory)
        self._config = config
        self._tasks: Final = tasks
        self._snapshot: Final = snapshot
        self._rebuild: Final = rebuild
        self._reapply: Final = reapply
        self._parsers: object = None
        """Who parsed the files; None: nobody yet."""
        self._refreshers: object = None
        self._new_providers: set[str] = set()
        """Of the records that changed and were not settled yet."""
        self._settles_soon = False
        self._follows = False
        self._is_closed = False
        self._starting: asyncio.Task[Any] | None = None
        self.manager.on_change = self._changed

    def needed(self, config: Config) -> frozenset[str]:
        """The bundled plugins that the configuration or a credential file needs."""
        return bundled_needed(config) | bundled_for(self.directory.providers())

    async def start(self) -> None:
        """Begin to refresh tokens and to watch the files; returns when a change is seen."""
        self._tasks.start(self.watcher.run(), name="credentials:watch")
        self._tasks.start(self.watcher.poll(), name="credentials:poll")
        self._tasks.start(self.watcher.retry_waiting(), name="credentials:waiting")
        self._tasks.start(self.refresher.run(), name="credentials:refresh")
        self._tasks.start(self.renewer.run(), name="credentials:unwritten")
        await self.watcher.tried.wait()

    async def close(self) -> None:
        """The plugins are about to stop: what changes from now on needs no new state, and starts none of them again."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self.refresher.finish()
        await self.renewer.write_again()

    def problem(self, config: Config) -> str | None:
        """Why a configuration cannot be followed, if so."""
        try:
            files.prepare_directory(config_path(config, config.auth_dir))
        except OSError as error:
            return f"`auth-dir` cannot be used: {error}"
        return None

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
            await self.directory.apply_config(config)
            if self.plugins.signature(PARSE) != self._parsers:
                await self._load()
            self.refresher.refresh_disabled = config.auth_refresh_disabled
            self._follow_refreshers()
            # Not only by this: a file may have come meanwhile.
            return not self.needed(config) <= before
        finally:
            self._follows = False

    def plugins_changed(self) -> None:
        """The snapshot of plugins is another one: files may belong to somebody else now."""
        if self._follows or self._parsers is None or self._is_closed:
            return
        if self.plugins.signature(PARSE) != self._parsers:
            self._tasks.start(self._load(), name="credentials:parse")
        self._follow_refreshers()

    async def _load(self) -> CredentialChange:
        self._parsers = self.plugins.signature(PARSE)
        return await self.directory.load()

    def _follow_refreshers(self) -> None:
        """Another plugin refreshes other credentials: everybody's next refresh is worked out anew."""
        refreshers = self.plugins.signature(REFRESH)
        if refreshers != self._refreshers:
            self._refreshers = refreshers
            self.refresher.schedule_all()

    def _changed(self, change: CredentialChange) -> None:
        """Gathers what changes in one turn of the loop; a new token needs no new state at all."""
        self.refresher.changed(change)
        self._new_providers |= {self.manager.by_id[it].provider for it in change.added | change.changed}
        if change.routing and not self._settles_soon and not self._follows:
            self._settles_soon = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._settles_soon = False
        if self._is_closed:
            return
        needed = bundled_for(self._new_providers)
        self._new_providers.clear()
        if not needed <= self._snapshot().plugins.keys():
            self._starting = self._tasks.start(self._start_plugins(), name="credentials:plugins")
        self._rebuild()

    async def _start_plugins(self) -> None:
        """A new file belongs to a bundled plugin that does not run yet."""
        await self._reapply()
        log.info("credential.plugins_started", plugins=sorted(bundled_for(self.directory.providers())))
