"""One operator's place: the configuration, the plugins folder and the lock beside it, the registries it names."""

from dataclasses import dataclass
from pathlib import Path

from host.config.model import Config, config_path
from host.config.values import seconds
from host.install.download import DownloadSettings
from host.install.lock import LockEntry, read_lock
from host.install.registry import Source, sources_of
from host.runtime.plan import data_dir_of


class Refused(Exception):
    """The command does nothing, or no more; the message says why."""


@dataclass(frozen=True, slots=True)
class Site:
    """One operator's configuration and what lies beside it."""

    file: Path
    config: Config

    @property
    def directory(self) -> Path:
        """Where configuration and lock lie."""
        return Path(self.config.directory)

    @property
    def plugins_dir(self) -> Path:
        return Path(config_path(self.config, self.config.plugins.dir.strip() or "plugins"))

    def entry(self, plugin_id: str) -> LockEntry:
        """What is installed under this id. Raises Refused."""
        entry = read_lock(self.directory).plugins.get(plugin_id)
        if entry is None:
            known = ", ".join(sorted(read_lock(self.directory).plugins)) or "none"
            raise Refused(f"{plugin_id} was not installed by `jackfield plugins install`; installed are: {known}")
        return entry

    def data_dir(self, plugin_id: str) -> Path:
        """What the plugin itself stores; not part of what is installed."""
        return data_dir_of(self.config, plugin_id)

    def settings(self, *, total_timeout_s: float = 600.0) -> DownloadSettings:
        """How to reach the network."""
        ca_file = self.config.upstream_ca_file
        return DownloadSettings(
            proxy_url=self.config.proxy_url or None,
            extra_ca_file=config_path(self.config, ca_file) if ca_file else None,
            connect_timeout_s=seconds(self.config.timeouts.connect),
            total_timeout_s=total_timeout_s,
        )

    def sources(self, only: str = "") -> tuple[Source, ...]:
        """The registries of the configuration; with `only`, the one of them it means, or that URL or file itself."""
        configured = sources_of(
            text if "://" in text else config_path(self.config, text)
            for text in self.config.plugins.store_sources
            if text.strip()
        )
        if not only:
            return configured
        named = tuple(source for source in configured if source.fits(only))
        return named or sources_of([only if "://" in only else str(Path(only).absolute())])
