"""What `jackfield plugins config|reset|logs` and `jackfield management key` do."""

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from host import control
from host.app import discover_plugins
from host.cli_options import told
from host.cli_plugins import change_file, problem_of, report_change
from host.config.edit import set_value
from host.config.load import ConfigError, load_config
from host.management.calls import ManagementError
from host.management.plugin_config import SecretFields, read_section
from host.management.secret import KEY_PATH, hash_key, weakness

KEY_PREFIX: Final = "jfm-"


def show_config(config_path: Path, plugin_id: str) -> int:
    """Print a plugin's section."""
    answer = control.ask(config_path, "GET", f"/plugins/{plugin_id}/config")
    if answer is not None and answer[0] != 200:
        click.echo(problem_of(answer[1]), err=True)
        return 1
    try:
        section = answer[1] if answer is not None else _section_of_file(config_path, plugin_id)
    except (ConfigError, OSError) as error:
        click.echo(str(error), err=True)
        return 1
    _print_json(section)
    return 0


def set_config(config_path: Path, plugin_id: str, name: str, text: str | None) -> int:
    """Set one value, or remove it; in the running proxy when there is one."""
    value = None if text is None else _value_of(text)
    answer = control.ask(config_path, "PATCH", f"/plugins/{plugin_id}/config", body={name: value}, timeout_s=120)
    done = f"{name} is {'removed' if text is None else 'set'} in plugins.configs.{plugin_id} of {config_path}"
    if answer is not None:
        return report_change(answer, done)
    try:
        change_file(config_path, plugin_id, {name: value})
    except (ConfigError, ManagementError) as error:
        click.echo(str(error), err=True)
        return 1
    click.echo(done)
    return 0


def reset_plugin(config_path: Path, plugin_id: str) -> int:
    """Ask the running proxy to start the plugin again."""
    answer = control.ask(config_path, "POST", f"/plugins/{plugin_id}/reset", timeout_s=120)
    if answer is None:
        click.echo(f"no proxy runs on {config_path}", err=True)
        return 1
    status, document = answer
    if status != 200:
        click.echo(problem_of(document), err=True)
        return 1
    ready = bool(document["ready"])
    reason = f": {document['reason']}" if document["reason"] else ""
    click.echo(f"{plugin_id} is {document['state']}{reason}", err=not ready)
    return 0 if ready else 1


def show_logs(config_path: Path, plugin_id: str, *, lines: int, as_json: bool) -> int:
    """Print what the plugin said last."""
    answer = control.ask(config_path, "GET", f"/plugins/{plugin_id}/logs?limit={lines}")
    if answer is None:
        click.echo(f"no proxy runs on {config_path}; what plugins say is kept in its memory only", err=True)
        return 1
    status, document = answer
    if status != 200:
        click.echo(problem_of(document), err=True)
        return 1
    if as_json:
        _print_json(document)
        return 0
    for line in document["lines"]:
        click.echo(_log_line(line))
    stderr: Sequence[str] = document["stderr"]
    if stderr:
        click.echo("standard error:")
    for text in stderr:
        click.echo(f"  {text}")
    if not document["lines"] and not stderr:
        click.echo(f"{plugin_id} has said nothing yet")
    return 0


def write_key(config_path: Path, key: str | None) -> int:
    """Write the hash of `key`, or of a new one, which is printed."""
    made = key is None
    key = key if key is not None else KEY_PREFIX + secrets.token_urlsafe(24)
    if (why := weakness(key)) is not None:
        click.echo(f"this key cannot be used: {why}", err=True)
        return 1
    try:
        load_config(config_path)
        set_value(config_path, KEY_PATH, hash_key(key))
    except (ConfigError, OSError) as error:
        click.echo(told(error), err=True)
        return 1
    if made:
        click.echo(key)
    click.echo(f"Its hash is in {config_path}; a running proxy picks it up.", err=True)
    return 0


def _section_of_file(config_path: Path, plugin_id: str) -> Mapping[str, Any]:
    section = read_section(config_path, plugin_id)
    source = discover_plugins(load_config(config_path).config).source(plugin_id)
    return SecretFields.of(source.manifest if source is not None else None, section).masked(section)


def _value_of(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _log_line(line: Mapping[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(line["at_s"]))
    fields = "  ".join(f"{name}={value}" for name, value in line["fields"].items())
    return f"{at} {line['level']:<7} {line['event']}  {fields}".rstrip()


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())
