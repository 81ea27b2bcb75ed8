"""Configurations to be changed: their values, which remember where they came from, and the comments of parts.

The library that keeps comments takes seconds for thousands of keys, so it reads only what is written anew.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any, Final

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from host.config.align import aligned, same
from host.config.problems import ConfigError
from host.config.reread import Source, read_source
from host.config.tree import MapNode, SeqNode, alike, parse_yaml, round_trip

_COMMENT: Final = re.compile(r"(?:^|\s+)#.*")


class EditMap(dict[Any, Any]):
    """A mapping to be changed; `source` is the node that it was made of."""

    __slots__ = ("source",)

    def __init__(self, source: MapNode) -> None:
        super().__init__(source)
        self.source: Final = source
        for key, value in source.items():
            if (kind := type(value)) is MapNode:
                self[key] = EditMap(value)
            elif kind is SeqNode:
                self[key] = EditSeq(value)


class EditSeq(list[Any]):
    """A list to be changed; `source` is the node that it was made of."""

    __slots__ = ("source",)

    def __init__(self, source: SeqNode) -> None:
        super().__init__(
            EditMap(item) if type(item) is MapNode else EditSeq(item) if type(item) is SeqNode else item
            for item in source
        )
        self.source: Final = source


class EditRoot(EditMap):
    """All of a configuration whose parts say the same wherever they stand; `text` says `source`."""

    __slots__ = ("text",)

    def __init__(self, source: MapNode, text: str) -> None:
        super().__init__(source)
        self.text: Final = text


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

    def get(self, key: Any, default: Any = None) -> Any:
        """Raises ConfigError where a part cannot be read: the library's own would say that there is none."""
        try:
            return self[key]
        except KeyError:
            return default

    def items(self) -> Any:
        """For comparing, not for editing: parts as they are."""
        return [(key, dict.__getitem__(self, key)) for key in self]


def open_tree(text: str, file: str, *, source: Source | None = None) -> dict[Any, Any]:
    """What a text says, to be changed with plain values; write it with `host.config.splice.spliced`.

    `source`: the text as it was read, when it was. Raises ConfigError.
    """
    if source is None or source.text != text:
        source = read_source(text, file)
    tree = source.tree
    if tree.is_flow or (tree and not source.is_plain):
        # What refers to other parts, and what only the library that keeps comments can read.
        return parse_yaml(text, file) if tree.is_flow or _is_foreign(tree) else Editable(text, tree, file)
    return EditRoot(tree, text)


def _is_foreign(tree: MapNode) -> bool:
    return tree.column < 0


def move_last(mapping: dict[Any, Any], key: Any) -> None:
    """Make a key the last one of a mapping of a tree, comments included."""
    if isinstance(mapping, CommentedMap):
        mapping.move_to_end(key)
    else:
        mapping[key] = mapping.pop(key)


def adapt(node: Any, value: Any) -> Any:
    """A node that says `value`: `node` with its comments, changed in place, where it can be."""
    if isinstance(node, CommentedMap) and isinstance(value, dict):
        for key in [key for key in node if key not in value]:
            del node[key]
        for key, member in value.items():
            if key not in node:
                node[key] = as_node(member)
            elif not same(member, node[key]):
                node[key] = adapt(node[key], member)
        if list(node) != list(value):
            for key in value:
                node.move_to_end(key)
        return node
    if isinstance(node, CommentedSeq) and isinstance(value, list):
        return _adapt_list(node, value)
    return as_node(value)


def _adapt_list(node: CommentedSeq, value: list[Any]) -> CommentedSeq:
    places = aligned(node, value)
    kept = [place for place in places if place is not None]
    if kept != sorted(kept):
        return CommentedSeq(
            as_node(item) if place is None else adapt(node[place], item)
            for place, item in zip(places, value, strict=True)
        )
    for place in sorted({*range(len(node))} - {*kept}, reverse=True):
        del node[place]
    for number, (place, item) in enumerate(zip(places, value, strict=True)):
        if place is None:
            node.insert(number, as_node(item))
        elif not same(item, node[number]):
            node[number] = adapt(node[number], item)
    return node


def as_node(value: Any) -> Any:
    """A value as the library writes it, in its order."""
    if isinstance(value, Mapping):
        return CommentedMap({key: as_node(member) for key, member in value.items()})
    return CommentedSeq(as_node(item) for item in value) if isinstance(value, (list, tuple)) else value


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


def dump_subtree(tree: Any, *, like: str = "") -> str:
    """YAML text of one node, comments and order included; lists are indented as in the text `like`."""
    return dump_indented(tree, list_indent(like) if like else None)


def dump_indented(tree: Any, indent: tuple[int, int] | None) -> str:
    """The same. `indent`: where lists have their content and their dashes, counted from the key they belong to."""
    yaml = round_trip()
    if indent is not None:
        yaml.indent(mapping=2, sequence=indent[0], offset=indent[1])
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def list_indent(text: str) -> tuple[int, int]:
    """Where the first list of a text has its content and its dashes, counted from the key that it belongs to."""
    key_column = -1
    for line in text.splitlines():
        content = _COMMENT.sub("", line.strip())
        if not content:
            continue
        column = _column(line)
        item = content[1:].lstrip()
        if content.startswith("- ") and 0 <= key_column <= column:
            offset = column - key_column
            return max(offset + 2, offset + len(content) - len(item)), offset
        key_column = column if content.endswith(":") and content[0] != "-" else -1
    return 2, 0


def _column(line: str) -> int:
    return len(line) - len(line.lstrip())
