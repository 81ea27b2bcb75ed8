"""From the operator's YAML to the frozen tree: strict, with file, line and the nearest valid key for every mistake."""

import difflib
import functools
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from ruamel.yaml.comments import CommentedMap

from host.config import sanitise, values
from host.config.editable import dump_subtree as dump_subtree
from host.config.editable import parse_part
from host.config.known_keys import no_effect
from host.config.model import MAX_WEIGHT, Config, PluginSection, Section
from host.config.problems import ConfigError as ConfigError
from host.config.problems import ConfigUnread as ConfigUnread
from host.config.problems import Problem as Problem
from host.config.reread import Source, read_source
from host.config.tree import MapNode, SeqNode, read_tree
from host.config.tree import parse_yaml as parse_yaml
from host.config.tree import to_plain as to_plain
from host.upstream import InvalidRequest, check_base_url, parse_proxy

SectionT = typing.TypeVar("SectionT", bound=Section)
PLUGIN_ID: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
_HOST_KEYS: Final = ("enabled", "priority")
_DURATION_KEYS: Final = frozenset(
    {"connect", "first-byte", "idle", "session-affinity-ttl", "shutdown-timeout", "max-retry-interval", "upgrade-drain"}
    | {"ping-interval", "ping-unresponsive", "ping-kill", "hello-timeout"}
)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid config and what the operator should be told about it."""

    config: Config
    warnings: tuple[Problem, ...]
    text: str
    source: Source | None = field(default=None, repr=False, compare=False)
    """What was read, for reading the next text of the file."""
    dropped: tuple[sanitise.Dropped, ...] = field(default=(), repr=False, compare=False)
    """The entries of the file's lists that are not used."""


