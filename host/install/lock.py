"""`plugins.lock`, beside the configuration: what was installed, from where, and which files belong to it.

Only `jackfield plugins …` on this machine and the start of a locally enabled plugin write it; nothing over HTTP does.
An installed plugin is compared with its entry before each start. A plugin without an entry was put there by hand and
is not looked at.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from host.config.rewrite import write_atomically
from host.install.tree import Difference, Tree, difference, digest_of, remove_caches, scan
from host.runtime.discover import PluginSource

LOCK_NAME: Final = "plugins.lock"
LOCK_VERSION: Final = 1


class LockError(Exception):
    """`plugins.lock` cannot be used; the message says why and what to do."""


class LockEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One installed plugin."""

    version: str
    folder: str
    """Where it was unpacked; relative to the lock file when it lies below it."""
    tree: str
    """Digest over `files`."""
    files: Mapping[str, str]
    """Path below the folder to digest, as `host.install.tree.Tree.files`."""
    source: str = ""
    """The archive's path or URL; empty when the files were accepted as they lay there (`plugins lock`)."""
    archive: str = ""
    """`sha256:<hex>` of the archive."""
    registry: str = ""
    """The registry that named the archive: `plugins upgrade ID` asks it again."""
    installed_at: str = ""
    """RFC 3339."""


class PluginsLock(Struct, frozen=True, kw_only=True):
    """The whole file."""

    lock_version: int = LOCK_VERSION
    plugins: Mapping[str, LockEntry] = field(default_factory=dict)
    enabled_here: Sequence[str] = ()
    """Ids that somebody on this machine has enabled at some time; the management API may enable those again."""


def read_lock(config_dir: Path) -> PluginsLock:
    """The lock beside the configuration in `config_dir`; an empty one when there is none. Raises LockError."""
    path = config_dir / LOCK_NAME
    try:
        lock = msgspec.json.decode(path.read_bytes(), type=PluginsLock)
    except FileNotFoundError:
        return PluginsLock()
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise LockError(f"{path} is damaged ({error}); restore it from a backup, or remove it and reinstall") from None
    if lock.lock_version != LOCK_VERSION:
        raise LockError(f"{path} was written by another version of Jackfield (lock_version {lock.lock_version})")
    for plugin_id, entry in lock.plugins.items():
        if digest_of(entry.files) != entry.tree:
            raise LockError(f"{path} is damaged: the entry of {plugin_id} contradicts itself; reinstall {plugin_id}")
    return lock


@contextmanager
def changed_lock(config_dir: Path) -> Iterator["LockChange"]:
    """Read, change and write the lock while no other process does. Written only when something changed.

    Blocks while another process holds it. Raises LockError, and OSError when it cannot be written.
    """
    import fcntl

    # The folder itself is what is held: the file is replaced by every write.
    descriptor = os.open(config_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = read_lock(config_dir)
        change = LockChange(before)
        yield change
        if change.lock != before:
            text = msgspec.json.format(msgspec.json.encode(change.lock), indent=1).decode() + "\n"
            write_atomically(str(config_dir / LOCK_NAME), text)
    finally:
        os.close(descriptor)


class LockChange:
    """The lock while it is being changed; `lock` is what will be written."""

    def __init__(self, lock: PluginsLock) -> None:
        self.lock = lock

    def put(self, plugin_id: str, entry: LockEntry) -> None:
        """Add or replace an entry."""
        plugins = {**self.lock.plugins, plugin_id: entry}
        self.lock = replace(self.lock, plugins=dict(sorted(plugins.items())))

    def drop(self, plugin_id: str) -> None:
        """Forget a plugin, and that it was enabled."""
        plugins = {key: entry for key, entry in self.lock.plugins.items() if key != plugin_id}
        remembered = [key for key in self.lock.enabled_here if key != plugin_id]
        self.lock = replace(self.lock, plugins=plugins, enabled_here=remembered)

    def note_enabled(self, plugin_ids: Iterable[str]) -> None:
        """Remember that these were enabled on this machine."""
        self.lock = replace(self.lock, enabled_here=sorted({*self.lock.enabled_here, *plugin_ids}))


def note_enabled(config_dir: Path, plugin_ids: Iterable[str]) -> str | None:
    """Remember that these were enabled on this machine; the problem when that cannot be written. Blocks."""
    plugin_ids = set(plugin_ids)
    try:
        if not plugin_ids <= set(read_lock(config_dir).enabled_here):
            with changed_lock(config_dir) as change:
                change.note_enabled(plugin_ids)
    except (LockError, OSError) as error:
        return str(error)
    return None


def may_enable(config_dir: Path, plugin_id: str) -> str | None:
    """Whether an HTTP request may enable this plugin: None, or the sentence that says why not. Blocks; reads files.

    It may when the plugin was installed and its files are still those that were installed, or when it has been enabled
    on this machine before: by `jackfield plugins enable`, or in the configuration a proxy has run with.
    """
    try:
        lock = read_lock(config_dir)
    except LockError as error:
        return str(error)
    entry = lock.plugins.get(plugin_id)
    if entry is not None:
        return problem_of(plugin_id, entry, folder_of(config_dir, entry))
    if plugin_id in lock.enabled_here:
        return None
    return (
        f"{plugin_id} has never been enabled on the machine of the proxy; that is decided there, once: "
        f"jackfield plugins enable {plugin_id}"
    )


class Seals:
    """The check before each start: whether an installed plugin is still what was installed."""

    def __init__(self, config_dir: Path) -> None:
        self._config_dir: Final = config_dir

    def __call__(self, source: PluginSource) -> str | None:
        """Why this plugin must not start; None when it may. Blocks: every file of an installed plugin is read.

        Compiled Python in an installed plugin's folder is removed, because it could be anything's.
        """
        if source.origin != "directory":
            return None
        try:
            entry = read_lock(self._config_dir).plugins.get(source.plugin_id)
        except LockError as error:
            # Whether this one was installed or put there by hand cannot be known, so it is not run.
            return str(error)
        return None if entry is None else problem_of(source.plugin_id, entry, source.directory)


def problem_of(plugin_id: str, entry: LockEntry, folder: Path) -> str | None:
    """Why the files in `folder` are not those of `entry`, and what to do about it. Removes compiled Python."""
    try:
        tree = scan(folder)
        remove_caches(tree)
    except OSError as error:
        return f"its files cannot be checked: {error}"
    found = difference_from(entry, tree)
    if not found:
        return None
    return (
        f"its files are not those that were installed ({found.summary()}): "
        f"`jackfield plugins verify {plugin_id}` lists them, `jackfield plugins upgrade {plugin_id} ARCHIVE` brings "
        f"back what was published, `jackfield plugins lock {plugin_id}` accepts them as they are"
    )


def difference_from(entry: LockEntry, tree: Tree) -> Difference:
    """What separates a folder from what was installed."""
    return difference(entry.files, tree.files)


def folder_of(config_dir: Path, entry: LockEntry) -> Path:
    """Where an entry's files lie."""
    return config_dir / entry.folder


def folder_text(config_dir: Path, folder: Path) -> str:
    """A folder as an entry names it."""
    try:
        return folder.relative_to(config_dir).as_posix()
    except ValueError:
        return str(folder)
