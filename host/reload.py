"""When to read files again: the configuration when it changes, plugin files under `--watch`, everything on SIGHUP."""

import asyncio
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import structlog
from watchfiles import Change, awatch

from host.config.model import Config, config_path
from host.config.watch import DEBOUNCE_MS, POLL_S, FileWatch
from host.runtime.status import PluginStatus
from host.tasks import TaskGroup

log = structlog.get_logger("host.reload")

IGNORED_PARTS: Final = frozenset({"__pycache__", ".git", "node_modules"})


class Registry(Protocol):
    """Where plugins are reloaded."""

    async def reload(self, plugin_id: str) -> str: ...

    def statuses(self) -> list[PluginStatus]: ...


class Reloadable(Protocol):
    """The proxy, as far as reloading is concerned."""

    @property
    def config_path(self) -> Path: ...

    @property
    def config(self) -> Config: ...

    @property
    def registry(self) -> Registry: ...

    def is_in_force(self, text: str) -> bool:
        """Whether this is the text of the configuration that was applied last, and nothing was refused since."""

    @property
    def has_read(self) -> bool:
        """Whether the last reload found a content."""

    async def reload_config(self) -> bool: ...


class Reloader:
    """Owns the watchers; one reload at a time, and the latest state of the files wins."""

    def __init__(self, proxy: Reloadable, *, watch_plugins: bool, poll_s: float = POLL_S) -> None:
        self._proxy = proxy
        self._watch = FileWatch(proxy.config_path, poll_s=poll_s)
        self._watch_plugins = watch_plugins
        self._tasks = TaskGroup("reload")
        self._stopping = asyncio.Event()
        self._judged: tuple[bytes, int] | None = None
        """Content and time of change (ns) of what was news last: found again, it would only be refused again."""
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> None:
        """Begin to watch; what changes after this has returned is seen."""
        self._tasks.start(self._watch.run(), name="watch-config")
        self._tasks.start(self._watch_config(), name="follow-config")
        if self._watch_plugins:
            self._tasks.start(self._watch_plugin_files(), name="plugins")
        # The system is asked to watch in the first step of each task.
        await self._watch.watching.wait()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop watching; a reload in progress is cancelled."""
        self._stopping.set()
        await self._tasks.stop()

    def trigger(self, *, reload_plugins: bool) -> None:
        """Reload now, in the background."""
        self._tasks.start(self._reload(reload_plugins=reload_plugins), name="signal")

    async def _reload(self, *, reload_plugins: bool) -> None:
        async with self._one_at_a_time:
            await self._proxy.reload_config()
            if not self._proxy.has_read:
                # Judged before it was away: as it was then is how it may come back.
                self._judged = None
            if reload_plugins:
                await self._reload_plugins(status for status in self._proxy.registry.statuses() if status.generation)

    async def _reload_plugins(self, statuses: Iterable[PluginStatus]) -> None:
        for plugin_id in sorted(status.id for status in statuses):
            try:
                outcome = await self._proxy.registry.reload(plugin_id)
            except KeyError:
                continue  # the configuration that was just applied does not want it any more
            log.info("plugin.reload", plugin_id=plugin_id, outcome=outcome)

    async def _watch_config(self) -> None:
        changed = self._watch.maybe_changed
        while True:
            await changed.wait()
            changed.clear()
            if await asyncio.to_thread(self.is_news, self._proxy.config_path):
                # A task of its own: one that fails is reported, and the next change is applied all the same.
                await asyncio.wait([self._tasks.start(self._reload(reload_plugins=False), name="config")])

    def is_news(self, file: Path) -> bool:
        """Whether a change of the file matters: it does not when it was only touched, or is empty while it is saved."""
        try:
            found = file.read_bytes(), file.stat().st_mtime_ns
            text = io.TextIOWrapper(io.BytesIO(found[0]), encoding="utf-8").read()
        except (OSError, UnicodeDecodeError):
            return True  # reading it again says why it cannot be used
        if not text.strip():
            log.warning("config.emptied", path=str(file))
            return False
        if self._proxy.is_in_force(text) or found == self._judged:
            return False
        self._judged = found
        return True

    async def _watch_plugin_files(self) -> None:
        folder = Path(config_path(self._proxy.config, self._proxy.config.plugins.dir))
        folder.mkdir(parents=True, exist_ok=True)

        def is_source(_: Change, path: str) -> bool:
            return not IGNORED_PARTS & set(Path(os.path.relpath(path, folder)).parts)

        async for changes in awatch(folder, watch_filter=is_source, stop_event=self._stopping, debounce=DEBOUNCE_MS):
            async with self._one_at_a_time:
                # A new folder is discovered by applying the configuration again; what ran before is loaded anew.
                ran = [status for status in self._proxy.registry.statuses() if status.generation]
                await self._proxy.reload_config()
                changed = {Path(path) for _, path in changes}
                await self._reload_plugins(
                    status for status in ran if any(path.is_relative_to(status.directory) for path in changed)
                )
