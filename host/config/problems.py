"""Mistakes in a configuration, with the place where the operator can mend them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake or warning, with the place where the operator can mend it."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class ConfigError(Exception):
    """The file cannot be used; `problems` are all that were found, in the order of their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class ConfigUnread(ConfigError):
    """There is no file, or its content cannot be read: nothing is known of what it says."""
