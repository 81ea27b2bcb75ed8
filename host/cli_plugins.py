"""`jackfield check`, `explain` and `plugins …`: about a running proxy when there is one, otherwise about the file."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec
from msgspec.structs import replace

from host import control
from host.app import discover_plugins, public_listener_problem
from host.cli_check import keys_for_nobody, policies_for_nobody, unusable_files
from host.cli_flags import NATIVE
from host.cli_shadows import summary
from host.config.load import ConfigError, LoadedConfig, load_config
from host.config.model import Config
from host.flags.table import flag_table
from host.install.lock import Seals, note_enabled
from host.management.calls import ManagementError
from host.management.plugin_config import SecretFields, edit_section, merged_with
from host.management.secret import is_hashed, weakness
from host.observe.explain import TracedRequest, tree_lines
from host.runtime.bundled import bundled_needed
from host.runtime.discover import Discovery, why_missing
from host.runtime.policy import PolicyError, effective_policy
from host.runtime.status import status_of_source, statuses_of_unusable
from host.shadow.run import shadow_problems

Row = Mapping[str, Any]
STDERR_LINES: Final = 6
"""How much of a broken plugin's last output the table shows; `--json` has all that is kept."""


def check_config(config_path: Path) -> int:
    """Print what is wrong and what has no effect; 0 when the proxy would start."""
    loaded = _load(config_path)
    if loaded is None:
        return 1
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}")
    key = loaded.config.remote_management.secret_key
    if key and not is_hashed(key) and (why := weakness(key)) is not None:
        click.echo(f"warning: remote-management.secret-key is not taken, so there is no management API: {why}")
    enabled = {plugin_id for plugin_id, section in loaded.config.plugins.configs.items() if section.enabled}
    for broken in discover_plugins(loaded.config).broken:
        if broken.plugin_id not in enabled:
            click.echo(f"warning: plugin {broken.plugin_id} cannot be enabled: {broken.reason}")
    discovery = discover_plugins(loaded.config)
    options = flag_table(discovery, loaded.config, native=NATIVE, needed=bundled_needed)
    for left_out in (
        *options.warnings,
        *shadow_problems(loaded.config),
        *policies_for_nobody(loaded.config, discovery),
        *keys_for_nobody(loaded.config, discovery),
    ):
        click.echo(f"warning: {left_out}")
    problems = [*_plugin_problems(loaded.config, enabled), *unusable_files(loaded.config)]
    if (problem := public_listener_problem(loaded.config, has_frontend_auth=None)) is not None:
        problems.append(problem)
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if not problems:
        click.echo(f"{config_path}: fine")
    return 1 if problems else 0


def list_plugins(config_path: Path, *, as_json: bool) -> int:
    """Print one row per plugin."""
    answer = control.ask(config_path, "GET", "/plugins")
    if answer is not None:
        rows: Sequence[Row] = answer[1]["plugins"]
    else:
        loaded = _load(config_path)
        if loaded is None:
            return 1
        rows = _rows(loaded.config)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return 0
    click.echo(f"no proxy runs on {config_path}" if answer is None else f"the running proxy on {config_path}")
    _print_table(rows)
    return 0


def describe_plugin(config_path: Path, plugin_id: str) -> int:
    """Print the row of one plugin and its manifest; nothing is run."""
    loaded = _load(config_path)
    if loaded is None:
        return 1
    discovery = discover_plugins(loaded.config)
    source = discovery.source(plugin_id)
    if source is None:
        return _unknown(plugin_id, discovery)
    answer = control.ask(config_path, "GET", "/plugins")
    rows: Sequence[Row] = answer[1]["plugins"] if answer is not None else _rows(loaded.config)
    row = next((row for row in rows if row["id"] == plugin_id), {})
    manifest = msgspec.to_builtins(source.manifest)
    shown = {
        **row,
        "directory": str(source.directory),
        "manifest": {key: value for key, value in manifest.items() if value},
    }
    click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
    return 0


