"""`jackfield plugins install|upgrade`: what they do and say.

An archive is fetched and unpacked into a hidden folder, shown, and only then moved to its place. Nothing of it runs
before it is enabled.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click

from host import control
from host.app import discover_plugins
from host.cli_options import told
from host.cli_plugins import problem_of, set_enabled
from host.config.load import ConfigError, load_config
from host.install.archive import ArchiveError, Unpacked, unpack
from host.install.download import DownloadError
from host.install.lock import LockEntry, LockError, difference_from, folder_of, folder_text, read_lock
from host.install.obtain import (
    REGISTRY_TIMEOUT_S,
    Obtained,
    checked_sha256,
    find_plugin,
    load_registries,
    obtain_artifact,
    obtain_file,
    obtain_url,
    wanted,
)
from host.install.place import place, staging
from host.install.registry import RegistryError, RegistryPlugin, Source, described
from host.install.show import difference_lines, plugin_lines, wishes
from host.install.site import Refused, Site
from host.install.text import clean
from host.install.tree import Difference, scan
from host.install.versions import is_update
from host.runtime.manifest import Manifest, ManifestError, load_manifest

RELOAD_TIMEOUT_S: Final = 120.0
_PLUGIN: Final = "plugin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the options of install and upgrade say."""

    sha256: str = ""
    source: str = ""
    enable: bool = False
    yes: bool = False


def install_plugin(config_path: Path, what: str, choices: Choices) -> int:
    """Fetch, check, show, ask, unpack, lock; enable only when told to. Returns the exit code."""
    return reported(lambda: _install(site_of(config_path), what, choices))


def upgrade_plugin(config_path: Path, plugin_id: str, what: str, choices: Choices) -> int:
    """The same in the place of what is installed: the difference is shown, and a failure keeps the old."""
    return reported(lambda: _upgrade(site_of(config_path), plugin_id, what, choices))


def reported(work: Callable[[], int]) -> int:
    try:
        return work()
    except (Refused, ConfigError, LockError, ArchiveError, DownloadError, RegistryError, OSError) as error:
        click.echo(f"error: {told(error)}", err=True)
        return 1


def site_of(file: Path) -> Site:
    return Site(file, load_config(file).config)


# -- install and upgrade


def _install(site: Site, what: str, choices: Choices) -> int:
    with staging(site.plugins_dir) as stage:
        got, unpacked = _fetched(site, what, stage, choices)
        manifest = unpacked.manifest
        target = site.plugins_dir / manifest.id
        _refuse_taken(site, manifest.id, target)
        _echo_origin(got)
        for line in plugin_lines(unpacked):
            click.echo(line)
        confirm(f"Install it into {target}?", yes=choices.yes)
        entry = _entry(site, got, unpacked, target)
        place(site.directory, staged=stage / _PLUGIN, target=target, plugin_id=manifest.id, entry=entry)
    click.echo(f"{manifest.id} {manifest.version} is installed in {target}")
    if choices.enable:
        return set_enabled(site.file, manifest.id, enabled=True)
    section = site.config.plugins.configs.get(manifest.id)
    if section is not None and section.enabled:
        outcome = brought_up(site, manifest.id)
        click.echo(outcome.text if outcome is not None else f"It runs when a proxy starts: {site.file} enables it.")
    else:
        click.echo(f"It does not run yet: jackfield plugins enable {manifest.id}")
    return 0


