"""`python -m pluginapi.run module:Class` (or `path/to.py:Class`): serves a plugin without a `__main__` of its own.

The wire is claimed before the author's module is imported, so that nothing it prints at import can break it.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from pluginapi.identity import PLUGIN_DIR_VARIABLE, declared_id
from pluginapi.plugin import Plugin
from pluginapi.serve import EXIT_CONFIG, parse_arguments, run

PATH_MODULE_NAME: Final = "jackfield_plugin"


class EntryError(Exception):
    """An entry that names no plugin class; the text says what was expected."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the entry named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pluginapi.run")
    parser.add_argument("entry", help="module:Class, or path/to.py:Class")
    options = parse_arguments(sys.argv[1:] if argv is None else argv, parser=parser)
    entry: str = options.entry
    try:
        return run(
            lambda: load(entry), options, name=declared_id() or entry, command=f"python -m pluginapi.run {entry}"
        )
    except EntryError as error:
        print(f"pluginapi.run: {error}", file=sys.stderr)
        return EXIT_CONFIG


def load(entry: str) -> type[Plugin]:
    """Import the class an entry names. Modules are found in the plugin's folder first.

    Raises EntryError, and whatever the author's module raises at import.
    """
    module_name, colon, class_name = entry.rpartition(":")
    if not colon or not module_name or not class_name:
        raise EntryError(f"{entry!r} is not module:Class or path/to.py:Class")
    folder = os.environ.get(PLUGIN_DIR_VARIABLE) or os.getcwd()
    sys.path.insert(0, folder)
    module = _from_path(Path(module_name)) if module_name.endswith(".py") else _by_name(module_name, folder)
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, Plugin):
        raise EntryError(f"{class_name} in {module.__file__} is no subclass of pluginapi.Plugin")
    return found


def _by_name(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0]:
            # A module that the author's own code misses: that traceback is the better message.
            raise
        raise EntryError(f"no module {name!r}, neither in {folder} nor installed") from None


def _from_path(path: Path) -> ModuleType:
    if not path.is_absolute() and (folder := os.environ.get(PLUGIN_DIR_VARIABLE)):
        path = Path(folder) / path
    spec = importlib.util.spec_from_file_location(PATH_MODULE_NAME, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise EntryError(f"no file {path}")
    sys.path.insert(0, str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH_MODULE_NAME] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
