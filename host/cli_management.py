"""`jackfield plugins config|reset|logs` and `jackfield management`: parsing of arguments only."""

import sys
from pathlib import Path

import click

from host.cli_options import CONFIG_OPTION


@click.group("config")
def plugins_config() -> None:
    """Show and change a plugin's own section of the configuration."""


@plugins_config.command("get")
@click.argument("plugin_id")
@CONFIG_OPTION
def config_get(plugin_id: str, config_path: str) -> None:
    """Print the section of PLUGIN_ID as JSON, secrets masked."""
    from host.cli_plugin_config import show_config

    sys.exit(show_config(Path(config_path), plugin_id))


@plugins_config.command("set")
@click.argument("plugin_id")
@click.argument("name")
@click.argument("value")
@CONFIG_OPTION
def config_set(plugin_id: str, name: str, value: str, config_path: str) -> None:
    """Set NAME to VALUE in the section of PLUGIN_ID.

    VALUE is read as JSON (5, true, [1, 2], {"env": "NAME"}); what is no JSON is a text.
    """
    from host.cli_plugin_config import set_config

    sys.exit(set_config(Path(config_path), plugin_id, name, value))


@plugins_config.command("unset")
@click.argument("plugin_id")
@click.argument("name")
@CONFIG_OPTION
def config_unset(plugin_id: str, name: str, config_path: str) -> None:
    """Remove NAME from the section of PLUGIN_ID."""
    from host.cli_plugin_config import set_config

    sys.exit(set_config(Path(config_path), plugin_id, name, None))


@click.command("reset")
@click.argument("plugin_id")
@CONFIG_OPTION
def plugins_reset(plugin_id: str, config_path: str) -> None:
    """Start PLUGIN_ID again after it failed, its crashes forgotten."""
    from host.cli_plugin_config import reset_plugin

    sys.exit(reset_plugin(Path(config_path), plugin_id))


@click.command("logs")
@click.argument("plugin_id")
@click.option("--lines", default=100, show_default=True, type=click.IntRange(1, 200), help="How many log lines.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@CONFIG_OPTION
def plugins_logs(plugin_id: str, lines: int, as_json: bool, config_path: str) -> None:
    """What PLUGIN_ID said last, from the running proxy's memory: its log lines and the end of its standard error."""
    from host.cli_plugin_config import show_logs

    sys.exit(show_logs(Path(config_path), plugin_id, lines=lines, as_json=as_json))


@click.group("management")
def management() -> None:
    """The management API."""


@management.command("key")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the key from standard input instead of making one.")
@CONFIG_OPTION
def management_key(from_stdin: bool, config_path: str) -> None:
    """Make a management key, print it once, and write its hash into the configuration file."""
    from host.cli_plugin_config import write_key

    sys.exit(write_key(Path(config_path), sys.stdin.readline().strip() if from_stdin else None))