def _upgrade(site: Site, plugin_id: str, what: str, choices: Choices) -> int:
    entry = site.entry(plugin_id)
    target = folder_of(site.directory, entry)
    damage = damage_of(entry, target)
    with staging(target.parent) as stage:
        try:
            got, unpacked = _fetched(site, what or _Again(plugin_id, entry, damage=bool(damage)), stage, choices)
        except _NothingNewer as newest:
            click.echo(f"{plugin_id} {entry.version} is the newest: {newest}")
            return 0
        if unpacked.manifest.id != plugin_id:
            raise Refused(f"the archive contains {unpacked.manifest.id}, not {plugin_id}")
        if unpacked.tree.digest == entry.tree and not damage:
            click.echo(f"{plugin_id} {entry.version} is installed already, with the same files")
            return 0
        _echo_upgrade(got, unpacked, entry, target, damage)
        confirm(f"Replace {plugin_id} {entry.version} in {target}?", yes=choices.yes)
        new = _entry(site, got, unpacked, target)
        was_ready = state_of(site, plugin_id) == "ready"
        place(site.directory, staged=stage / _PLUGIN, target=target, plugin_id=plugin_id, entry=new)
        click.echo(f"{plugin_id} {new.version} is installed in {target}")
        outcome = brought_up(site, plugin_id)
        if outcome is None or outcome.runs:
            click.echo(outcome.text if outcome is not None else "No proxy that uses it is running.")
            _echo_missing(site, unpacked.manifest)
            return 0
        click.echo(outcome.text, err=True)
        if not was_ready:
            return 1
        # The old one goes on in the running proxy; after a restart it has to be there as well.
        place(site.directory, staged=stage / _PLUGIN, target=target, plugin_id=plugin_id, entry=entry)
    brought_up(site, plugin_id)
    raise Refused(f"{plugin_id} {entry.version} was put back, because {new.version} does not start")


@dataclass(frozen=True, slots=True)
class _Again:
    """Whatever the registry offers now for an installed plugin."""

    plugin_id: str
    entry: LockEntry
    damage: bool
    """Files differ from the installed ones, so that even the same version is worth having."""


class _NothingNewer(Exception):
    """The registry offers what is installed."""


def _fetched(site: Site, what: str | _Again, stage: Path, choices: Choices) -> tuple[Obtained, Unpacked]:
    """The archive and its content in `stage`. Raises whatever is wrong with either."""
    sha256 = checked_sha256(choices.sha256) if choices.sha256 else ""
    got = asyncio.run(_obtained(site, what, stage / "archive", sha256=sha256, source=choices.source))
    folder = stage / _PLUGIN
    folder.mkdir(mode=0o755)
    unpacked = unpack(got.archive, folder)
    manifest = unpacked.manifest
    if got.plugin_id and manifest.id != got.plugin_id:
        raise Refused(f"the registry calls it {got.plugin_id}, the archive {manifest.id}")
    if got.version and manifest.version != got.version:
        raise Refused(f"the registry says version {got.version}, the archive {manifest.version}")
    return got, unpacked


async def _obtained(site: Site, what: str | _Again, into: Path, *, sha256: str, source: str) -> Obtained:
    settings = site.settings()
    if isinstance(what, _Again):
        origin = source or what.entry.registry
        where, plugin = await _looked_up(site, what.plugin_id, origin)
        artifact = plugin.artifact()
        if not what.damage and not is_update(what.entry.version, artifact.version):
            raise _NothingNewer(f"{described(where)} offers {artifact.version or 'no version'}")
        return await obtain_artifact(where, plugin, artifact, into, sha256=sha256, settings=settings)
    asked = wanted(what)
    if asked.url:
        return await obtain_url(asked.url, into, sha256=sha256, settings=settings)
    if asked.path is not None:
        return obtain_file(asked.path, into, sha256=sha256)
    where, plugin = await _looked_up(site, asked.plugin_id, source)
    artifact = plugin.artifact(asked.version)
    return await obtain_artifact(where, plugin, artifact, into, sha256=sha256, settings=settings)


async def _looked_up(site: Site, plugin_id: str, source: str) -> tuple[Source, RegistryPlugin]:
    sources = site.sources(source)
    if not sources:
        raise Refused("there is no registry to look in: give --source, or set `plugins.store-sources`")
    settings = site.settings(total_timeout_s=REGISTRY_TIMEOUT_S)
    return find_plugin(await load_registries(sources, settings=settings), plugin_id)


