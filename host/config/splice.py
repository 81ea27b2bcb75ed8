"""Writing a changed configuration: only what changed gets new lines, all else keeps its own.

A tree of plain values (`host.config.editable.EditRoot`) is compared with the nodes it was made of, down to single
members. A tree with comments is compared by its top-level keys.
"""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml.comments import CommentedMap

from host.config.align import same
from host.config.editable import EditRoot, adapt, as_node, dump_subtree
from host.config.lines import Unclear, with_values
from host.config.problems import ConfigError, Problem
from host.config.reread import Source, read_source, reread
from host.config.tree import MapNode, alike, parse_yaml, read_tree, to_plain


def spliced(before: str, tree: dict[Any, Any]) -> str:
    """The text `before` changed so that it says what `tree` says.

    Comments of what stays are kept, and so are those between keys, wherever the library that keeps comments has a place
    for them. Raises ConfigError when `before` is not valid YAML, and when no way to write the change says it.
    """
    return spliced_source(before, tree).text


def spliced_source(before: str, tree: dict[Any, Any]) -> Source:
    """The same, with what was read of it: nodes of what stays are those of `tree`'s source, where it has one."""
    if isinstance(tree, EditRoot) and tree.text == before and (found := _edited(before, tree)) is not None:
        return found
    for way in (_by_keys, _as_a_whole, _without_comments):
        try:
            text = way(before, tree)
        except ConfigError:
            if way is _without_comments:
                raise
            continue
        if text is not None and says(text, tree):
            return read_source(text, "")
    raise ConfigError([Problem("", 1, "the change cannot be written between the comments that are there")])


def _edited(before: str, tree: EditRoot) -> Source | None:
    try:
        text = with_values(before, tree.source, tree)
        found = reread(before, tree.source, text)
        made = Source(text, found, True) if found is not None else read_source(text, "")
    except (ConfigError, Unclear):
        return None
    return made if same(tree, made.tree) else None


def _by_keys(before: str, tree: dict[Any, Any]) -> str | None:
    """With new lines for all of each top-level key that changed."""
    if isinstance(tree, EditRoot):
        tree = adapt(parse_yaml(before, ""), tree)
    return _spliced(before, read_tree(before, ""), tree)


def _as_a_whole(before: str, tree: dict[Any, Any]) -> str:
    """For a style whose lines cannot be told apart: some comments may move."""
    whole = parse_yaml(before, "")
    if isinstance(tree, EditRoot):
        return dump_subtree(adapt(whole, tree), like=before)
    for key in [key for key in whole if key not in tree]:
        del whole[key]
    for key, value in tree.items():
        if key not in whole or not alike(whole[key], value):
            whole[key] = tree[key]
    return dump_subtree(whole, like=before)


def _without_comments(before: str, tree: dict[Any, Any]) -> str | None:
    """As by keys: where a comment inside of one stands in the way, it goes."""
    return _spliced(before, read_tree(before, ""), as_node(tree))


def says(text: str, tree: Mapping[Any, Any]) -> bool:
    """Whether a text means this tree; a key whose mapping lost its last member may have no value."""
    try:
        found = to_plain(read_tree(text, ""))
    except ConfigError:
        return False
    return alike(_without_empty(found), _without_empty(to_plain(tree)))


def _spliced(before: str, old: MapNode, tree: dict[Any, Any]) -> str | None:
    if old.is_flow:
        return None
    lines = before.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    starts = old.lines
    ordered = sorted(starts, key=lambda key: starts[key])
    found = lines[: starts[ordered[0]]] if ordered else list(lines)
    present = dict(tree.items())
    for place, key in enumerate(ordered):
        end = starts[ordered[place + 1]] if place + 1 < len(ordered) else len(lines)
        content, behind = _parted(lines[starts[key] : end])
        if key not in tree:
            content = []
        elif not alike(old[key], present[key]):
            content = _parted(_lines_of(key, tree[key], before))[0]
        found += content + behind
    for key in tree:
        if key not in old:
            found += _lines_of(key, tree[key], before)
    return "".join(found)


def _lines_of(key: Any, value: Any, before: str) -> list[str]:
    return dump_subtree(CommentedMap({key: value}), like=before).splitlines(keepends=True)


def _parted(lines: list[str]) -> tuple[list[str], list[str]]:
    """What a key says, and the blank lines and comments between it and the next key."""
    end = len(lines)
    while end > 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return lines[:end], lines[end:]


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(member) for key, member in value.items()}
    return {} if value is None else value
