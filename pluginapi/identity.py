"""Who a plugin is: from its class, else from the `plugin.toml` beside it."""

import inspect
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pluginapi.plugin import Plugin, failure_modes_of

MANIFEST_NAME: Final = "plugin.toml"
PLUGIN_DIR_VARIABLE: Final = "JACKFIELD_PLUGIN_DIR"


class IdentityError(Exception):
    """A plugin without id, or whose class and manifest disagree; the text says what to write where."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What hello says about the plugin, and how the host expects to talk to it."""

    plugin_id: str
    version: str | None
    protocol: Literal["json", "grpc"] = "json"
    fails_open: tuple[str, ...] = ()
    """Hooks that the class wants to fail closed although the manifest, which alone counts while the process is down,
    does not say so."""


def identity_of(plugin_class: type[Plugin], *, directory: Path | None = None) -> Identity:
    """The class's `id` and `version`, completed from `plugin.toml` in `directory`.

    Without `directory`: the folder in JACKFIELD_PLUGIN_DIR, else the one of the class's source file. Raises
    IdentityError.
    """
    manifest_path = (directory or _directory_of(plugin_class)) / MANIFEST_NAME
    manifest = _read(manifest_path)
    manifest_id, manifest_version = str(manifest.get("id", "")), str(manifest.get("version", ""))
    plugin_id = plugin_class.id or manifest_id
    if not plugin_id:
        raise IdentityError(f"{plugin_class.__name__} has no id: set `id` in the class or in {manifest_path}")
    if manifest_id and manifest_id != plugin_id:
        raise IdentityError(f"{plugin_class.__name__} says it is {plugin_id!r}, {manifest_path} says {manifest_id!r}")
    protocol: Literal["json", "grpc"] = "grpc" if manifest.get("protocol") == "grpc" else "json"
    return Identity(
        plugin_id=plugin_id,
        version=plugin_class.version or manifest_version or None,
        protocol=protocol,
        fails_open=_fails_open(plugin_class, manifest) if manifest else (),
    )


def declared_id() -> str:
    """The id in the `plugin.toml` of the folder a plugin is started in; empty when there is none."""
    return str(_read(Path(os.environ.get(PLUGIN_DIR_VARIABLE) or Path.cwd()) / MANIFEST_NAME).get("id", ""))


def _fails_open(plugin_class: type[Plugin], manifest: dict[str, object]) -> tuple[str, ...]:
    declared = manifest.get("on_error")
    modes = declared if isinstance(declared, dict) else {}
    wanted = failure_modes_of(plugin_class)
    return tuple(method for method, mode in wanted.items() if mode == "fail" and modes.get(method) != "fail")


def _directory_of(plugin_class: type[Plugin]) -> Path:
    if given := os.environ.get(PLUGIN_DIR_VARIABLE):
        return Path(given)
    try:
        return Path(inspect.getfile(plugin_class)).resolve().parent
    except (OSError, TypeError):
        # A class made at a prompt has no file.
        return Path.cwd()


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise IdentityError(f"{path}: {error}") from error