def load_config(path: str | os.PathLike[str], *, before: LoadedConfig | None = None) -> LoadedConfig:
    """Read and check the file. Raises ConfigError; ConfigUnread for a file that is missing or no UTF-8 text.

    `before`: as for `parse_config`.
    """
    file = os.fspath(path)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = f"no such file; `jackfield init {os.path.dirname(file) or '.'}` writes one"
        raise ConfigUnread([Problem(file, 1, hint)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigUnread([Problem(file, 1, f"cannot be read: {error}")]) from None
    return parse_config(text, file=file, before=before)


def parse_config(text: str, *, file: str, before: LoadedConfig | None = None) -> LoadedConfig:
    """Check a config given as text; `file` names it in messages and its directory anchors relative paths.

    `before`: an earlier one, of which most is still true: only what differs is read and made anew, and the rest are the
    same objects. Raises ConfigError.
    """
    source = read_source(text, file, before.source if before is not None else None)
    tree = source.tree
    walk = _Walk(file)
    plain = walk.section(tree, Config, path="")
    if walk.problems:
        raise ConfigError(sorted(walk.problems, key=lambda problem: problem.line))
    plain["plugins"] = _plugin_sections(plain.get("plugins"), tree, walk, text)
    if walk.problems:
        raise ConfigError(walk.problems)
    plain["directory"] = os.path.dirname(os.path.abspath(file))
    try:
        config = msgspec.convert(plain, Config)
    except msgspec.ValidationError as error:
        raise ConfigError([walk.type_problem(tree, error)]) from None
    config, removed = sanitise.sanitise(config)
    warnings = [*walk.warnings, *(Problem(file, walk.line_of(tree, it.path), it.why) for it in removed)]
    return LoadedConfig(config, tuple(warnings), text, source, tuple(removed))


def parse_sections(text: str, kind: type[SectionT], *, file: str) -> tuple[SectionT, Callable[[str], int]]:
    """Another YAML file of the same kind as the config: its value, and the line of a path in it (`a.b[2].c`).

    As strict as `parse_config`. Raises ConfigError.
    """
    tree = read_tree(text, file)
    walk = _Walk(file)
    plain = walk.section(tree, kind, path="")
    if walk.problems:
        raise ConfigError(sorted(walk.problems, key=lambda problem: problem.line))
    try:
        value = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise ConfigError([walk.type_problem(tree, error)]) from None
    return value, lambda path: walk.line_of(tree, path)


@dataclass
class _Walk:
    """Compares the YAML tree with the struct tree, turning it into plain values on the way."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    warned: int = 0
    """How often there was a reason for a warning."""

    def section(self, node: Any, kind: type[Section], *, path: str) -> dict[str, Any]:
        if node is None:
            return {}
        if not isinstance(node, MapNode):
            return node  # type: ignore[no-any-return]  # the conversion names the type it expected
        known = _fields(kind)
        plain: dict[str, Any] = {}
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if (reason := no_effect(here)) is not None:
                self._warn(node, key, f"`{here}` {reason}")
            elif key not in known:
                self._unknown(node, key, here, known)
                continue
            if key in known and value is not None:
                # str: a quoted key is a subclass of str that msgspec does not take.
                plain[str(key)] = self._value(node, key, known[key], here)
        return plain

    def _warn(self, node: MapNode, key: Any, message: str) -> None:
        """Once per key, however many list items have it."""
        self.warned += 1
        if all(warning.message != message for warning in self.warnings):
            self.warnings.append(Problem(self.file, _line(node, key), message))

    def _unknown(self, node: MapNode, key: Any, here: str, known: Mapping[str, Any]) -> None:
        near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(sorted(known))}"
        self.problems.append(Problem(self.file, _line(node, key), f"unknown key `{here}`{hint}"))

    def _value(self, node: MapNode, key: str, hint: Any, path: str) -> Any:
        value = node[key]
        if key == "proxy-url":
            self._check_proxy(node, key, path)
        if key == "base-url":
            self._check_base_url(node, key, path)
        if key == "weight" and value is not None:
            self._check_weight(node, key, path)
        if key == "match-regexr":
            self._check_patterns(node, key, path)
        if key in _DURATION_KEYS or (path.startswith("plugins.policy.") and path.split(".")[-2] == "timeouts"):
            self._check_duration(node, key, path)
        if path == "remote-management.listen" and value != "":
            self._check_listen(node, key, path)
        if path == "plugins.configs":
            return value  # free-form; read by _plugin_sections
        if path == "api-keys":
            return [{"key": item} if isinstance(item, str) else item for item in value or ()]
        inner = _section_type(hint)
        if inner is None:
            return to_plain(value)
        kind, shape = inner
        if shape == "list" and isinstance(value, SeqNode):
            return self._sections(value, kind, path=path)
        if shape == "map" and isinstance(value, MapNode):
            return {str(name): self.section(item, kind, path=f"{path}.{name}") for name, item in value.items()}
        if shape == "map of lists" and isinstance(value, MapNode):
            return {str(name): self._sections(items, kind, path=f"{path}.{name}") for name, items in value.items()}
        return self.section(value, kind, path=path) if shape == "one" else to_plain(value)

    def _sections(self, items: Any, kind: type[Section], *, path: str) -> Any:
        if not isinstance(items, SeqNode):
            return to_plain(items) if items is not None else []
        return [self._item(item, kind, path) for item in items]

    def _item(self, item: Any, kind: type[Section], path: str) -> Any:
        """One item of a list; that of an earlier configuration where it is the same and there is nothing to say."""
        if not isinstance(item, MapNode):
            return self.section(item, kind, path=path)
        if item.kept is not None and item.kept[0] == path:
            return item.kept[1]
        said = self.warned, len(self.problems)
        plain = self.section(item, kind, path=path)
        try:
            made = msgspec.convert(plain, kind)
        except msgspec.ValidationError:
            return plain  # the conversion of the whole says where
        if said == (self.warned, len(self.problems)):
            item.kept = path, made
        return made

    def _check_weight(self, node: MapNode, key: str, path: str) -> None:
        value = node[key]
        if isinstance(value, bool) or not isinstance(value, int) or value > MAX_WEIGHT:
            message = f"`{path}` must be a whole number of at most {MAX_WEIGHT}"
            self.problems.append(Problem(self.file, _line(node, key), message))

    def _check_patterns(self, node: MapNode, key: str, path: str) -> None:
        for pattern in node[key] if isinstance(node[key], SeqNode) else ():
            try:
                re.compile(str(pattern))
            except re.error as error:
                message = f"`{path}`: {pattern!r} is no regular expression: {error}"
                self.problems.append(Problem(self.file, _line(node, key), message))

    def _check_duration(self, node: MapNode, key: str, path: str) -> None:
        try:
            values.seconds(node[key])
        except (ValueError, AttributeError) as error:
            self.problems.append(Problem(self.file, _line(node, key), f"`{path}`: {error}"))

    def _check_listen(self, node: MapNode, key: str, path: str) -> None:
        try:
            values.listen_address(str(node[key]))
        except ValueError as error:
            self.problems.append(Problem(self.file, _line(node, key), f"`{path}`: {error}"))

    def _check_proxy(self, node: MapNode, key: str, path: str) -> None:
        try:
            parse_proxy(str(node[key]) or None)
        except InvalidRequest as error:
            self.problems.append(Problem(self.file, _line(node, key), f"`{path}`: {error}"))

    def _check_base_url(self, node: MapNode, key: str, path: str) -> None:
        written = node[key]
        try:
            if isinstance(written, str) and written.strip():
                check_base_url(written.strip())
        except InvalidRequest as error:
            message = f"`{path}`: {error}; write it like https://api.example.com/v1"
            self.problems.append(Problem(self.file, _line(node, key), message))

    def check_host_keys(self, node: MapNode, path: str) -> None:
        """`enabled` and `priority` belong to the host in every plugin's section."""
        for key, kind, what in (("enabled", bool, "true or false"), ("priority", int, "a whole number")):
            if key in node and (not isinstance(node[key], kind) or (kind is int and isinstance(node[key], bool))):
                self.problems.append(Problem(self.file, _line(node, key), f"`{path}.{key}` must be {what}"))

    def type_problem(self, tree: MapNode, error: msgspec.ValidationError) -> Problem:
        """msgspec says where in its message (`… - at `$.tls.enable``); the line is looked up along that path."""
        what, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").lstrip(".")
        shown = f"`{path}`: " if path else ""
        return Problem(self.file, self.line_of(tree, path), f"{shown}{what[:1].lower()}{what[1:]}")

    def line_of(self, tree: MapNode, path: str) -> int:
        """Line of the deepest node of `path` (`a.b[2].c`) that exists."""
        node: Any = tree
        line = 1
        for part in _path_parts(path):
            if isinstance(node, MapNode) and isinstance(part, str) and part in node:
                line = _line(node, part)
            elif isinstance(node, SeqNode) and isinstance(part, int) and part < len(node):
                line = node.lines[part] + 1
            else:
                break
            node = node[part]
        return line


def _path_parts(path: str) -> Iterator[str | int]:
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        yield int(index) if index else name


def _line(node: MapNode, key: Any) -> int:
    return node.lines[key] + 1


@functools.cache
def _fields(kind: type[Section]) -> Mapping[str, Any]:
    """Key of the file -> type of its value."""
    hints = typing.get_type_hints(kind)
    return {
        name: hints[attribute]
        for attribute, name in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        if not (kind is Config and attribute == "directory")
    }


@functools.cache
def _section_type(hint: Any) -> tuple[type[Section], str] | None:
    """The Section behind a type hint, and whether it stands alone, in a list, in a map or in a map of lists."""
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint, "one"
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) or not arguments:
        return None
    last = arguments[-1]
    if len(arguments) == 2 and typing.get_origin(last) is Sequence and (found := _section_type(last)) is not None:
        return found[0], "map of lists"
    if not (isinstance(last, type) and issubclass(last, Section)):
        return None
    return last, "map" if len(arguments) == 2 else "list"


def _plugin_sections(plugins: Any, tree: MapNode, walk: _Walk, text: str) -> Any:
    """`plugins.configs` as PluginSection values: the host's two keys apart from what belongs to the plugin."""
    if not isinstance(plugins, dict):
        return plugins if plugins is not None else {}
    configs = plugins.get("configs") or {}
    if not isinstance(configs, MapNode):
        return plugins
    if configs.kept is not None:
        return {**plugins, "configs": configs.kept[1]}
    commented = _with_comments(text, tree, walk.file)["plugins"]["configs"]
    sections: dict[str, Any] = {}
    for (plugin_id, node), as_written in zip(configs.items(), commented.values(), strict=True):
        line = _line(configs, plugin_id)
        if not PLUGIN_ID.match(str(plugin_id)):
            walk.problems.append(Problem(walk.file, line, f"`{plugin_id}` is no plugin id ({PLUGIN_ID.pattern})"))
            continue
        node = node if node is not None else MapNode()
        if not isinstance(node, MapNode):
            walk.problems.append(Problem(walk.file, line, f"`plugins.configs.{plugin_id}` must be a mapping"))
            continue
        host_part = {key: node[key] for key in _HOST_KEYS if key in node}
        walk.check_host_keys(node, f"plugins.configs.{plugin_id}")
        own = {str(key): to_plain(value) for key, value in node.items() if key not in _HOST_KEYS}
        shown = _section_text(as_written if as_written is not None else CommentedMap())
        sections[str(plugin_id)] = {**host_part, "config": own, "config-yaml": shown}
    if not walk.problems:
        configs.kept = "plugins.configs", sections
    return {**plugins, "configs": sections}


def _section_text(node: CommentedMap) -> str:
    """The section re-serialised; `enabled` and `priority` are appended only where absent (spec plugin-abi 1.1)."""
    if node.fa.flow_style():
        # `{a: 1}` on one line: further keys cannot simply be written below it.
        node = CommentedMap(to_plain(node))
    text = dump_subtree(node) if node else ""
    for key, default in zip(_HOST_KEYS, ("false", "0"), strict=True):
        if key not in node:
            text += f"{key}: {default}\n"
    return text.strip() + "\n"


def _with_comments(text: str, tree: MapNode, file: str) -> CommentedMap:
    """The part `plugins` with its comments."""
    try:
        return parse_part(text, tree, "plugins", file)
    except ConfigError:
        # Valid, and the library has no place for one of the comments.
        return CommentedMap({"plugins": _commented(tree["plugins"])})


def _commented(value: Any) -> Any:
    """A node to be written, of plain values."""
    return CommentedMap({key: _commented(item) for key, item in value.items()}) if isinstance(value, dict) else value


def section_of(config: Config, plugin_id: str) -> PluginSection:
    """The plugin's section, or the one an unconfigured plugin has."""
    found = config.plugins.configs.get(plugin_id)
    return found if found is not None else PluginSection(config_yaml="enabled: false\npriority: 0\n")
