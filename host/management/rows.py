"""One plugin as the management API lists it: its status, its manifest, its calls, its pages."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from host.config.model import Plugins
from host.management.escape import escape_values
from host.observe.metrics import HookStats
from host.runtime.handle import PluginState
from host.runtime.manifest import ConfigField, Manifest
from host.runtime.status import PluginStatus

_RUNNING: Final = (PluginState.READY, PluginState.UNRESPONSIVE)
_OWN_TEXTS: Final = (
    *("name", "version", "reason", "stderr", "logo", "config_fields", "menus", "metadata", "description", "shadow"),
)
"""Members with texts that the plugin chose."""


class Menu(Struct, frozen=True, kw_only=True):
    """A page of a plugin that a user interface may link to; `path` is the full one."""

    path: str
    menu: str
    description: str = ""
    public: bool = True
    """Without the management key."""


def plugin_row(
    status: PluginStatus,
    *,
    manifest: Manifest | None,
    hooks: Mapping[str, HookStats],
    menus: Sequence[Menu],
    plugins: Plugins,
    escape: bool,
) -> dict[str, Any]:
    """The whole row; every member of `status`, whatever it has, and the rest beside them. Lists are never null."""
    registered = status.state in _RUNNING
    fields = [_config_field(item) for item in manifest.config] if manifest is not None else []
    calls = {method: stats for method, stats in hooks.items() if not method.endswith(":items")}
    row: dict[str, Any] = {
        **{name: msgspec.to_builtins(getattr(status, name)) for name in status.__struct_fields__},
        "path": status.directory,
        "configured": status.id in plugins.configs,
        "registered": registered,
        "effective_enabled": registered and (status.origin == "bundled" or (plugins.enabled and status.enabled)),
        "supports_oauth": any(method.startswith("auth.login.") for method in status.capabilities),
        "logo": manifest.logo if manifest is not None else "",
        "description": manifest.description if manifest is not None else "",
        "config_fields": fields,
        "menus": [msgspec.to_builtins(menu) for menu in sorted(menus, key=lambda menu: menu.path)],
        "metadata": _metadata(manifest, fields) if manifest is not None and registered else None,
        "calls": sum(stats.calls for stats in calls.values()),
        "errors": sum(stats.errors for stats in calls.values()),
        "hooks": msgspec.to_builtins(dict(hooks)),
    }
    if escape:
        row |= {name: escape_values(row[name]) for name in _OWN_TEXTS}
    return row


def _config_field(item: ConfigField) -> dict[str, Any]:
    return {
        "name": item.name,
        "type": item.type,
        "enum_values": list(item.values),
        "description": item.description,
        "default": None if item.secret else item.default,
        "secret": item.secret,
        "required": item.required,
    }


def _metadata(manifest: Manifest, fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": manifest.name or manifest.id,
        "version": manifest.version,
        "author": manifest.author,
        "github_repository": manifest.repository,
        "logo": manifest.logo,
        "config_fields": list(fields),
    }
