"""The YAML of a configuration as plain values that know their lines: read by libyaml, with the meaning of YAML 1.2.

The library that keeps comments takes seconds for thousands of keys, so it is asked only where its answer may differ:
for tags, merge keys, directives, characters that the versions of YAML treat differently, and for whatever is not valid,
since its messages are the ones that operators see. A text means the same either way.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.scalarbool import ScalarBoolean

from host.config.problems import ConfigError, Problem

UNREADABLE: Final = "the YAML cannot be read"
_GAVE_UP: Final = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the library raises, besides its own errors."""
_ODD: Final = re.compile("[\t\r\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
"""Breaks, blanks and forbidden characters of one version of YAML or the other."""
_WORDS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_STRING_STARTS: Final = frozenset("-+.0123456789=<")
"""What begins with anything else, and is none of the words, is a string."""
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_BLOCK_HEADER: Final = re.compile(r"[|>][-+1-9]{0,2}(?: *\n| +#|\Z)")
_ANCHOR: Final = re.compile(r"[&*][A-Za-z0-9_-]+(?=[ \n]|\Z)")
"""Names and headers that are read in one way only."""
_BLOCK: Final = ("|", ">")
_LOADER: Final = getattr(yaml, "CBaseLoader", None)
"""None where the library was built without libyaml."""
_DASH: Final = ("- ", "-\n", "-")
_NO_KEY: Final = frozenset(("", *" \n#-?%."))
"""How no key begins, or none that is clear at a glance: blanks, comments, items, markers of documents."""
NO_COLUMN: Final = -1
"""Of a node that the other library has read."""


class MapNode(dict[Any, Any]):
    """A mapping; `lines` has the line of each key, from 0. Not changed once it is part of a tree."""

    __slots__ = ("column", "is_flow", "kept", "lines")

    def __init__(self, *, is_flow: bool = False, column: int = NO_COLUMN) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}
        self.is_flow = is_flow
        self.column = column
        """Where its first key begins, from 0."""
        self.kept: tuple[str, Any] | None = None
        """What a reader made of it, and where it stood: the tree of the next text has the same node where it can."""


class SeqNode(list[Any]):
    """A list; `lines` has the line of each item, from 0: where the item's own text begins, below its dash or behind it.

    Not changed once it is part of a tree.
    """

    __slots__ = ("column", "is_flow", "lines")

    def __init__(self, *, is_flow: bool = False, column: int = NO_COLUMN) -> None:
        super().__init__()
        self.lines: list[int] = []
        self.is_flow = is_flow
        self.column = column
        """Where its first dash stands, from 0."""


def begins_member(line: str, node: MapNode | SeqNode) -> bool:
    """Whether a line has, at the column of a container in block style, what a member of it begins with."""
    column = node.column
    if isinstance(node, SeqNode):
        return line[column : column + 2] in _DASH
    return line[column : column + 1] not in _NO_KEY


class Unsure(Exception):
    """The text has something that only the other library is asked about."""


def read_tree(text: str, file: str) -> MapNode:
    """The mapping that a text says. Raises ConfigError with the line of the mistake."""
    try:
        return fast_tree(text)
    except Unsure:
        tree: MapNode = slow_tree(parse_yaml(text, file))
        return tree


def fast_tree(text: str) -> MapNode:
    """As `read_tree`; raises Unsure where the other library has to be asked."""
    node, _ = fast_node(text)
    if node is None:
        return MapNode()
    if not isinstance(node, MapNode):
        raise Unsure
    return node


def fast_node(text: str) -> tuple[Any, bool]:
    """What a text says, None where it says nothing, and whether no part of it refers to another. Raises Unsure."""
    if _LOADER is None or _ODD.search(text) is not None:
        raise Unsure
    try:
        # Bytes: a text is encoded piece by piece otherwise.
        builder = _Builder(text, yaml.parse(text.encode(), Loader=_LOADER))
        return builder.document(), not builder.anchors
    except (yaml.YAMLError, RecursionError, UnicodeEncodeError):
        raise Unsure from None


