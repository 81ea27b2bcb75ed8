"""`jackfield plugins remove|verify|lock|search`: about what is installed, and what there is to install."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click
import msgspec

from host import control
from host.app import discover_plugins
from host.cli_plugins import change_file, problem_of
from host.config.edit import remove_value
from host.install.lock import LockEntry, changed_lock, difference_from, folder_of, folder_text, read_lock
from host.install.obtain import REGISTRY_TIMEOUT_S, Listing, load_registries
from host.install.place import staging, take_away
from host.install.registry import RegistryPlugin, Source
from host.install.site import Refused, Site
from host.install.text import clean
from host.install.tree import LINK, SPECIAL, Tree, scan
from host.install.versions import is_update
from host.installing import brought_up, confirm, damage_of, now_text, reported, site_of
from host.management.calls import ManagementError

DRAIN_TIMEOUT_S: Final = 120.0
"""A plugin that was disabled may finish its calls for seconds, not minutes."""


def remove_plugin(config_path: Path, plugin_id: str, *, yes: bool, forget: bool | None) -> int:
    """Let it finish, then delete it; its sections of the configuration too when `forget` (None: ask)."""
    return reported(lambda: _remove(site_of(config_path), plugin_id, yes=yes, forget=forget))


def verify_plugins(config_path: Path, plugin_id: str) -> int:
    """Compare installed plugins (or one) with the lock; 1 when a file differs."""
    return reported(lambda: _verify(site_of(config_path), plugin_id))


def lock_plugin(config_path: Path, plugin_id: str, *, yes: bool) -> int:
    """Accept a plugin's files as they are."""
    return reported(lambda: _lock(site_of(config_path), plugin_id, yes=yes))


def search_plugins(config_path: Path, text: str, *, source: str, as_json: bool) -> int:
    """Print what the registries offer; 1 when nothing could be read."""
    return reported(lambda: _search(site_of(config_path), text, source=source, as_json=as_json))


# -- remove


def _remove(site: Site, plugin_id: str, *, yes: bool, forget: bool | None) -> int:
    entry = site.entry(plugin_id)
    folder = folder_of(site.directory, entry)
    confirm(f"Remove {plugin_id} {entry.version} from {folder}?", yes=yes)
    if forget is None:
        forget = not yes and _has_sections(site, plugin_id) and click.confirm(f"Also its sections of {site.file}?")
    section = site.config.plugins.configs.get(plugin_id)
    if section is not None and section.enabled:
        _disable(site, plugin_id)
    with staging(folder.parent) as stage:
        take_away(site.directory, folder=folder, into=stage / "removed", plugin_id=plugin_id)
    if forget:
        for key in ("configs", "policy"):
            remove_value(site.file, ["plugins", key, plugin_id])
    click.echo(f"{plugin_id} is removed")
    data = site.data_dir(plugin_id)
    if data.exists():
        click.echo(f"What it stored is still in {data}")
    return 0


def _has_sections(site: Site, plugin_id: str) -> bool:
    plugins = site.config.plugins
    return plugin_id in plugins.configs or plugin_id in plugins.policy


def _disable(site: Site, plugin_id: str) -> None:
    """Disable it and wait until nothing of it runs in the running proxy. Raises Refused when that does not happen."""
    path = f"/plugins/{quote(plugin_id, safe='')}"
    answer = control.ask(site.file, "POST", f"{path}/disable", timeout_s=DRAIN_TIMEOUT_S)
    try:
        if answer is None:
            change_file(site.file, plugin_id, {"enabled": False})
            return
    except ManagementError as error:
        raise Refused(f"{plugin_id} cannot be disabled, so it stays: {error}") from None
    if answer[0] == 200 and answer[1].get("applied"):
        answer = control.ask(site.file, "GET", f"{path}/gone", timeout_s=DRAIN_TIMEOUT_S)
        if answer is None or answer[1].get("gone"):
            return
    raise Refused(f"{plugin_id} still runs, so it stays: {clean(problem_of(answer[1]))}")


# -- verify and lock


def _verify(site: Site, plugin_id: str) -> int:
    entries: Mapping[str, LockEntry] = read_lock(site.directory).plugins
    if plugin_id:
        entries = {plugin_id: site.entry(plugin_id)}
    if not entries:
        click.echo("no plugin was installed by `jackfield plugins install`")
    damaged = 0
    for name, entry in entries.items():
        damage = damage_of(entry, folder_of(site.directory, entry))
        click.echo(f"{name} {entry.version}: {'changed since it was installed' if damage else 'fine'}")
        for line in damage.lines():
            click.echo(f"  {clean(line)}")
        damaged += bool(damage)
    return 1 if damaged else 0


