"""Writing a changed configuration: only the top-level keys that changed get new lines, all others keep theirs."""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml.comments import CommentedMap

from host.config.editable import dump_subtree
from host.config.problems import ConfigError
from host.config.tree import MapNode, alike, parse_yaml, read_tree, to_plain


def spliced(before: str, tree: CommentedMap) -> str:
    """The text `before` changed so that it says what `tree` says.

    Comments of what stays are kept, and so are those between keys. Raises ConfigError when `before` is not valid YAML.
    """
    old = read_tree(before, "")
    text = _spliced(before, old, tree)
    if text is not None and says(text, tree):
        return text
    # A style whose lines cannot be told apart is written as a whole: some comments may move then.
    whole = parse_yaml(before, "")
    for key in [key for key in whole if key not in tree]:
        del whole[key]
    for key, value in tree.items():
        if key not in whole or not alike(whole[key], value):
            whole[key] = tree[key]
    return dump_subtree(whole, like=before)


def says(text: str, tree: Mapping[Any, Any]) -> bool:
    """Whether a text means this tree; a key whose mapping lost its last member may have no value."""
    try:
        found = to_plain(read_tree(text, ""))
    except ConfigError:
        return False
    return alike(_without_empty(found), _without_empty(to_plain(tree)))


def _spliced(before: str, old: MapNode, tree: CommentedMap) -> str | None:
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
