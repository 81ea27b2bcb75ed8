"""The options of plugins for a configuration file on disk."""

from collections.abc import Iterable
from pathlib import Path

from host.config.load import ConfigError, load_config
from host.config.model import Config, config_path
from host.flags.table import FlagTable, flag_table
from host.runtime.bundled import BUNDLED_PACKAGE, bundled_dir, bundled_needed
from host.runtime.discover import Discovery, discover, installed_entry_points


def collected(config_file: str, *, native: Iterable[str]) -> FlagTable:
    """What the plugins that this file enables bring; nothing, and a warning, when it cannot be used."""
    try:
        config = load_config(config_file).config
    except ConfigError as error:
        return FlagTable({}, (f"options of plugins are unknown: {error}",))
    return flag_table(found(config), config, native=native, needed=bundled_needed)


def found(config: Config) -> Discovery:
    """Which plugins there are."""
    plugins_dir = Path(config_path(config, config.plugins.dir.strip() or "plugins"))
    return discover(bundled_dir(), plugins_dir, installed_entry_points(), bundled_package=BUNDLED_PACKAGE)
