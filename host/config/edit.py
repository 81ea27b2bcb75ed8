"""Changing the operator's file: comments, order and formatting of untouched nodes stay, the write is atomic."""

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from host.config.load import dump_subtree, parse_config, parse_yaml


def set_value(path: str | os.PathLike[str], keys: Sequence[str], value: Any) -> None:
    """Set one value, making the mappings above it where they are missing, and write the file back.

    Raises ConfigError when the file is invalid before or after the change; the file is untouched then.
    """
    file = os.fspath(path)
    before = Path(file).read_text(encoding="utf-8")
    tree = parse_yaml(before, file)
    node = tree
    for key in keys[:-1]:
        if not isinstance(node.get(key), CommentedMap):
            node[key] = CommentedMap()
        node = node[key]
    node[keys[-1]] = value
    text = dump_subtree(tree, like=before)
    parse_config(text, file=file)
    write_atomically(file, text)


def write_atomically(file: str, text: str, *, mode: int | None = None) -> None:
    """Write beside the file and rename over it; an existing file keeps its mode, a new one gets `mode` or 0600."""
    target = os.path.realpath(file)
    if mode is None:
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o600
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
