"""What `jackfield plugins shadow` does: shows the running proxy's comparison, or changes the configuration file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from host import control
from host.cli_options import told
from host.config.edit import remove_value, set_value
from host.config.load import ConfigError, load_config
from host.runtime.manifest import ManifestError, load_manifest


def summary(shadow: Mapping[str, Any]) -> str:
    """One line for the list of plugins."""
    counts = ", ".join(
        f"{shadow.get(name, 0)} {word}"
        for name, word in (
            ("equal", "equal"),
            ("different", "different"),
            ("error", "errors"),
            ("timeout", "timeouts"),
            ("dropped", "dropped"),
        )
    )
    reason = f" ({shadow['reason']})" if shadow.get("reason") else ""
    return f"shadow {shadow.get('version') or '-'} is {shadow.get('state')}{reason}: {counts}"


def show_shadow(config_path: Path, plugin_id: str, *, as_json: bool) -> int:
    """Print counts and examples."""
    answer = control.ask(config_path, "GET", f"/plugins/{quote(plugin_id, safe='')}")
    if answer is None:
        click.echo(f"no proxy runs on {config_path}; a shadow runs with one", err=True)
        return 1
    status, row = answer
    if status != 200:
        click.echo(f"no plugin {plugin_id!r}", err=True)
        return 1
    shadow = row.get("shadow")
    if not shadow:
        click.echo(f"{plugin_id} has no shadow; begin with: jackfield plugins shadow {plugin_id} DIRECTORY", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shadow)).decode())
        return 0
    click.echo(f"{plugin_id} {row.get('version')} serves; {summary(shadow)}, since {shadow['since']}")
    for method, counts in shadow["methods"].items():
        click.echo(f"  {method}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if shadow["refused"]:
        asked = ", ".join(f"{method} ({count})" for method, count in shadow["refused"].items())
        click.echo(f"  asked in vain, because it would have had an effect: {asked}")
    if shadow["last_error"]:
        click.echo(f"  last error: {shadow['last_error']}")
    for example in shadow["examples"]:
        click.echo(f"  {example['at']}  {example['method']}  request {example['request_id']}")
        for difference in example["differences"]:
            click.echo(f"    {difference['at']}: {difference['serving']} -> {difference['shadow']}")
        if (more := example["count"] - len(example["differences"])) > 0:
            click.echo(f"    and {more} more")
    return 0


def change_shadow(config_path: Path, plugin_id: str, *, directory: str | None) -> int:
    """Write the folder into the plugin's policy, or take it out; a running proxy picks it up."""
    keys = ("plugins", "policy", plugin_id, "shadow")
    try:
        load_config(config_path)
        if directory is None:
            found = remove_value(config_path, keys)
            click.echo(f"{plugin_id} has no shadow any more" if found else f"{plugin_id} had no shadow")
            return 0
        manifest = load_manifest(Path(directory))
        if manifest.id != plugin_id:
            click.echo(f"{directory} holds the plugin {manifest.id}, not {plugin_id}", err=True)
            return 1
        set_value(config_path, (*keys, "dir"), os.path.abspath(directory))
    except (ConfigError, ManifestError, OSError) as error:
        click.echo(told(error), err=True)
        return 1
    click.echo(f"{plugin_id} {manifest.version} gets copies of the calls of {plugin_id} now, and decides nothing")
    return 0
