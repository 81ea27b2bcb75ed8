"""A plugin's section of the configuration file: shown with its secrets masked, edited with its comments kept."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host.config.editable import move_last, open_tree
from host.config.load import ConfigError, LoadedConfig, parse_config, to_plain
from host.config.rewrite import rewrite
from host.config.secret_names import sounds_secret
from host.config.splice import spliced
from host.config.tree import read_tree
from host.management.calls import ManagementError
from host.runtime.manifest import Manifest, is_plugin_id
from host.runtime.resolve import MASK, masked_config, masked_value

_INT64: Final = range(-(2**63), 2**63)
_SECRET_WORDS: Final = ("key", "token", "secret", "passw", "credential", "auth")

Edit = Callable[[dict[Any, Any]], None]
"""Changes the section in place. Raises ManagementError; then nothing is written."""


@dataclass(frozen=True, slots=True)
class SecretFields:
    """Which fields of a section must not be shown."""

    names: frozenset[str]
    files: frozenset[str] = frozenset()
    """Those that name a file for the plugin to read, and to run maybe: written on the machine only."""

    @classmethod
    def of(cls, manifest: Manifest | None, section: Mapping[str, Any]) -> "SecretFields":
        """What the manifest marks; without one, every field that sounds like a secret."""
        if manifest is not None:
            return cls(manifest.secret_fields, manifest.file_fields)
        return cls(frozenset(name for name in section if any(word in name.lower() for word in _SECRET_WORDS)))

    def masked(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The section as it may be shown."""
        return masked_config(section, self.names)


def section_in(tree: Mapping[str, Any], plugin_id: str) -> Mapping[str, Any]:
    """The plugin's section as plain values, the host's own keys included; empty when there is none."""
    node: Any = tree
    for key in ("plugins", "configs", plugin_id):
        node = node.get(key) if isinstance(node, dict) else None
    plain: Mapping[str, Any] = to_plain(node) if isinstance(node, dict) else {}
    return plain


def read_section(file: Path, plugin_id: str) -> Mapping[str, Any]:
    """The same from the file. Raises ConfigError or OSError."""
    return section_in(read_tree(file.read_text(encoding="utf-8"), os.fspath(file)), plugin_id)


def edit_section(file: Path, plugin_id: str, edit: Edit, *, switch_on: bool = False) -> LoadedConfig:
    """Change one section and write the file back, comments and order of everything else kept.

    `switch_on` also sets `plugins.enabled`. Raises ManagementError 400 for a change that makes the file invalid,
    500 when the file is invalid already or cannot be written. Nothing is written then.
    """
    if not is_plugin_id(plugin_id):
        raise ManagementError(400, "invalid_plugin_id", f"{plugin_id!r} is no plugin id")
    name = os.fspath(file)

    def change(before: str) -> tuple[str, LoadedConfig]:
        try:
            present = parse_config(before, file=name)
            tree = open_tree(before, name, source=present.source)
            edit(_section_node(tree, plugin_id))
            if switch_on and tree["plugins"].get("enabled") is not True:
                tree["plugins"]["enabled"] = True
            text = spliced(before, tree)
        except ConfigError as error:
            raise ManagementError(500, f"failed to save config: {error}") from None
        try:
            return text, parse_config(text, file=name, before=present)
        except ConfigError as error:
            messages = "; ".join(problem.message for problem in error.problems)
            raise ManagementError(400, "invalid_config", messages) from None

    try:
        return rewrite(name, change)
    except (OSError, UnicodeDecodeError) as error:
        raise ManagementError(500, f"failed to save config: {error}") from None


def replaced_by(values: Mapping[str, Any], secrets: SecretFields, *, references: bool) -> Edit:
    """PUT: the section is `values`, keys in sorted order; keys that stay keep their comments."""

    def edit(section: dict[Any, Any]) -> None:
        before = to_plain(section)
        checked = {name: _value(name, values[name], before, secrets, references) for name in values}
        for name in section.keys() - checked.keys():
            del section[name]
        for name, value in checked.items():
            _set(section, name, value)
        for name in sorted(section):
            move_last(section, name)

    return edit


def merged_with(values: Mapping[str, Any], secrets: SecretFields, *, references: bool) -> Edit:
    """PATCH: a shallow merge; null deletes a key, the order of the others stays."""

    def edit(section: dict[Any, Any]) -> None:
        before = to_plain(section)
        for name, value in values.items():
            if value is None:
                section.pop(name, None)
            else:
                _set(section, name, _value(name, value, before, secrets, references))

    return edit


def _section_node(tree: dict[Any, Any], plugin_id: str) -> dict[Any, Any]:
    node = tree
    for key in ("plugins", "configs", plugin_id):
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    return node


def _set(section: dict[Any, Any], name: str, value: Any) -> None:
    """A value that is there already keeps its node, and with it its comments and quotes."""
    if name not in section or to_plain(section[name]) != value or type(to_plain(section[name])) is not type(value):
        section[name] = value


def _value(name: str, value: Any, before: Mapping[str, Any], secrets: SecretFields, references: bool) -> Any:
    """The value to write: a mask stands for what is there. Raises ManagementError for one that cannot be taken."""
    value = _unmasked(name, value, before.get(name), is_secret=name in secrets.names)
    if not references and value != before.get(name) and (name in secrets.files or has_reference(value)):
        raise ManagementError(
            400, "invalid_config", f"`{name}`: references to the environment and to files are written on the machine"
        )
    _check_numbers(name, value)
    return value


def _unmasked(name: str, value: Any, before: Any, *, is_secret: bool = False) -> Any:
    """The value with what masks stand for. Raises ManagementError for one that stands for nothing.

    An item of a list is recognised by all that is shown of it, wherever it stands by now.
    """
    if is_secret:
        if value == MASK and before is None:
            raise ManagementError(400, "invalid_config", f"`{name}` is masked and there is no value to keep")
        return before if value == MASK else value
    if isinstance(value, Mapping):
        known = before if isinstance(before, Mapping) else {}
        return {
            member: _unmasked(f"{name}.{member}", it, known.get(member), is_secret=sounds_secret(member))
            for member, it in value.items()
        }
    if isinstance(value, list):
        items = before if isinstance(before, list) else []
        return [
            next((item for item in items if masked_value(item) == it), None) or _unmasked(f"{name}[]", it, None)
            for it in value
        ]
    return value


def has_reference(value: Any) -> bool:
    """Whether `{env: …}` or `{file: …}` is in it: whoever may set one reads what the host may read."""
    if isinstance(value, Mapping):
        if len(value) == 1 and next(iter(value)) in ("env", "file"):
            return True
        return any(has_reference(member) for member in value.values())
    return isinstance(value, list) and any(has_reference(item) for item in value)


def _check_numbers(name: str, value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        raise ManagementError(400, "invalid_config", f"`{name}` has a whole number that needs more than 64 bits")
    members = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for member in members:
        _check_numbers(name, member)
