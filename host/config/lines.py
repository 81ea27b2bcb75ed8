"""Changing the lines of a text in block style: only those of what changed, all others stay as they are.

A member of a mapping or list has the lines from its own first one to the next member's. Blank lines and comments at
their end belong to it where they are indented deeper than it, and stay when it goes where they are not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from host.config.align import aligned, same
from host.config.editable import adapt, as_node, dump_indented, list_indent
from host.config.plainly import simple_item, with_value
from host.config.problems import ConfigError
from host.config.tree import NO_COLUMN, MapNode, SeqNode, begins_member, parse_yaml

_Container: TypeAlias = MapNode | SeqNode
_LONE_KEY: Final = re.compile(r"[^\n:#'\"]+:(\s+#[^\n]*)\n")
"""A key whose value begins in another line, and its comment."""
_PARENT: Final = "items"
"""A list is read and written below a key."""


class Unclear(Exception):
    """The lines cannot be told apart: the whole of what they are part of has to be written anew."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Other lines in place of those from `first` to `end`, the end not included."""

    first: int
    end: int
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a container shall have: for each member its key, None in lists, its place so far, and its value."""

    keys: Sequence[Any]
    places: Sequence[int | None]
    values: Sequence[Any]


def with_values(text: str, tree: MapNode, wanted: dict[Any, Any]) -> str:
    """`text`, which says `tree`, changed so that it says `wanted`. Raises Unclear; the caller checks what it says."""
    lines = text.splitlines(keepends=True)
    if not lines or lines[-1].endswith("\n"):
        return "".join(_Lines(lines, list_indent(text)).document(tree, wanted))
    last = lines[-1]
    found = _Lines([*lines[:-1], f"{last}\n"], list_indent(text)).document(tree, wanted)
    if found and found[-1] == f"{last}\n":
        found[-1] = last
    return "".join(found)


class _Lines:
    """The lines of one text."""

    def __init__(self, lines: list[str], indent: tuple[int, int]) -> None:
        self._lines: Final = lines
        self._indent: Final = indent

    def document(self, tree: MapNode, wanted: dict[Any, Any]) -> list[str]:
        """All lines; new keys come last."""
        added = [key for key in wanted if key not in tree]
        changes: list[_Change] = []
        if tree:
            kept = [key for key in tree if key in wanted]
            places = {key: place for place, key in enumerate(tree)}
            plan = _Plan(kept, [places[key] for key in kept], [wanted[key] for key in kept])
            changes = self._members(tree, plan, len(self._lines))
        end = len(self._lines)
        column = max(0, tree.column)
        changes += [_Change(end, end, self._pair_lines(as_node({key: wanted[key]}), column)) for key in added]
        return self._applied(changes, 0, end)

    def _container(self, node: Any, value: Any, end: int) -> list[_Change]:
        """Changes in the lines of a container that make it say `value`. Raises Unclear."""
        if not value or not node or node.is_flow:
            raise Unclear
        if isinstance(node, MapNode) and isinstance(value, dict):
            numbers = {key: place for place, key in enumerate(node)}
            keys = list(value)
            plan = _Plan(keys, [numbers.get(key) for key in keys], list(value.values()))
        elif isinstance(node, SeqNode) and isinstance(value, list):
            plan = _Plan([None] * len(value), aligned(node, value), value)
        else:
            raise Unclear
        kept = [place for place in plan.places if place is not None]
        if kept != sorted(kept):
            return self._reordered(node, plan, end)
        return self._members(node, plan, end)

    def _members(self, node: _Container, plan: _Plan, end: int) -> list[_Change]:
        """The same, for members whose order stays."""
        starts = self._starts(node)
        old, keys = self._parts(node)
        changes: list[_Change] = []
        last = -1
        """The last one that stays."""
        for key, place, value in zip((*plan.keys, None), (*plan.places, len(old)), (*plan.values, None), strict=True):
            if place is None:
                at = starts[0] if last < 0 else self._own_end(starts, last, node.column, end)
                changes.append(_Change(at, at, self._new(key, value, node)))
                continue
            for gone in range(last + 1, place):
                changes.append(_Change(starts[gone], self._own_end(starts, gone, node.column, end), ()))
            if place < len(old) and not same(value, old[place]):
                own_end = self._own_end(starts, place, node.column, end)
                changes += self._changed(node, keys[place], old[place], value, starts[place], own_end)
            last = place
        return self._opened(node, starts, changes)

    def _opened(self, node: _Container, starts: Sequence[int], changes: list[_Change]) -> list[_Change]:
        """The same where the first member stands behind the dash of the item that it is part of."""
        prefix = self._lines[starts[0]][: node.column]
        at_first = [change for change in changes if change.first == starts[0]]
        if not prefix.strip(" ") or not at_first:
            return changes
        if any(change.lines and change.end > change.first for change in at_first):
            if len(at_first) > 1:
                raise Unclear
            return changes
        lines = [line for change in at_first for line in change.lines]
        end = max(change.end for change in at_first)
        rest = [change for change in changes if change not in at_first]
        if not lines:
            if end not in starts:
                raise Unclear
            lines, end = [self._lines[end]], end + 1
        elif end == starts[0]:
            first = self._lines[end]
            lines, end = [*lines, " " * node.column + first[node.column :]], end + 1
        if any(change.first < end for change in rest):
            raise Unclear
        return [_Change(starts[0], end, _with_prefix(prefix, lines)), *rest]

    def _reordered(self, node: _Container, plan: _Plan, end: int) -> list[_Change]:
        """All lines of a container, its members moved together with the comments above them."""
        starts = self._starts(node)
        if self._lines[starts[0]][: node.column].strip(" "):
            raise Unclear
        old, keys = self._parts(node)
        ends = [self._own_end(starts, place, node.column, end) for place in range(len(starts))]
        found: list[str] = []
        for key, place, value in zip(plan.keys, plan.places, plan.values, strict=True):
            if place is None:
                found += self._new(key, value, node)
                continue
            found += self._lines[ends[place - 1] : starts[place]] if place else ()
            changes: list[_Change] = []
            if not same(value, old[place]):
                changes = self._changed(node, keys[place], old[place], value, starts[place], ends[place])
            found += self._applied(changes, starts[place], ends[place])
        for gone in sorted({*range(1, len(starts))} - {*plan.places}):
            found += self._lines[ends[gone - 1] : starts[gone]]
        return [_Change(starts[0], ends[-1], found)]

    def _changed(self, node: _Container, key: Any, old: Any, value: Any, first: int, end: int) -> list[_Change]:
        """Changes that make one member say `value`."""
        if isinstance(old, (MapNode, SeqNode)) and isinstance(value, (dict, list)):
            try:
                return self._container(old, value, end)
            except Unclear:
                pass
        content_end = self._content_end(first, end)
        try:
            return [self._written_anew(node, key, old, value, first, content_end)]
        except Unclear:
            if content_end == end:
                raise
        # What looked like comments is the end of a text.
        return [self._written_anew(node, key, old, value, first, end)]

    def _written_anew(self, node: _Container, key: Any, old: Any, value: Any, first: int, end: int) -> _Change:
        lines = self._lines[first:end]
        prefix = lines[0][: node.column]
        if len(lines) == 1 and (line := with_value(lines[0][node.column :], key, old, value)) is not None:
            return _Change(first, end, [prefix + line])
        lines[0] = " " * node.column + lines[0][node.column :]
        depth = min(_indent(line) for line in lines if line.strip())
        text = "".join(line[min(depth, _indent(line)) :] for line in lines)
        made = self._rewritten(node, key, old, value, text)
        return _Change(first, end, _with_prefix(prefix, made) if prefix.strip(" ") else made)

    def _rewritten(self, node: _Container, key: Any, old: Any, value: Any, text: str) -> list[str]:
        """The lines of one member, of which `text` says `old`, so that they say `value`."""
        is_item = isinstance(node, SeqNode)
        if value in ({}, []) and isinstance(old, (MapNode, SeqNode)):
            # The library writes the comment of a key in front of its braces, where they do not belong to it any more.
            made = self._new(key, value, node)
            comment = _LONE_KEY.match(text)
            return [made[0].rstrip("\n") + comment[1] + "\n"] if comment and not is_item else made
        try:
            part = parse_yaml(f"{_PARENT}:\n{text}" if is_item else text, "")
        except ConfigError:
            # The library has no place for one of its comments.
            return self._new(key, value, node)
        members = part.get(_PARENT) if is_item else part
        place = 0 if is_item else key
        if not same(members, [old] if is_item else {key: old}):
            raise Unclear
        members[place] = adapt(members[place], value)
        return self._item_lines(part, node.column) if is_item else self._pair_lines(part, node.column)

    def _new(self, key: Any, value: Any, node: _Container) -> list[str]:
        """The lines of a member that was not there."""
        if isinstance(node, MapNode):
            return self._pair_lines(as_node({key: value}), node.column)
        if (lines := simple_item(value)) is not None:
            return [" " * node.column + line for line in lines]
        return self._item_lines(as_node({_PARENT: [value]}), node.column)

    def _pair_lines(self, pair: Any, column: int) -> list[str]:
        return self._moved(dump_indented(pair, self._indent), column)

    def _item_lines(self, parent: Any, column: int) -> list[str]:
        return self._moved(dump_indented(parent, self._indent).partition("\n")[2], column)

    def _moved(self, text: str, column: int) -> list[str]:
        """The lines of a member, so that its first one begins at the column."""
        lines = text.splitlines(keepends=True)
        if not lines or not text.endswith("\n"):
            raise Unclear
        delta = column - _indent(lines[0])
        if delta >= 0:
            return [line if line == "\n" else " " * delta + line for line in lines]
        if any(line.strip() and _indent(line) < -delta for line in lines):
            raise Unclear
        return [line[min(-delta, _indent(line)) :] for line in lines]

    def _starts(self, node: _Container) -> list[int]:
        """The first lines of all members. Raises Unclear where one does not begin a line of its own."""
        starts = list(node.lines.values()) if isinstance(node, MapNode) else node.lines
        column, lines = node.column, self._lines
        if column == NO_COLUMN or not starts:
            raise Unclear
        blank = " " * column
        before = -1
        for start in starts:
            line = lines[start]
            if start <= before or (line[:column] != blank and before >= 0):
                raise Unclear
            if not begins_member(line, node):
                raise Unclear
            before = start
        if lines[starts[0]][:column].strip(" -"):
            raise Unclear
        return starts

    def _parts(self, node: _Container) -> tuple[list[Any], list[Any]]:
        """The values of all members, and their keys."""
        if isinstance(node, MapNode):
            return list(node.values()), list(node)
        return node, [None] * len(node)

    def _own_end(self, starts: Sequence[int], place: int, column: int, end: int) -> int:
        """Behind the last line of a member, with the comments that are its own."""
        behind = starts[place + 1] if place + 1 < len(starts) else end
        own = self._content_end(starts[place], behind)
        for number in range(own, behind):
            line = self._lines[number]
            if line.strip():
                if _indent(line) <= column:
                    break
                own = number + 1
        return own

    def _content_end(self, first: int, end: int) -> int:
        """Behind the last line between two that is neither blank nor a comment."""
        while end > first + 1:
            content = self._lines[end - 1].strip()
            if content and not content.startswith("#"):
                break
            end -= 1
        return end

    def _applied(self, changes: Sequence[_Change], first: int, end: int) -> list[str]:
        """The lines from `first` to `end`, changed. Of changes at one place the one that was made first comes first."""
        found: list[str] = []
        at = first
        for change in sorted(changes, key=lambda change: (change.first, change.end)):
            if change.first < at or change.end > end:
                raise Unclear
            found += self._lines[at : change.first]
            found += change.lines
            at = change.end
        return found + self._lines[at:end]


def _with_prefix(prefix: str, lines: Sequence[str]) -> list[str]:
    """The lines with other text in front of the member that begins with the first one."""
    column = len(prefix)
    if lines[0][:column].strip(" ") or lines[0][column : column + 1] in (" ", "#", "\n", ""):
        raise Unclear
    return [prefix + lines[0][column:], *lines[1:]]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