class _Builder:
    """Makes a tree of the events of one document."""

    def __init__(self, text: str, events: Iterator[Any]) -> None:
        self._text: Final = text
        self._events: Final = events
        self.anchors: Final[dict[str, Any]] = {}
        self._anchor_lines: Final[dict[str, int]] = {}

    def document(self) -> Any:
        events = self._events
        next(events)
        begin = next(events)
        if isinstance(begin, yaml.StreamEndEvent):
            return None
        if begin.version or begin.tags:
            raise Unsure
        tree = self._node(next(events))
        if next(events).explicit or not isinstance(next(events), yaml.StreamEndEvent):
            raise Unsure
        return tree

    def _node(self, event: Any) -> Any:
        kind = type(event)
        if kind is yaml.AliasEvent:
            self._check(_ANCHOR, event)
            if event.anchor not in self.anchors:
                raise Unsure
            return self.anchors[event.anchor]
        if event.tag is not None:
            raise Unsure
        if event.anchor is not None:
            return self._anchored(event)
        if kind is yaml.ScalarEvent:
            if event.style in _BLOCK:
                self._check(_BLOCK_HEADER, event)
            return event.value if event.style else scalar(event.value)
        return self._mapping(event) if kind is yaml.MappingStartEvent else self._sequence(event)

    def _anchored(self, event: Any) -> Any:
        name, event.anchor = event.anchor, None
        self._check(_ANCHOR, event)
        if name in self.anchors or (type(event) is yaml.ScalarEvent and (event.style in _BLOCK or not event.value)):
            raise Unsure
        found = self._node(event)
        self.anchors[name] = found
        self._anchor_lines[name] = event.start_mark.line
        return found

    def _check(self, pattern: re.Pattern[str], event: Any) -> None:
        if pattern.match(self._text, event.start_mark.index) is None:
            raise Unsure

    def _mapping(self, event: Any) -> MapNode:
        found = MapNode(is_flow=event.flow_style, column=event.start_mark.column)
        events, lines, node = self._events, found.lines, self._node
        for key_event in events:
            if type(key_event) is yaml.MappingEndEvent:
                break
            if type(key_event) is not yaml.ScalarEvent or (key_event.value == "<<" and not key_event.style):
                raise Unsure
            key = node(key_event)
            if key in found:
                raise Unsure
            lines[key] = key_event.start_mark.line
            found[key] = node(next(events))
        return found

    def _sequence(self, event: Any) -> SeqNode:
        found = SeqNode(is_flow=event.flow_style, column=event.start_mark.column)
        for item in self._events:
            if type(item) is yaml.SequenceEndEvent:
                break
            found.append(self._node(item))
            is_alias = type(item) is yaml.AliasEvent
            found.lines.append(self._anchor_lines[item.anchor] if is_alias else item.start_mark.line)
        return found


def scalar(text: str) -> Any:
    """The value of a scalar without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _STRING_STARTS:
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    return _number(text)


@functools.lru_cache(maxsize=4096)
def _number(text: str) -> Any:
    """Numbers of all kinds, times, and strings that begin like one."""
    if str(_resolver().resolve(ScalarNode, text, (True, False))).endswith(":str"):
        return text
    try:
        return plain_value(round_trip().load(text))
    except (YAMLError, *_GAVE_UP):
        raise Unsure from None


@functools.lru_cache(maxsize=1)
def _resolver() -> Any:
    return YAML(typ="rt").resolver


def slow_tree(node: Any) -> Any:
    """The same of a tree of the library that keeps comments."""
    if isinstance(node, dict):
        mapping = MapNode(is_flow=isinstance(node, CommentedMap) and bool(node.fa.flow_style()))
        for key, value in node.items():
            plain_key = plain_value(key)
            mapping.lines[plain_key] = _line_in(node, key)
            mapping[plain_key] = slow_tree(value)
        return mapping
    if isinstance(node, list):
        sequence = SeqNode()
        for index, value in enumerate(node):
            sequence.lines.append(_line_in(node, index))
            sequence.append(slow_tree(value))
        return sequence
    return plain_value(node)


def _line_in(node: Any, place: Any) -> int:
    """The line of a key, or of an item."""
    try:
        lines = node.lc
        return int((lines.key if isinstance(node, dict) else lines.item)(place)[0])
    except (KeyError, TypeError):
        return int(node.lc.line or 0)  # merged into it from elsewhere, or below a tag


def plain_value(value: Any) -> Any:
    """A scalar without the memory of how it was written."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, ScalarBoolean):
        return bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    # `str` of a value with a tag is a kind of string of the library again.
    return "".join(str(value))


def to_plain(value: Any) -> Any:
    """Plain dicts, lists and scalars of a YAML node."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return plain_value(value)


def alike(one: Any, other: Any) -> bool:
    """Whether two nodes mean the same: `1`, `1.0` and `true`, which are equal to Python, do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    one, other = plain_value(one), plain_value(other)
    return type(one) is type(other) and (one == other or (one != one and other != other))


def round_trip() -> YAML:
    """The library that keeps comments, set up for configurations."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.composer.warn_double_anchors = False  # YAML allows it
    return yaml


def parse_yaml(text: str, file: str) -> CommentedMap:
    """The YAML tree of a config, for changing it. Raises ConfigError with the line of the mistake."""
    try:
        tree = round_trip().load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigError([Problem(file, line, f"not valid YAML: {error.problem}")]) from None
    except YAMLError as error:
        raise ConfigError([Problem(file, 1, f"not valid YAML: {error}")]) from None
    except _GAVE_UP as error:
        # Keys that are lists, days that do not exist, comments where the library has no place for them.
        raise ConfigError([Problem(file, 1, f"{UNREADABLE}: {error or type(error).__name__}")]) from None
    if tree is None:
        return CommentedMap()
    if not isinstance(tree, CommentedMap):
        raise ConfigError([Problem(file, 1, "the file must be a mapping of keys to values, like `port: 8317`")])
    return tree
