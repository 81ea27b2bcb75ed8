"""Parts of a configuration with their comments, for changing them, and the text of such parts.

The library that keeps comments takes seconds for thousands of keys: it reads only what an edit looks at.
"""

import contextlib
import io
from typing import Any

from ruamel.yaml.comments import CommentedMap

from host.config.problems import ConfigError
from host.config.tree import MapNode, SeqNode, Unsure, alike, fast_tree, parse_yaml, round_trip


def parse_part(text: str, tree: MapNode, key: Any, file: str) -> CommentedMap:
    """The YAML tree of the lines of one key of `tree`, which is what `text` says; of the whole text where its lines
    cannot be told apart, or refer to others. Raises ConfigError when the library has no place for a comment."""
    if not tree.is_flow:
        first = tree.lines[key]
        behind = min((line for line in tree.lines.values() if line > first), default=None)
        lines = text.splitlines(keepends=True)
        with contextlib.suppress(ConfigError):
            part = parse_yaml("".join(lines[first:behind]), file)
            if list(part) == [key] and alike(part[key], tree[key]):
                return part
    return parse_yaml(text, file)


class Editable(CommentedMap):
    """A tree to be edited, of which only the parts that are looked at are read with their comments."""

    def __init__(self, text: str, tree: MapNode, file: str) -> None:
        super().__init__(tree)
        self._source = text, tree, file

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, (MapNode, SeqNode)):
            text, tree, file = self._source
            value = self[key] = parse_part(text, tree, key, file)[key]
        return value

    def items(self) -> Any:
        """For comparing, not for editing: parts as they are."""
        return [(key, dict.__getitem__(self, key)) for key in self]


def open_tree(text: str, file: str) -> CommentedMap:
    """As `parse_yaml`, for changing single parts of a large file; write it with `host.config.splice.spliced`."""
    try:
        tree = fast_tree(text)
    except Unsure:
        return parse_yaml(text, file)
    return parse_yaml(text, file) if tree.is_flow else Editable(text, tree, file)


def dump_subtree(tree: Any, *, like: str = "") -> str:
    """YAML text of one node, comments and order included; lists are indented as in the text `like`."""
    yaml = round_trip()
    if like:
        sequence, offset = _list_indent(like)
        yaml.indent(mapping=2, sequence=sequence, offset=offset)
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def _list_indent(text: str) -> tuple[int, int]:
    """Where the first list of a text has its content and its dashes, counted from the key that it belongs to."""
    key_column = 0
    for line in text.splitlines():
        content = line.strip()
        column = len(line) - len(line.lstrip())
        item = content[1:].lstrip()
        if content.startswith("- ") and not item.startswith("#"):
            return max(1, column + len(content) - len(item) - key_column), max(0, column - key_column)
        if content.endswith(":"):
            key_column = column
    return 2, 0
