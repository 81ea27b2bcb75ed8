"""The tree of an edited text, made of the tree of the text before: only the part that was edited is read anew.

A part is some neighbouring items of a list, or pairs of a mapping, that fill lines of their own. Where its first line
begins at the same column as before and starts an item or a pair again, whatever stands in front of it ends as it did;
and what stands behind it is not deeper than it, so nothing of the part can go on there. Read alone, such a part says
what it says in its place.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias

from host.config.tree import NO_COLUMN, MapNode, SeqNode, Unsure, begins_member, fast_node, read_tree

_Container: TypeAlias = MapNode | SeqNode
_CONTAINERS: Final = (MapNode, SeqNode)
_SMALL: Final = 64
"""Lines that may be read in vain."""
_MAX_EDITS: Final = 16
_NEAR: Final = 24
"""Lines that one edit removes and adds, at most, when there is another one behind it."""
_ALIKE: Final = 4
"""Lines between two edits, at least."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Which lines were replaced: `first` to `end_before` by `first` to `end_after`, ends not included."""

    first: int
    end_before: int
    end_after: int

    @property
    def delta(self) -> int:
        """How far the lines behind it moved."""
        return self.end_after - self.end_before


@dataclass(frozen=True, slots=True)
class _Part:
    """The members `begin` to `end`, end not included, of the container that `path` leads to."""

    path: tuple[int, ...]
    """The index of a member, and of a member of this one, and so on."""
    begin: int
    end: int
    first: int
    """The line at which it begins, in both texts."""
    end_line: int
    """The line behind it in the text before."""


@dataclass(frozen=True, slots=True)
class Source:
    """A text, and what it says."""

    text: str
    tree: MapNode
    is_plain: bool
    """Whether each part of it says the same wherever it stands: it has no anchors."""


def read_source(text: str, file: str, before: Source | None = None) -> Source:
    """As `read_tree`. `before`: another text that is mostly the same; nodes of what is the same are its nodes."""
    if before is not None and before.is_plain and (tree := reread(before.text, before.tree, text)) is not None:
        return Source(text, tree, True)
    try:
        node, is_plain = fast_node(text)
    except Unsure:
        return Source(text, read_tree(text, file), False)
    is_mapping = isinstance(node, MapNode)
    return Source(text, node if is_mapping else read_tree(text, file), is_plain and is_mapping)


def reread(before: str, tree: MapNode, text: str) -> MapNode | None:
    """What `read_tree` says of `text`. `tree`: of the text `before`, which has no anchors. None: read all of it.

    The nodes of what did not change are those of `tree`; where lines were added or removed, those behind them are
    copies, with what was kept of them.
    """
    old, new = before.splitlines(keepends=True), text.splitlines(keepends=True)
    found: MapNode | None = tree
    for _ in range(_MAX_EDITS):
        edit = _edit(old, new)
        if edit is None or found is None:
            return found
        # What was read must be valid after each edit: otherwise all of them are read together.
        step = [*old[: edit.first], *new[edit.first : edit.end_after], *old[edit.end_before :]]
        found = _with_edit(found, old, step, edit)
        old = step
    return None