def set_enabled(config_path: Path, plugin_id: str, *, enabled: bool) -> int:
    """Write `enabled` into the plugin's section, and switch plugins on altogether when the first one is enabled."""
    loaded = _load(config_path)
    if loaded is None:
        return 1
    discovery = discover_plugins(loaded.config)
    source = discovery.source(plugin_id)
    if source is None:
        return _unknown(plugin_id, discovery)
    if source.origin == "bundled":
        click.echo(f"{plugin_id} is bundled: it runs when its section of the configuration needs it", err=True)
        return 1
    word = "enabled" if enabled else "disabled"
    answer = control.ask(config_path, "POST", f"/plugins/{plugin_id}/{word.removesuffix('d')}", timeout_s=120)
    try:
        if answer is None:
            change_file(config_path, plugin_id, {"enabled": enabled}, switch_on=enabled)
    except ManagementError as error:
        click.echo(str(error), err=True)
        return 1
    code = 0
    if answer is None:
        click.echo(f"{plugin_id} is {word} in {config_path}")
    else:
        code = report_change(answer, f"{plugin_id} is {word} in {config_path}")
    missing = sorted(set(source.manifest.permissions) - set(_granted(loaded.config, plugin_id)))
    if enabled and missing and code == 0:
        click.echo(f"It wishes for: {', '.join(missing)}. Grant it under plugins.policy.{plugin_id}.permissions.")
    return code


def change_file(config_path: Path, plugin_id: str, values: Mapping[str, Any], *, switch_on: bool = False) -> None:
    """Merge `values` into the plugin's section while no proxy runs. Raises ManagementError."""
    loaded = load_config(config_path)
    source = discover_plugins(loaded.config).source(plugin_id)
    secrets = SecretFields.of(source.manifest if source is not None else None, values)
    changed = edit_section(config_path, plugin_id, merged_with(values, secrets, references=True), switch_on=switch_on)
    if source is not None and values.get("enabled") is True:
        problem = note_enabled(Path(changed.config.directory), [plugin_id])
        if problem is not None:
            click.echo(f"warning: {problem}", err=True)


def report_change(answer: tuple[int, Mapping[str, Any]], done: str) -> int:
    """Print what the running proxy made of a change; the exit code."""
    status, document = answer
    if status != 200:
        click.echo(problem_of(document), err=True)
        return 1
    if not document.get("applied"):
        click.echo(f"{done}, and the running proxy goes on as it was:", err=True)
        for problem in document.get("problems") or ("a newer configuration came first",):
            click.echo(f"  {problem}", err=True)
        return 1
    state, reason = document.get("state"), document.get("reason")
    found = f": it is {state}" if state else ""
    click.echo(f"{done}; the running proxy picks it up{found}{f' ({reason})' if reason and state != 'ready' else ''}")
    return 0


def problem_of(document: Mapping[str, Any]) -> str:
    """What an error answer of the running proxy says."""
    return str(document.get("message") or document.get("error"))


def reload_plugin(config_path: Path, plugin_id: str) -> int:
    """Ask the running proxy to load the plugin anew."""
    answer = control.ask(config_path, "POST", f"/plugins/{plugin_id}/reload", timeout_s=120)
    if answer is None:
        click.echo(f"no proxy runs on {config_path}; the plugin's files are read when one starts", err=True)
        return 1
    _, document = answer
    loaded = bool(document.get("loaded"))
    click.echo(document.get("outcome") or problem_of(document), err=not loaded)
    return 0 if loaded else 1


def explain_request(config_path: Path, request_id: str, *, as_json: bool) -> int:
    """Print the decisions of one request as a tree."""
    answer = control.ask(config_path, "GET", f"/requests/{quote(request_id, safe='')}")
    if answer is None:
        click.echo(f"no proxy runs on {config_path}; decisions are kept in its memory only", err=True)
        return 1
    status, document = answer
    if status != 200:
        click.echo(
            f"{problem_of(document)}; the latest requests only are, and only with `decision-trace: true`", err=True
        )
        return 1
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        click.echo("\n".join(tree_lines(msgspec.convert(document, TracedRequest))))
    return 0


