"""What a plugin is, and what an upgrade changes, as lines for a terminal.

All of it comes from strangers, so nothing reaches the terminal that could move its cursor or reorder its text.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import asdict

from host.install.archive import Unpacked, requirement_name
from host.install.text import clean
from host.runtime.manifest import ConfigField, Manifest

_LABEL_WIDTH: Final = 13
_LIST_KEYS: Final = ("permissions", "http_hosts", "environment", "flags", "hooks", "config")
_LABELS: Final = {"http_hosts": "hosts", "runs": "runs as"}


def plugin_lines(unpacked: Unpacked) -> Iterator[str]:
    """What somebody has to know who is about to install this."""
    manifest = unpacked.manifest
    yield clean(f"{manifest.name or manifest.id} {manifest.version} ({manifest.id})")
    if manifest.description:
        yield f"  {clean(manifest.description)}"
    for label in ("author", "repository"):
        if value := getattr(manifest, label):
            yield _line(label, value)
    yield _line("files", f"{len(unpacked.tree.files)}, {_size(unpacked.total_bytes)}")
    for key, value in _facts(manifest).items():
        yield _line(_LABELS.get(key, key), ", ".join(value) if isinstance(value, tuple) else value)
    if unpacked.requires:
        yield _line("needs", ", ".join(f"{text}{_presence(text)}" for text in unpacked.requires))
    if unpacked.tags:
        yield _line("built for", ", ".join(unpacked.tags))
    if manifest.runtime == "inprocess":
        yield _line("note", "it wants to run inside the host, with all of its rights; it gets a process instead")


def difference_lines(old: Manifest, new: Manifest) -> Iterator[str]:
    """What an upgrade changes of what `plugin_lines` says, one line each; the version always."""
    yield _line("version", f"{old.version} -> {new.version}" if old.version != new.version else f"{new.version} again")
    before, after = _facts(old), _facts(new)
    for key in dict.fromkeys((*before, *after)):
        was, becomes = before.get(key, ""), after.get(key, "")
        if was == becomes:
            continue
        label = _LABELS.get(key, key)
        if key in _LIST_KEYS:
            gone = [f"-{word}" for word in was if word not in becomes]
            come = [f"+{word}" for word in becomes if word not in was]
            yield _line(label, " ".join(come + gone))
        else:
            yield _line(label, f"{was or 'default'} -> {becomes or 'default'}")


def wishes(manifest: Manifest, granted: Sequence[str]) -> list[str]:
    """Permissions that the plugin wants and does not have."""
    return sorted(set(manifest.permissions) - set(granted))


def _facts(manifest: Manifest) -> dict[str, str | tuple[str, ...]]:
    """What matters to an operator, without what is empty."""
    facts: dict[str, str | tuple[str, ...]] = {
        "runs": _runs_as(manifest),
        "hooks": manifest.methods,
        "permissions": tuple(manifest.permissions),
        "http_hosts": tuple(manifest.http_hosts),
        "environment": tuple(manifest.environment),
        "limits": ", ".join(f"{name} {value}" for name, value in asdict(manifest.limits).items() if value is not None),
        "timeouts": ", ".join(f"{method} {value}" for method, value in sorted(manifest.timeouts.items())),
        "on error": ", ".join(f"{method} {mode}" for method, mode in sorted(manifest.on_error.items())),
        "flags": tuple(f"--{flag.name}" for flag in manifest.flags),
        "config": tuple(_config_field(item) for item in manifest.config),
    }
    return {key: value for key, value in facts.items() if value}


def _runs_as(manifest: Manifest) -> str:
    if manifest.runtime == "inprocess" or not manifest.command:
        program = f"Python {manifest.entry}"
    else:
        program = " ".join(manifest.command)
    return f"a process: {program}" if manifest.runtime == "process" else f"part of the host: {program}"


def _config_field(item: ConfigField) -> str:
    remarks = [word for word, holds in (("required", item.required), ("secret", item.secret)) if holds]
    return f"{item.name} ({', '.join((item.type, *remarks))})"


def _presence(requirement: str) -> str:
    try:
        importlib.metadata.version(requirement_name(requirement))
    except importlib.metadata.PackageNotFoundError:
        return " (NOT INSTALLED; install it into the Python of Jackfield)"
    return ""


def _size(number: int) -> str:
    if number < 1024:
        return f"{number} bytes"
    return f"{number / 1024:.1f} KB" if number < 1024 * 1024 else f"{number / 1024 / 1024:.1f} MB"


def _line(label: str, text: str) -> str:
    return f"  {label.ljust(_LABEL_WIDTH)}{clean(text)}"
