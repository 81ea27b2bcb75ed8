"""Changing the operator's file: comments, order and formatting of untouched nodes stay, the write is atomic."""

import os
from collections.abc import Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap

from host.config.editable import EditRoot, open_tree
from host.config.load import ConfigError, LoadedConfig, dump_subtree, parse_config, parse_yaml, to_plain
from host.config.rewrite import rewrite
from host.config.splice import spliced


def set_value(
    path: str | os.PathLike[str], keys: Sequence[str], value: Any, *, expected: str | None = None
) -> LoadedConfig | None:
    """Set one value, making the mappings above it where they are missing, and write the file back; what it says then.

    Does nothing, and returns None, when the file says something else than `expected`, where that is given. Raises
    ConfigError when the file is invalid before or after the change; the file is untouched then.
    """
    file = os.fspath(path)

    def change(before: str) -> tuple[str, LoadedConfig | None]:
        if expected is not None and before != expected:
            return before, None
        tree = open_tree(before, file)
        node = tree
        for key in keys[:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[keys[-1]] = value
        text = spliced(before, tree)
        return text, parse_config(text, file=file)

    return rewrite(file, change)


def remove_value(path: str | os.PathLike[str], keys: Sequence[str]) -> bool:
    """Remove one value and write the file back; False, and nothing written, when it is not there.

    Comments inside of what is removed go with it, all others stay. Raises ConfigError when the file is invalid before
    or after the change; the file is untouched then.
    """
    file = os.fspath(path)

    def change(before: str) -> tuple[str, bool]:
        tree = open_tree(before, file)
        if not isinstance(tree, EditRoot):
            tree = parse_yaml(before, file)
        node: Any = tree
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or keys[-1] not in node:
            return before, False
        text = _without_lines_of(before, node, keys[-1]) if isinstance(node, CommentedMap) else None
        del node[keys[-1]]
        if isinstance(tree, EditRoot):
            text = spliced(before, tree)
        elif text is None or not _says(text, tree):
            # Written in a style whose lines cannot be taken out; the comments behind it are lost then.
            text = dump_subtree(tree, like=before)
        parse_config(text, file=file)
        return text, True

    return rewrite(file, change)


def _without_lines_of(text: str, node: CommentedMap, key: str) -> str | None:
    """The text without a member of a block mapping; None when the mapping is written on one line.

    The library would drop the comments that follow a member together with it.
    """
    if node.fa.flow_style():
        return None
    lines = text.splitlines(keepends=True)
    start, column = node.lc.key(key)
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > column):
        end += 1
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    return "".join([*lines[:start], *lines[end:]])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _says(text: str, tree: dict[Any, Any]) -> bool:
    """Whether a text means this tree; a mapping that lost its last member may be written as nothing."""
    try:
        return bool(_filled(to_plain(parse_yaml(text, ""))) == _filled(to_plain(tree)))
    except ConfigError:
        return False


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(member) for key, member in value.items()}
    return {} if value is None else value
