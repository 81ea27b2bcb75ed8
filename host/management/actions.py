"""What can be done to plugins, once for HTTP and for the control socket. `local` is the operator on this machine."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from host.config.load import ConfigError, LoadedConfig
from host.config.model import Config
from host.management.applier import ConfigApplier
from host.management.calls import ManagementError
from host.management.plugin_config import Edit, SecretFields, edit_section, merged_with, read_section, replaced_by
from host.management.rows import Menu, plugin_row
from host.observe.metrics import HookStats, PluginMetrics
from host.runtime.apply import PluginRegistry
from host.runtime.discover import why_missing
from host.runtime.handle import PluginState
from host.runtime.manifest import is_plugin_id
from host.runtime.plugin_log import PluginLogs
from host.runtime.status import PluginStatus

MAX_LOG_LINES: Final = 200
MayEnable = Callable[[str], str | None]
"""`may_enable(plugin_id)`: why HTTP must not enable this plugin; None when it may. Reads files, so it is called in a
thread."""

_UNUSABLE: Final = ("broken", "shadowed")


class PluginActions:
    """Works on the registry and on the configuration file. Raises ManagementError for whatever cannot be done."""

    def __init__(
        self,
        *,
        file: Path,
        config: Callable[[], Config],
        registry: PluginRegistry,
        applier: ConfigApplier,
        metrics: PluginMetrics,
        logs: PluginLogs,
        menus: Callable[[str], Sequence[Menu]],
        may_enable: MayEnable,
    ) -> None:
        self._file = file
        self._config = config
        self._registry = registry
        self._applier = applier
        self._metrics = metrics
        self._logs = logs
        self._menus = menus
        self._may_enable = may_enable
        self._editing = applier.editing

    def listing(self, *, escape: bool) -> dict[str, Any]:
        """Every plugin that was found, runs or is configured, by id; and how the newest configuration fared."""
        config = self._config()
        plugins = config.plugins
        statuses = self._registry.statuses()
        known = {status.id for status in statuses}
        statuses += [
            PluginStatus(id=plugin_id, state="missing", reason=why_missing(config, plugin_id), enabled=section.enabled)
            for plugin_id, section in plugins.configs.items()
            if plugin_id not in known
        ]
        hooks = self._metrics.hooks()
        rows = [self._row(status, hooks.get(status.id, {}), escape=escape) for status in statuses]
        return {
            "plugins_enabled": plugins.enabled,
            "plugins_dir": plugins.dir,
            "config": self._applier.status.shown(),
            "plugins": sorted(rows, key=lambda row: (row["state"] in _UNUSABLE, row["id"])),
        }

    def describe(self, plugin_id: str, *, escape: bool) -> dict[str, Any]:
        """The row of one plugin."""
        rows: list[dict[str, Any]] = self.listing(escape=escape)["plugins"]
        found = next((row for row in rows if row["id"] == plugin_id), None)
        if found is None:
            raise self._unknown(plugin_id)
        return found

    async def config_of(self, plugin_id: str) -> Mapping[str, Any]:
        """The section as it stands in the file, secrets masked; empty for a plugin that is not configured."""
        self._check_id(plugin_id)
        try:
            section = await asyncio.to_thread(read_section, self._file, plugin_id)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise ManagementError(500, "plugin_config_encode_failed", str(error)) from None
        if not section and not self._is_known(plugin_id):
            raise self._unknown(plugin_id)
        return self._secrets(plugin_id, section).masked(section)

    async def change_config(
        self, plugin_id: str, values: Mapping[str, Any], *, replace: bool, local: bool
    ) -> dict[str, Any]:
        """Replace the section, or merge into it, and apply the file."""
        self._check_id(plugin_id)

        def change(section: Any) -> None:
            change_to = replaced_by if replace else merged_with
            change_to(values, self._secrets(plugin_id, section), references=local)(section)

        return await self._change(plugin_id, change, local=local)

    async def set_enabled(self, plugin_id: str, enabled: bool, *, local: bool) -> dict[str, Any]:
        """Write `enabled` and apply the file. Locally, enabling also switches plugins on as a whole."""
        self._check_id(plugin_id)
        source = self._registry.source(plugin_id)
        if source is not None and source.origin == "bundled":
            raise ManagementError(
                409, "plugin_is_bundled", "it runs when its section of the configuration needs it, not by a switch"
            )
        if local and enabled and not self._is_known(plugin_id):
            # Its folder may have come after the newest configuration was applied.
            await self._registry.look()
            if not self._is_known(plugin_id):
                raise self._unknown(plugin_id)

        def change(section: Any) -> None:
            section["enabled"] = enabled

        return await self._change(plugin_id, change, local=local, switch_on=local and enabled)

    async def reload(self, plugin_id: str) -> dict[str, Any]:
        """Load its files anew, beside the old ones; for the first time when it is enabled and they were not there."""
        self._check_id(plugin_id)
        before = self._registry.status(plugin_id)
        try:
            outcome = await self._registry.reload(plugin_id)
        except KeyError:
            raise self._not_running(plugin_id) if self._is_known(plugin_id) else self._unknown(plugin_id) from None
        after = self._registry.status(plugin_id)
        is_new = after is not None and (before is None or before.generation != after.generation)
        renewed = is_new and after is not None and after.state == PluginState.READY
        return {"status": "ok" if renewed else "unchanged", "outcome": outcome, "loaded": renewed}

    async def gone(self, plugin_id: str) -> dict[str, Any]:
        """Wait until nothing of a disabled plugin runs any more, so that its files may be removed."""
        self._check_id(plugin_id)
        return {"gone": await self._registry.gone(plugin_id)}

    async def reset(self, plugin_id: str) -> dict[str, Any]:
        """Start a failed plugin again, its crashes forgotten."""
        self._running(plugin_id)
        try:
            ready = await self._registry.reset(plugin_id)
        except KeyError:
            raise self._not_running(plugin_id) from None
        status = self._registry.status(plugin_id)
        return {
            "status": "ok" if ready else "not_ready",
            "ready": ready,
            "state": status.state if status is not None else "",
            "reason": status.reason if status is not None else "",
        }

    def logs(self, plugin_id: str, *, limit: int) -> dict[str, Any]:
        """What it said last: its log lines, oldest first, and the end of its standard error."""
        self._check_id(plugin_id)
        if not self._is_known(plugin_id):
            raise self._unknown(plugin_id)
        return {
            "id": plugin_id,
            "lines": msgspec.to_builtins(self._logs.latest(plugin_id, limit)),
            "stderr": list(self._registry.stderr_tail(plugin_id)),
        }

    async def _change(self, plugin_id: str, change: Edit, *, local: bool, switch_on: bool = False) -> dict[str, Any]:
        def checked(section: Any) -> None:
            was_enabled = section.get("enabled") is True
            change(section)
            if local or was_enabled or section.get("enabled") is not True:
                return
            if (reason := self._may_enable(plugin_id)) is not None:
                raise ManagementError(403, "not_enabled_locally", reason)

        async with self._editing:
            loaded: LoadedConfig = await asyncio.to_thread(
                edit_section, self._file, plugin_id, checked, switch_on=switch_on
            )
            generation = self._applier.stamp()
        if not local:
            self._applier.submit(loaded, generation)
            return {"status": "ok", "generation": generation}
        applied = await self._applier.apply(loaded, generation)
        status = self._registry.status(plugin_id)
        return {
            "status": "ok",
            "generation": generation,
            "applied": applied,
            "problems": list(self._applier.status.problems),
            "state": status.state if status is not None else "",
            "reason": status.reason if status is not None else "",
        }

    def _row(self, status: PluginStatus, hooks: Mapping[str, HookStats], *, escape: bool) -> dict[str, Any]:
        source = self._registry.source(status.id) if status.state not in _UNUSABLE else None
        return plugin_row(
            status,
            manifest=source.manifest if source is not None else None,
            hooks=hooks,
            menus=self._menus(status.id),
            plugins=self._config().plugins,
            escape=escape,
        )

    def _secrets(self, plugin_id: str, section: Mapping[str, Any]) -> SecretFields:
        source = self._registry.source(plugin_id)
        return SecretFields.of(source.manifest if source is not None else None, section)

    def _check_id(self, plugin_id: str) -> None:
        if not is_plugin_id(plugin_id):
            raise ManagementError(400, "invalid_plugin_id", f"{plugin_id!r} is no plugin id")

    def _is_known(self, plugin_id: str) -> bool:
        return any(status.id == plugin_id for status in self._registry.statuses())

    def _running(self, plugin_id: str) -> PluginStatus:
        self._check_id(plugin_id)
        status = self._registry.status(plugin_id)
        if status is None:
            raise self._unknown(plugin_id)
        if status.state == PluginState.DISCOVERED:
            raise self._not_running(plugin_id)
        return status

    def _unknown(self, plugin_id: str) -> ManagementError:
        return ManagementError(404, "plugin_not_found", f"no plugin {plugin_id!r}")

    def _not_running(self, plugin_id: str) -> ManagementError:
        return ManagementError(409, "plugin_not_running", f"{plugin_id} does not run: it is not enabled")
