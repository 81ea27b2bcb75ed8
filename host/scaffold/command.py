"""`jackfield plugins new`: makes the folder and says what to do next."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

import click

from host.scaffold.catalogue import LANGUAGES, read_kind
from host.scaffold.compose import CannotCreate, create

EXIT_USAGE: Final = 2


def new_plugin(folder: Path, *, language: str, kind: str) -> int:
    """Make a plugin and print the next three commands; the exit code is 2 when that is impossible."""
    try:
        made = create(folder, language=language, kind=kind)
    except CannotCreate as error:
        click.echo(str(error), err=True)
        return EXIT_USAGE
    spoken = LANGUAGES[language]
    click.echo(f"{folder}: a plugin in {spoken.title} that {read_kind(kind).title}; {len(made)} files.\n\nNext:")
    place, program = shlex.quote(str(folder)), own_name()
    test = f"{program} plugins test {place}"
    rows = (
        (f"make -C {place} && {test}" if spoken.is_built else test, "its cases and the whole protocol"),
        (f"{program} plugins dev {place}", "a gateway of its own with it, and a curl line"),
        (f"cp -r {place} plugins/ && {program} plugins enable {shlex.quote(folder.name)}", "into yours"),
    )
    width = max(len(command) for command, _ in rows)
    for command, meaning in rows:
        click.echo(f"  {command.ljust(width)}   # {meaning}")
    return 0


def own_name() -> str:
    """How this program was called, for a shell: `jackfield`, or its path where it is not on PATH."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m host"
    return called.name if shutil.which(called.name) else shlex.quote(str(called))
