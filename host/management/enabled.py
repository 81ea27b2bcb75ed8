"""Which plugins were enabled by somebody with access to this machine: only those may be enabled again over HTTP.

The record lies beside the plugins' data directories, where neither a plugin nor an HTTP request can write. A plugin
enters it when a configuration that enables it is applied, whoever wrote the file, or by `jackfield plugins enable`;
over HTTP a plugin is enabled only if it is in the record already, so HTTP can never put one there.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from host.config.edit import write_atomically
from host.config.model import Config, config_path

log = structlog.get_logger("host.management.enabled")

MayEnable = Callable[[str], str | None]
"""`may_enable(plugin_id)`: why this plugin must not be enabled over HTTP; None when it may."""

_NAME: Final = ".enabled.json"
"""No plugin id starts with a dot."""


class EnabledRecord:
    """The ids of plugins that were enabled locally, on disk. A disk that refuses is reported and allows nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, config: Config) -> "EnabledRecord":
        """The record that belongs to a configuration."""
        return cls(Path(config_path(config, "plugin-data")) / _NAME)

    def __contains__(self, plugin_id: str) -> bool:
        return plugin_id in self.read()

    def read(self) -> frozenset[str]:
        """Read anew each time: the command line writes it as well."""
        try:
            return frozenset(msgspec.json.decode(self._path.read_bytes(), type=list[str]))
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("plugin.record_unreadable", path=str(self._path), reason=str(error))
            return frozenset()

    def note(self, plugin_ids: Iterable[str]) -> None:
        """These are enabled by somebody who may."""
        known = self.read()
        self._write(known, known | frozenset(plugin_ids))

    def forget(self, plugin_id: str) -> None:
        """The plugin was removed: another one with its id is another one."""
        known = self.read()
        self._write(known, known - {plugin_id})

    def _write(self, before: frozenset[str], after: frozenset[str]) -> None:
        if after == before:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(os.fspath(self._path), msgspec.json.encode(sorted(after)).decode())
        except OSError as error:
            log.warning("plugin.record_unwritable", path=str(self._path), reason=str(error))


def enabled_plugins(config: Config) -> frozenset[str]:
    """The ids that a configuration enables."""
    return frozenset(plugin_id for plugin_id, section in config.plugins.configs.items() if section.enabled)


def locally_enabled(record: EnabledRecord) -> MayEnable:
    """Only what was enabled locally before."""

    def may_enable(plugin_id: str) -> str | None:
        if plugin_id in record:
            return None
        return f"it was never enabled on this machine; run `jackfield plugins enable {plugin_id}` there first"

    return may_enable


def any_of(*rules: MayEnable) -> MayEnable:
    """What one of the rules allows; otherwise the reason of the first."""

    def may_enable(plugin_id: str) -> str | None:
        reasons = [rule(plugin_id) for rule in rules]
        return None if None in reasons else next(iter(reasons), None)

    return may_enable