def _with_edit(tree: MapNode, old: Sequence[str], new: Sequence[str], edit: Edit) -> MapNode | None:
    for part in sorted(_parts(tree, old, new, edit), key=_size):
        if _size(part) > max(_SMALL, len(old) // 2):
            return None
        lines = new[part.first : part.end_line + edit.delta]
        try:
            found, is_plain = fast_node("".join(lines)) if lines else (None, True)
        except Unsure:
            continue
        if is_plain and (made := _replaced(tree, part, part.path, found, edit.delta)) is not None:
            return made if isinstance(made, MapNode) else None
    return None


def _edit(old: Sequence[str], new: Sequence[str]) -> Edit | None:
    """The first of the edits, as far as they can be told apart."""
    shorter = min(len(old), len(new))
    pairs = zip(old, new, strict=False)
    first = next((number for number, (one, other) in enumerate(pairs) if one != other), shorter)
    if first == len(old) == len(new):
        return None
    for lines in range(1, _NEAR):
        for removed in range(lines + 1):
            end_before, end_after = first + removed, first + lines - removed
            alike = old[end_before : end_before + _ALIKE]
            if len(alike) == _ALIKE and alike == new[end_after : end_after + _ALIKE]:
                return Edit(first, end_before, end_after)
    behind = islice(zip(reversed(old), reversed(new), strict=False), shorter - first)
    same = next((number for number, (one, other) in enumerate(behind) if one != other), shorter - first)
    return Edit(first, len(old) - same, len(new) - same)


def _size(part: _Part) -> int:
    return part.end_line - part.first


def _parts(tree: MapNode, old: Sequence[str], new: Sequence[str], edit: Edit) -> Iterator[_Part]:
    """Every part in which the edit may be; what is inserted between two members may belong to either."""
    for first in dict.fromkeys((edit.first, max(0, edit.first - 1))):
        last = max(first, edit.end_before - 1)
        for part, node in _parts_in(tree, (), old, len(old), first=first, last=last):
            is_gone = part.end_line + edit.delta <= part.first
            if is_gone or _starts(new[part.first], node):
                yield part


def _parts_in(
    node: _Container, path: tuple[int, ...], lines: Sequence[str], end_line: int, *, first: int, last: int
) -> Iterator[tuple[_Part, _Container]]:
    starts = node.lines if isinstance(node, SeqNode) else list(node.lines.values())
    if node.is_flow or not starts or first < starts[0]:
        return
    begin, end = bisect_right(starts, first) - 1, bisect_right(starts, last)
    behind = starts[end] if end < len(starts) else end_line
    if end < len(starts) and not _starts(lines[behind], node):
        return
    if _starts(lines[starts[begin]], node):
        yield _Part(path, begin, end, starts[begin], behind), node
    if end - begin == 1:
        member = node[begin] if isinstance(node, SeqNode) else next(islice(node.values(), begin, None))
        if isinstance(member, (MapNode, SeqNode)):
            yield from _parts_in(member, (*path, begin), lines, behind, first=first, last=last)


def _starts(line: str, node: _Container) -> bool:
    """Whether a member of the container begins with the line, at the container's own column."""
    return node.column != NO_COLUMN and not line[: node.column].strip(" ") and begins_member(line, node)


def _replaced(node: _Container, part: _Part, path: tuple[int, ...], found: Any, delta: int) -> _Container | None:
    """A container with what was read in place of the part, which is below it at `path`; None where that is no answer.

    Members that neither moved nor changed are the same objects.
    """
    if path:
        index = path[0]
        values = node if isinstance(node, SeqNode) else list(node.values())
        inner = _replaced(values[index], part, path[1:], found, delta)
        return None if inner is None else _joined(node, index, index + 1, [inner], None, delta)
    if found is None:
        kept = len(node) - (part.end - part.begin)
        return _joined(node, part.begin, part.end, [], [], delta) if kept else None
    if type(found) is not type(node) or found.is_flow:
        return None
    found = moved(found, part.first)
    if isinstance(found, SeqNode):
        return _joined(node, part.begin, part.end, found, found.lines, delta)
    return _joined(node, part.begin, part.end, list(found.values()), list(found.lines.items()), delta)


def _joined(
    node: _Container, begin: int, end: int, members: Sequence[Any], lines: Sequence[Any] | None, delta: int
) -> _Container | None:
    """The container with other members from `begin` to `end`, and what is behind them moved.

    `lines`: of the members, with their keys in a mapping; None for those of the members they replace.
    """
    if isinstance(node, SeqNode):
        items = SeqNode(column=node.column)
        items.extend((*node[:begin], *members, *(moved(item, delta) for item in node[end:])))
        middle = node.lines[begin:end] if lines is None else lines
        items.lines = [*node.lines[:begin], *middle, *(line + delta for line in node.lines[end:])]
        return items
    pairs, old = MapNode(column=node.column), list(node.lines.items())
    middle = old[begin:end] if lines is None else lines
    places = [*old[:begin], *middle, *((key, line + delta) for key, line in old[end:])]
    values = list(node.values())
    pairs.lines = dict(places)
    if len(pairs.lines) != len(places):
        return None
    after = (moved(value, delta) for value in values[end:])
    pairs.update(zip(pairs.lines, (*values[:begin], *members, *after), strict=True))
    return pairs


def moved(node: Any, delta: int) -> Any:
    """The same, so many lines further down, with what was kept of it; the very same where that is no line."""
    if not delta:
        return node
    if isinstance(node, SeqNode):
        items = SeqNode(is_flow=node.is_flow, column=node.column)
        items.extend([moved(item, delta) if isinstance(item, _CONTAINERS) else item for item in node])
        items.lines = [line + delta for line in node.lines]
        return items
    if isinstance(node, MapNode):
        pairs = MapNode(is_flow=node.is_flow, column=node.column)
        pairs.update(node)
        for key, value in node.items():
            if isinstance(value, _CONTAINERS):
                pairs[key] = moved(value, delta)
        pairs.lines = {key: line + delta for key, line in node.lines.items()}
        pairs.kept = node.kept
        return pairs
    return node
