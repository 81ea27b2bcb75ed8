"""What is tested: a command, or a plugin's folder with what its `plugin.toml` says."""

import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

from pluginapi.cases import CASES_NAME, CaseFile, read_cases
from pluginapi.commands import PASSED_ENVIRONMENT, ProgramNotFound, resolve_words, uses_this_python

MANIFEST_NAME: Final = "plugin.toml"

Protocol: TypeAlias = Literal["json", "grpc"]
Transport: TypeAlias = Literal["stdio", "unix"]


class TargetError(Exception):
    """Nothing that could be started; the text says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How to start the plugin, and what is known about it before it says anything."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    work_dir: Path | None = None
    """None: an empty directory, as a host gives each plugin one for its data."""
    plugin_id: str | None = None
    """None: whatever the hello says."""
    protocol: Protocol = "json"
    transport: Transport = "stdio"
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    permissions: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    cases: CaseFile = field(default_factory=CaseFile)
    """The author's own, from `cases.json` in the folder."""

    @property
    def carrier(self) -> str:
        """For people: `json over stdio`, `json over a socket`, `grpc`."""
        if self.protocol == "grpc":
            return "grpc"
        return "json over stdio" if self.transport == "stdio" else "json over a socket"

    @property
    def over_socket(self) -> bool:
        return self.protocol == "grpc" or self.transport == "unix"


def target_of_command(
    command: Sequence[str], *, protocol: Protocol = "json", transport: Transport = "stdio", plugin_id: str | None = None
) -> Target:
    """A command as typed: in this directory and with this environment. Raises TargetError."""
    if not command:
        raise TargetError("there is no command after --")
    return Target(
        command=tuple(command),
        environment=dict(os.environ),
        work_dir=Path.cwd(),
        plugin_id=plugin_id,
        protocol=protocol,
        transport=transport,
    )


def target_of_folder(path: Path, *, protocol: Protocol | None = None) -> Target:
    """A plugin's folder (or its `plugin.toml`), started as a host would. `protocol` overrides the manifest's.

    A plugin for in-process use is started as a process: its class is the same. Raises TargetError.
    """
    directory = (path.parent if path.name == MANIFEST_NAME else path).absolute()
    manifest = _read(directory / MANIFEST_NAME)
    plugin_id = manifest.get("id")
    if not isinstance(plugin_id, str) or not plugin_id:
        raise TargetError(f"{directory / MANIFEST_NAME}: the key 'id' is missing")
    command, uses_our_python = _command(directory, manifest)
    environment = _environment(directory, _words(manifest, "environment"))
    if uses_our_python:
        environment["PYTHONPATH"] = os.pathsep.join((str(directory), _directory_of_pluginapi()))
    spoken = protocol or ("grpc" if manifest.get("protocol") == "grpc" else "json")
    inputs = manifest.get("inputs")
    return Target(
        command=command,
        environment=environment,
        plugin_id=plugin_id,
        protocol=spoken,
        transport="unix" if manifest.get("transport") == "unix" else "stdio",
        inputs=cast(Mapping[str, Sequence[str]], inputs) if isinstance(inputs, dict) else {},
        permissions=_words(manifest, "permissions"),
        config=_defaults(manifest),
        cases=_cases(directory),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TargetError(f"there is no {path}; give a plugin's folder, or a command after --") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TargetError(f"{path}: {error}") from error


def _cases(directory: Path) -> CaseFile:
    try:
        return read_cases(directory / CASES_NAME)
    except FileNotFoundError:
        return CaseFile()
    except (OSError, ValueError) as error:
        raise TargetError(str(error)) from error


def _words(manifest: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = manifest.get(key, [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TargetError(f"{MANIFEST_NAME}: {key} is a list of strings")
    return tuple(words)


def _defaults(manifest: Mapping[str, Any]) -> dict[str, Any]:
    fields = manifest.get("config", [])
    return {item["name"]: item["default"] for item in fields if isinstance(item, dict) and "default" in item}


def _command(directory: Path, manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The command with absolute paths, and whether it runs under this interpreter."""
    words = _words(manifest, "command")
    entry = manifest.get("entry")
    if words:
        try:
            return resolve_words(words, directory), uses_this_python(words)
        except ProgramNotFound as error:
            raise TargetError(str(error)) from None
    if isinstance(entry, str) and entry:
        return (sys.executable, "-P", "-m", "pluginapi.run", entry), True
    raise TargetError(f"{directory / MANIFEST_NAME}: there is neither a command nor an entry")


def _environment(directory: Path, wanted: Sequence[str]) -> dict[str, str]:
    environment = {name: os.environ[name] for name in (*PASSED_ENVIRONMENT, *wanted) if name in os.environ}
    environment.setdefault("PATH", os.defpath)
    environment["JACKFIELD_PLUGIN_DIR"] = str(directory)
    return environment


def _directory_of_pluginapi() -> str:
    return str(Path(__file__).resolve().parents[2])