def _refuse_taken(site: Site, plugin_id: str, target: Path) -> None:
    if plugin_id in read_lock(site.directory).plugins and target.exists():
        raise Refused(f"{plugin_id} is installed already: jackfield plugins upgrade {plugin_id} ARCHIVE")
    if target.exists():
        raise Refused(f"{target} is there already and was not installed; move it away first")
    source = discover_plugins(site.config).source(plugin_id)
    if source is not None:
        kind = {"bundled": "a bundled plugin", "entry_point": "an installed package"}.get(source.origin, "a plugin")
        raise Refused(f"{kind} in {source.directory} has the id {plugin_id} already")


def _entry(site: Site, got: Obtained, unpacked: Unpacked, target: Path) -> LockEntry:
    return LockEntry(
        version=unpacked.manifest.version,
        folder=folder_text(site.directory, target),
        tree=unpacked.tree.digest,
        files=unpacked.tree.files,
        source=got.source,
        archive=f"sha256:{got.sha256}",
        registry=got.registry,
        installed_at=now_text(),
    )


def now_text() -> str:
    """The time in UTC, as RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def damage_of(entry: LockEntry, folder: Path) -> Difference:
    """What separates the folder from what was installed; everything when it cannot be read."""
    try:
        return difference_from(entry, scan(folder))
    except OSError:
        return Difference(missing=tuple(sorted(entry.files)))


def _echo_origin(got: Obtained) -> None:
    click.echo(f"From {clean(got.source)}" + (f", named by {clean(got.registry)}" if got.registry else ""))
    click.echo(f"SHA-256 {got.sha256}")


def _echo_upgrade(got: Obtained, unpacked: Unpacked, entry: LockEntry, target: Path, damage: Difference) -> None:
    _echo_origin(got)
    old = _old_manifest(target)
    if old is None:
        lines: Iterator[str] = plugin_lines(unpacked)
    else:
        click.echo(f"{unpacked.manifest.id}: what changes")
        lines = difference_lines(old, unpacked.manifest)
    for line in lines:
        click.echo(line)
    if is_update(unpacked.manifest.version, entry.version):
        click.echo(f"  note         this is older than {entry.version}, which is installed")
    if damage:
        click.echo(f"  note         the installed files were changed since, and are lost ({clean(damage.summary())})")


def _echo_missing(site: Site, manifest: Manifest) -> None:
    """What the plugin wants and is not granted."""
    policy = site.config.plugins.policy.get(manifest.id)
    missing = wishes(manifest, policy.permissions if policy is not None else ())
    if missing:
        click.echo(f"It wishes for: {', '.join(missing)}. Grant it under plugins.policy.{manifest.id}.permissions.")


def _old_manifest(folder: Path) -> Manifest | None:
    try:
        return load_manifest(folder)
    except (ManifestError, OSError):
        return None


# -- the operator and the running proxy


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless told not to. Raises Refused when there is nobody to ask; a no ends the command."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("nobody can be asked here; read what is said above and repeat with --yes")
    click.confirm(question, abort=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the running proxy made of a plugin's new files."""

    runs: bool
    text: str


def state_of(site: Site, plugin_id: str) -> str | None:
    """The plugin's state in the running proxy; None when no proxy runs or it does not know the plugin."""
    answer = control.ask(site.file, "GET", "/plugins")
    rows = answer[1].get("plugins", ()) if answer is not None else ()
    return next((str(row["state"]) for row in rows if row["id"] == plugin_id), None)


def brought_up(site: Site, plugin_id: str) -> Outcome | None:
    """Let the running proxy load the plugin anew; None when none runs or the configuration does not enable it."""
    section = site.config.plugins.configs.get(plugin_id)
    if section is None or not section.enabled or not site.config.plugins.enabled:
        return None
    answer = control.ask(site.file, "POST", f"/plugins/{quote(plugin_id, safe='')}/reload", timeout_s=RELOAD_TIMEOUT_S)
    if answer is None:
        return None
    document = answer[1]
    return Outcome(bool(document.get("loaded")), clean(str(document.get("outcome") or problem_of(document))))