def _lock(site: Site, plugin_id: str, *, yes: bool) -> int:
    source = discover_plugins(site.config).source(plugin_id)
    if source is None or source.origin != "directory":
        raise Refused(f"there is no plugin {plugin_id} in {site.plugins_dir} that could be used")
    tree = scan(source.directory)
    _refuse_links(plugin_id, tree)
    old = read_lock(site.directory).plugins.get(plugin_id)
    if old is None:
        click.echo(f"{plugin_id} {source.manifest.version} in {source.directory}: {len(tree.files)} files")
    else:
        damage = difference_from(old, tree)
        if not damage:
            click.echo(f"{plugin_id} {old.version} is what was installed; there is nothing to accept")
            return 0
        for line in damage.lines():
            click.echo(f"  {clean(line)}")
    confirm("Accept these files from now on?", yes=yes)
    entry = LockEntry(
        version=source.manifest.version,
        folder=folder_text(site.directory, source.directory),
        tree=tree.digest,
        files=tree.files,
        installed_at=now_text(),
    )
    with changed_lock(site.directory) as change:
        change.put(plugin_id, entry)
    click.echo(f"{plugin_id} starts only with these files from now on")
    outcome = brought_up(site, plugin_id)
    if outcome is not None:
        click.echo(outcome.text, err=not outcome.runs)
    return 0 if outcome is None or outcome.runs else 1


def _refuse_links(plugin_id: str, tree: Tree) -> None:
    odd = [name for name, digest in tree.files.items() if digest in (LINK, SPECIAL)]
    if odd:
        raise Refused(f"{plugin_id} contains links or special files, which cannot be locked: {', '.join(odd[:3])}")


# -- search


def _search(site: Site, text: str, *, source: str, as_json: bool) -> int:
    sources = site.sources(source)
    if not sources:
        raise Refused("there is no registry to look in: give --source, or set `plugins.store-sources`")
    listing = asyncio.run(load_registries(sources, settings=site.settings(total_timeout_s=REGISTRY_TIMEOUT_S)))
    for _, message in listing.errors:
        click.echo(f"warning: {clean(message)}", err=True)
    installed = {plugin_id: entry.version for plugin_id, entry in read_lock(site.directory).plugins.items()}
    rows = [_row(origin, plugin, installed) for origin, plugin in _matching(listing, text)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
    elif rows:
        _print_rows(rows)
    elif listing.found or not listing.errors:
        click.echo(f"nothing found for {text!r}" if text else "the registries are empty")
    return 1 if listing.errors and not listing.found else 0


def _matching(listing: Listing, text: str) -> list[tuple[Source, RegistryPlugin]]:
    """Entries that have every word of `text` in some visible field."""
    words = text.lower().split()

    def fits(plugin: RegistryPlugin) -> bool:
        shown = " ".join((plugin.id, plugin.name, plugin.description, plugin.author, *plugin.tags)).lower()
        return all(word in shown for word in words)

    return [(origin, plugin) for origin, plugin in listing.found if fits(plugin)]


def _row(origin: Source, plugin: RegistryPlugin, installed: Mapping[str, str]) -> dict[str, str | bool | list[str]]:
    version = plugin.version or plugin.newest_version()
    here = installed.get(plugin.id, "")
    return {
        "id": plugin.id,
        "version": version,
        "installed_version": here,
        "update_available": is_update(here, version),
        "source_id": origin.id,
        "source_name": origin.name,
        "name": plugin.name,
        "description": plugin.description,
        "author": plugin.author,
        "repository": plugin.repository,
        "tags": list(plugin.tags),
    }


def _print_rows(rows: Sequence[Mapping[str, str | bool | list[str]]]) -> None:
    head = ("ID", "VERSION", "INSTALLED", "SOURCE", "DESCRIPTION")
    table = [head]
    for row in rows:
        here = str(row["installed_version"]) or "-"
        here += " (update)" if row["update_available"] else ""
        cells = (row["id"], row["version"] or "-", here, row["source_id"], row["description"])
        id_, version, installed, source, description = (clean(str(cell)) for cell in cells)
        table.append((id_, version, installed, source, description))
    widths = [max(len(cells[column]) for cells in table) for column in range(len(head) - 1)]
    for cells in table:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        click.echo("  ".join([*padded, cells[-1]]).rstrip())
