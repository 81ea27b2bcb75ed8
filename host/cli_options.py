"""What many commands share: options, and how they tell that a file could not be read or written."""

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


def told(error: Exception) -> str:
    """`FILE: what the system says` of an error of the system, and the message of every other one."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
