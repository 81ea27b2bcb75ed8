"""From the words of a manifest's `command` to what is executed: the same for a host and for whoever plays one."""

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

PASSED_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "TZ")
"""Passed to every plugin from a host's own environment when set; nothing else is unless the manifest asks for it."""

_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386"}


class ProgramNotFound(Exception):
    """The command's program is not on PATH."""


def resolve_words(words: Sequence[str], directory: Path, *, search_path: str | None = None) -> tuple[str, ...]:
    """The command with absolute paths. Raises ProgramNotFound.

    `{python}` is this interpreter and `{plugin_dir}` the manifest's directory. The program is looked up in the
    manifest's directory (for binaries in `<os>/<arch>/` first) when its name has a slash, otherwise on `search_path`
    (default: PATH). An argument that starts with `./` or `../`, or names a file there (`main.py`), becomes absolute
    too: the process works in its data directory, not beside its code.
    """
    filled = [word.replace("{python}", sys.executable).replace("{plugin_dir}", str(directory)) for word in words]
    return (_program(filled[0], directory, search_path), *(_argument(word, directory) for word in filled[1:]))


def uses_this_python(words: Sequence[str]) -> bool:
    """Whether the command runs under this interpreter."""
    return any("{python}" in word for word in words)


def _program(word: str, directory: Path, search_path: str | None) -> str:
    if "/" not in word:
        found = shutil.which(word, path=search_path)
        if found is None:
            raise ProgramNotFound(f"{word} is not on PATH; a file beside plugin.toml is written ./{word}")
        return found
    machine = platform.machine()
    by_platform = directory / sys.platform / _ARCHITECTURES.get(machine, machine) / word
    # Whether it can be executed is for the system to say.
    return str(by_platform) if by_platform.is_file() else os.path.normpath(directory / word)


def _argument(word: str, directory: Path) -> str:
    if word.startswith(("./", "../")):
        return os.path.normpath(directory / word)
    if not word.startswith(("-", "/")) and ("." in word or "/" in word) and (directory / word).is_file():
        return str(directory / word)
    return word
