"""`jackfield plugins new` and `jackfield plugins dev`: for people who write plugins."""

import sys
from pathlib import Path

import click

from host.scaffold.names import KINDS, LANGUAGE_NAMES


@click.command("new")
@click.argument("folder", metavar="NAME", type=click.Path(path_type=Path))
@click.option(
    "--lang",
    "language",
    default="python",
    show_default=True,
    metavar="LANGUAGE",
    help=f"One of {', '.join(LANGUAGE_NAMES)}.",
)
@click.option(
    "--kind", default="router", show_default=True, metavar="KIND", help=f"What it decides: one of {', '.join(KINDS)}."
)
def new(folder: Path, language: str, kind: str) -> None:
    """Make a plugin that runs: the folder NAME with code, plugin.toml, tests and a README.

    The folder's name is the plugin's id. Nothing that exists is changed.
    """
    from host.scaffold.command import new_plugin

    sys.exit(new_plugin(folder, language=language, kind=kind))
