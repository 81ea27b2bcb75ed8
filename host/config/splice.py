"""Writing a changed configuration: only the top-level keys that changed get new lines, all others keep theirs."""

from typing import Any

from ruamel.yaml.comments import CommentedMap

from host.config.load import ConfigError, dump_subtree, parse_yaml, to_plain


def spliced(before: str, tree: CommentedMap) -> str:
    """The text `before` changed so that it says what `tree` says.

    Comments of what stays are kept, and so are those between keys. Raises ConfigError when `before` is not valid YAML.
    """
    old = parse_yaml(before, "")
    text = _spliced(before, old, tree)
    # A style whose lines cannot be told apart is written as a whole: some comments may move then.
    return text if text is not None and says(text, tree) else dump_subtree(tree, like=before)


def says(text: str, tree: CommentedMap) -> bool:
    """Whether a text means this tree; a key whose mapping lost its last member may have no value."""
    try:
        found = to_plain(parse_yaml(text, ""))
    except ConfigError:
        return False
    return bool(_without_empty(found) == _without_empty(to_plain(tree)))


def _spliced(before: str, old: CommentedMap, tree: CommentedMap) -> str | None:
    if old.fa.flow_style():
        return None
    lines = before.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    starts = {key: old.lc.key(key)[0] for key in old}
    ordered = sorted(starts, key=lambda key: starts[key])
    found = lines[: starts[ordered[0]]] if ordered else list(lines)
    for place, key in enumerate(ordered):
        end = starts[ordered[place + 1]] if place + 1 < len(ordered) else len(lines)
        content, behind = _parted(lines[starts[key] : end])
        if key not in tree:
            content = []
        elif to_plain(old[key]) != to_plain(tree[key]):
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
