"""Lock entries for folders that a test wrote itself."""

from pathlib import Path

from host.install.lock import LockEntry, changed_lock, folder_text
from host.install.tree import scan


def lock_folder(config_dir: Path, plugin_id: str, folder: Path, **fields: str) -> LockEntry:
    """Write an entry for `folder` as it is now, as if it had just been installed."""
    tree = scan(folder)
    entry = LockEntry(
        **{"version": "1.0.0", "folder": folder_text(config_dir, folder), **fields}, tree=tree.digest, files=tree.files
    )
    with changed_lock(config_dir) as change:
        change.put(plugin_id, entry)
    return entry
