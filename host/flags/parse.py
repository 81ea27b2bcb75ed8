"""A command line with options of plugins: `--flag`, `--flag=value`, `--flag value`; `--` ends them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from host.flags.table import FlagTable
from host.flags.values import normalised

CONFIG = "config"
HELP = ("--help", "-h")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What somebody typed."""

    given: Mapping[str, str]
    """Options of plugins with their values, normalised; one that was given twice has its last value."""
    rest: tuple[str, ...] = ()
    """What is no option."""
    wants_help: bool = False


class UnknownOption(Exception):
    """Nobody has this option; `name` begins with its dashes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class BadOption(Exception):
    """An option with a value that cannot be used; the message names both."""


def config_in(arguments: Sequence[str]) -> str | None:
    """The value of `--config`; None when it is not there."""
    found = None
    for index, word in enumerate(arguments):
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name == f"--{CONFIG}":
            found = value if equals else next(iter(arguments[index + 1 : index + 2]), "")
    return found


def parse(arguments: Sequence[str], table: FlagTable) -> CommandLine:
    """Raises UnknownOption and BadOption."""
    given: dict[str, str] = {}
    rest: list[str] = []
    wants_help = False
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            rest += left
            break
        if word in HELP:
            wants_help = True
            continue
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        flag = table.flags.get(name) if word.startswith("--") else None
        if flag is None and name != CONFIG:
            raise UnknownOption(word.partition("=")[0])
        if not equals and flag is not None and flag.type == "bool":
            value = "true"
        elif not equals:
            if not left:
                raise BadOption(f"--{name} needs a value")
            value = left.pop(0)
        if flag is not None:
            try:
                given[name] = normalised(flag.type, value)
            except ValueError as error:
                raise BadOption(f"--{name}: {error}") from None
    return CommandLine(given=given, rest=tuple(rest), wants_help=wants_help)
