"""`jackfield login`: parsing of arguments only."""

import sys
from pathlib import Path

import click

from host.cli_options import CONFIG_OPTION


@click.command()
@click.argument("provider", required=False)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option(
    "--callback-port",
    default=0,
    show_default="a free one",
    type=click.IntRange(0, 65535),
    help="Where the browser comes back to on this machine, if the provider insists on a port.",
)
@click.option("--plugin", "plugin_id", default="", metavar="ID", help="Start only this plugin for the login.")
@CONFIG_OPTION
def login(provider: str | None, no_browser: bool, callback_port: int, plugin_id: str, config_path: str) -> None:
    """Log in to PROVIDER through its plugin and store the credentials in `auth-dir`.

    A running proxy uses them at once. Without PROVIDER: who can be logged in to.
    """
    from host.cli_login_flow import log_in

    sys.exit(
        log_in(
            Path(config_path),
            provider or "",
            open_browser=not no_browser,
            callback_port=callback_port,
            plugin_id=plugin_id,
        )
    )
