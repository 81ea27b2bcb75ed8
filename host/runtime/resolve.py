"""A plugin's own configuration: references to secrets resolved for the plugin, secrets masked for everybody else."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from host.config.model import Config, config_path
from host.config.secret_names import sounds_secret

MASK: Final = "***"
MAX_FILE_BYTES: Final = 1024 * 1024


class UnresolvedValue(Exception):
    """A reference to an environment variable or file that cannot be followed; the message names the key."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The values as the plugin gets them, and which texts among them are secret."""

    values: Mapping[str, Any]
    secrets: tuple[str, ...] = field(default=(), repr=False)


def resolve_config(
    plugin_id: str,
    values: Mapping[str, Any],
    config: Config,
    *,
    secret_fields: frozenset[str] = frozenset(),
    environment: Mapping[str, str] | None = None,
) -> ResolvedConfig:
    """Replace `{env: NAME}` and `{file: PATH}` at any depth by what they refer to; a file loses its last line break.

    Relative paths start at the directory of the configuration file. Raises UnresolvedValue.
    """
    host_environment = os.environ if environment is None else environment
    secrets: list[str] = []

    def resolved(value: Any, where: str) -> Any:
        reference = _reference(value)
        if reference is not None:
            text = _follow(*reference, where=where, config=config, environment=host_environment)
            secrets.append(text)
            return text
        if isinstance(value, Mapping):
            return {str(key): resolved(member, f"{where}.{key}") for key, member in value.items()}
        if isinstance(value, (list, tuple)):
            return [resolved(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return value

    base = f"plugins.configs.{plugin_id}"
    found = {str(key): resolved(value, f"{base}.{key}") for key, value in values.items()}
    for name in secret_fields & found.keys():
        secrets.extend(_texts(found[name]))
    return ResolvedConfig(found, tuple(dict.fromkeys(text for text in secrets if text)))


def masked_config(values: Mapping[str, Any], secret_fields: frozenset[str]) -> dict[str, Any]:
    """The configuration for display: secret fields as `***`, and so is what sounds secret inside of others; references
    stay as they were written."""
    return {
        key: masked_value(value, is_secret=True) if key in secret_fields else masked_value(value)
        for key, value in values.items()
    }


def masked_value(value: Any, *, is_secret: bool = False) -> Any:
    """One value for display: as a whole, or what has a secret's name inside of it."""
    if is_secret:
        return value if value in (None, "") or is_reference(value) else MASK
    if isinstance(value, Mapping):
        return {
            name: masked_value(member, is_secret=sounds_secret(str(name)) and not isinstance(member, bool))
            for name, member in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [masked_value(item) for item in value]
    return value


def is_reference(value: Any) -> bool:
    """Whether a value is `{env: NAME}` or `{file: PATH}`."""
    return _reference(value) is not None


def _reference(value: Any) -> tuple[str, str] | None:
    """`(kind, target)` of a reference: a map with the single key `env` or `file` and a text."""
    if isinstance(value, Mapping) and len(value) == 1:
        kind, target = next(iter(value.items()))
        if kind in ("env", "file") and isinstance(target, str):
            return kind, target
    return None


def _follow(kind: str, target: str, *, where: str, config: Config, environment: Mapping[str, str]) -> str:
    if kind == "env":
        if target not in environment:
            raise UnresolvedValue(f"{where}: the environment variable {target} is not set")
        return environment[target]
    path = Path(config_path(config, target))
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnresolvedValue(f"{where}: {path} is larger than {MAX_FILE_BYTES} bytes")
        return path.read_text("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UnresolvedValue(f"{where}: {path} is not UTF-8") from None
    except OSError as error:
        raise UnresolvedValue(f"{where}: {path} cannot be read: {error.strerror}") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
