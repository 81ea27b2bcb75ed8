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


@click.command("dev")
@click.argument("folder", default=".", metavar="[PATH]", type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Where to listen; a free port by default.")
def dev(folder: Path, port: int) -> None:
    """Run the plugin in the folder PATH in a gateway of its own, and show what it decides, until Ctrl-C.

    The gateway has no keys and no network: its models are echo, inside, and a fake upstream. It prints a curl line that
    works, each request as a tree of decisions, and what the plugin writes. When a file changes the plugin is built, if
    its plugin.toml says how (`[dev] build`), and the new version takes over; one that does not start changes nothing.
    """
    from host.dev.command import develop

    sys.exit(develop(folder, port=port))