def _load(config_path: Path) -> LoadedConfig | None:
    try:
        return load_config(config_path)
    except ConfigError as error:
        click.echo(str(error), err=True)
        return None


def _granted(config: Config, plugin_id: str) -> Sequence[str]:
    policy = config.plugins.policy.get(plugin_id)
    return policy.permissions if policy is not None else ()


def _unknown(plugin_id: str, discovery: Discovery) -> int:
    for broken in discovery.broken:
        if broken.plugin_id == plugin_id:
            click.echo(f"{plugin_id} cannot be used: {broken.reason}", err=True)
            return 1
    known = ", ".join(source.plugin_id for source in discovery.found)
    click.echo(f"no plugin {plugin_id!r}; there are: {known}", err=True)
    return 1


def _plugin_problems(config: Config, enabled: Set[str]) -> list[str]:
    discovery = discover_plugins(config)
    problems = [f"plugin {it.plugin_id}: {it.reason}" for it in discovery.broken if it.plugin_id in enabled]
    for source in discovery.found:
        try:
            effective_policy(source, config)
        except PolicyError as error:
            problems.append(f"plugin {source.plugin_id}: {error}")
    problems += [f"plugin {it}: {reason}" for it, reason in _changed_files(config, discovery).items() if it in enabled]
    known = {source.plugin_id for source in discovery.found} | {broken.plugin_id for broken in discovery.broken}
    missing = sorted(enabled - known)
    return [*problems, *(f"plugin {it} is enabled but was {why_missing(config, it)}" for it in missing)]


def _rows(config: Config) -> list[Row]:
    """What would run, from the file and the manifests alone."""
    discovery = discover_plugins(config)
    needed = bundled_needed(config)
    changed = _changed_files(config, discovery)
    statuses = [status_of_source(source, config, source.plugin_id in needed) for source in discovery.found]
    statuses = [
        replace(status, state="broken", reason=changed[status.id]) if status.id in changed else status
        for status in statuses
    ]
    rows: list[Row] = msgspec.to_builtins([*statuses, *statuses_of_unusable(discovery)])
    return rows


def _changed_files(config: Config, discovery: Discovery) -> dict[str, str]:
    """Installed plugins that would not start because of their files, with the reason."""
    check = Seals(Path(config.directory))
    found = {source.plugin_id: check(source) for source in discovery.found}
    return {plugin_id: problem for plugin_id, problem in found.items() if problem is not None}


def _print_table(rows: Sequence[Row]) -> None:
    head = ("ID", "VERSION", "STATE", "CARRIER", "CONFINED", "PERMISSIONS", "REASON")
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(head) - 1)]
    for cells, row in zip(table, ({}, *rows), strict=True):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        click.echo("  ".join([*padded, cells[-1]]).rstrip())
        for line in row.get("stderr", ())[-STDERR_LINES:]:
            click.echo(f"    | {line}")
        if row.get("shadow"):
            click.echo(f"    {summary(row['shadow'])}")


def _cells(row: Row) -> tuple[str, ...]:
    wanted, granted = row.get("permissions_wanted", []), row.get("permissions_granted", [])
    permissions = ",".join(name if name in granted else f"{name}(not granted)" for name in wanted) or "-"
    return (
        str(row["id"]),
        str(row.get("version") or "-"),
        str(row["state"]),
        str(row.get("carrier") or "-"),
        _confined(row.get("confinement")),
        permissions,
        str(row.get("reason") or ""),
    )


def _confined(report: Row | None) -> str:
    if not report:
        return "-"
    if not report.get("in_force"):
        return "no"
    missing = ", ".join(report.get("missing", ()))
    return f"all but {missing}" if missing else "yes"
