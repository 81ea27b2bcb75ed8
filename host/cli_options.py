"""Options that many commands share."""

import click

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    default="config.yaml",
    show_default=True,
    type=click.Path(dir_okay=False),
    envvar="JACKFIELD_CONFIG",
    help="The configuration file.",
)
