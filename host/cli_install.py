"""`jackfield plugins install|upgrade|remove|verify|lock|search`: arguments only, so that help is instant."""

import sys
from pathlib import Path

import click

from host.cli_options import CONFIG_OPTION

SHA256_OPTION = click.option("--sha256", default="", help="What the archive's SHA-256 has to be; a URL needs it.")
SOURCE_OPTION = click.option("--source", default="", help="The registry: a source's id or name, a URL, or a file.")
YES_OPTION = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("what")
@CONFIG_OPTION
@SHA256_OPTION
@SOURCE_OPTION
@click.option("--enable", is_flag=True, help="Also enable it.")
@YES_OPTION
def install(what: str, config_path: str, sha256: str, source: str, enable: bool, yes: bool) -> None:
    """Install a plugin from WHAT: the PATH or URL of a zip file or wheel, or ID[@VERSION] from a registry.

    Shows what it is and wants before it asks. Nothing of it runs until it is enabled.
    """
    from host.installing import Choices, install_plugin

    choices = Choices(sha256=sha256, source=source, enable=enable, yes=yes)
    sys.exit(install_plugin(Path(config_path), what, choices))


@click.command()
@click.argument("plugin_id")
@click.argument("what", required=False, default="")
@CONFIG_OPTION
@SHA256_OPTION
@SOURCE_OPTION
@YES_OPTION
def upgrade(plugin_id: str, what: str, config_path: str, sha256: str, source: str, yes: bool) -> None:
    """Replace PLUGIN_ID by WHAT (PATH, URL or ID@VERSION), or by what its registry offers now.

    Shows what changes before it asks. A running proxy upgrades without losing a request; when the new version does not
    start, the old one is put back.
    """
    from host.installing import Choices, upgrade_plugin

    choices = Choices(sha256=sha256, source=source, yes=yes)
    sys.exit(upgrade_plugin(Path(config_path), plugin_id, what, choices))


@click.command()
@click.argument("plugin_id")
@CONFIG_OPTION
@click.option("--forget/--keep", default=None, help="Also remove its sections of the configuration, or do not ask.")
@YES_OPTION
def remove(plugin_id: str, config_path: str, forget: bool | None, yes: bool) -> None:
    """Disable PLUGIN_ID, let it finish its calls, and delete what was installed."""
    from host.installed import remove_plugin

    sys.exit(remove_plugin(Path(config_path), plugin_id, yes=yes, forget=forget))


@click.command()
@click.argument("plugin_id", required=False, default="")
@CONFIG_OPTION
def verify(plugin_id: str, config_path: str) -> None:
    """Compare the files of installed plugins (or of PLUGIN_ID) with what was installed."""
    from host.installed import verify_plugins

    sys.exit(verify_plugins(Path(config_path), plugin_id))


@click.command()
@click.argument("plugin_id")
@CONFIG_OPTION
@YES_OPTION
def lock(plugin_id: str, config_path: str, yes: bool) -> None:
    """Accept the files of PLUGIN_ID as they are: it starts only with these from now on."""
    from host.installed import lock_plugin

    sys.exit(lock_plugin(Path(config_path), plugin_id, yes=yes))


@click.command()
@click.argument("text", required=False, default="")
@CONFIG_OPTION
@SOURCE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def search(text: str, config_path: str, source: str, as_json: bool) -> None:
    """List the plugins in the registries of `plugins.store-sources` (or --source) that match TEXT."""
    from host.installed import search_plugins

    sys.exit(search_plugins(Path(config_path), text, source=source, as_json=as_json))


COMMANDS = (install, upgrade, remove, verify, lock, search)
