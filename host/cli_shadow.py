"""`jackfield plugins shadow`: another version of a plugin beside the one that serves. Only click at import."""

import sys
from pathlib import Path

import click

from host.cli_options import CONFIG_OPTION


@click.command("shadow")
@click.argument("plugin_id")
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--off", is_flag=True, help="End it: take the folder out of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
@CONFIG_OPTION
def shadow(plugin_id: str, directory: str | None, off: bool, as_json: bool, config_path: str) -> None:
    """Show how another version of a plugin would have decided; with DIRECTORY, begin to copy calls to it."""
    from host.cli_shadows import change_shadow, show_shadow

    if off or directory is not None:
        sys.exit(change_shadow(Path(config_path), plugin_id, directory=None if off else directory))
    sys.exit(show_shadow(Path(config_path), plugin_id, as_json=as_json))
