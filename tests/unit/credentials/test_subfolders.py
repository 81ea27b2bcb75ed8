"""`auth-dir-subfolders`: the same reader for files in folders, whose names are their paths."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.credentials import files
from host.credentials.editor import CredentialError
from host.credentials.listing import listing
from host.credentials.records import CredentialChange
from host.credentials.watch import AuthDirWatcher
from host.tasks import TaskGroup
from tests.support.auth_plugins import ScriptedAuth, record
from tests.support.auth_site import Site


def planted(tmp_path: Path, **config: object) -> Site:
    """Files beside, below, hidden and linked."""
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [record({}), record({})]}), **config)
    for folder in ("team/deep", ".locks"):
        (site.path / folder).mkdir(parents=True)
    site.put("a.json", note="top")
    for name in ("team/a.json", "team/deep/b.json", ".locks/hidden.json"):
        site.put(name, note=name)
    (site.path / "linked").symlink_to(site.path / "team")
    return site


async def test_files_in_folders_are_left_alone_unless_the_operator_wants_them(tmp_path):
    assert (await planted(tmp_path).opened()).ids() == ["a.json"]


async def test_a_file_in_a_folder_is_called_by_its_path_and_changed_under_that_name(tmp_path):
    site = await planted(tmp_path, auth_dir_subfolders=True).opened()
    assert site.ids() == ["a.json", "team/a.json", "team/deep/b.json"]
    await site.editor.patch("team/a.json", {"priority": 3})
    assert (site.read("team/a.json")["priority"], "priority" in site.read("a.json")) == (3, False)
    path, _ = await site.editor.save_for_plugin("team/a.json", {"type": "claude", "note": "saved"})
    assert path == str(site.path / "team" / "a.json")
    (site.path / "team" / "bad.json").write_text("[")
    await site.directory.refresh([str(site.path / "team" / "bad.json")])
    names = [entry["name"] for entry in await listing(site.manager, site.directory)]
    assert names == ["a.json", "team/a.json", "team/bad.json", "team/deep/b.json"]
    for name in ("team/bad.json", "team/a.json"):
        await site.editor.delete(name)
        assert not (site.path / name).exists()
    for name in ("team/new.json", "../team/deep/b.json", "team/deep/../deep/b.json"):
        with pytest.raises(CredentialError, match="invalid auth file name"):
            await site.editor.upload(name, b"{}")
    assert await site.editor.delete_all() == 2
    assert sorted(path.name for path in site.path.rglob("*.json")) == ["hidden.json"]


async def test_B11_a_file_in_a_folder_takes_all_its_credentials_along(tmp_path):
    site = planted(tmp_path, auth_dir_subfolders=True)
    site.put("team/multi.json", type="acme")
    await site.opened()
    assert {"team/multi.json#0", "team/multi.json#1"} < set(site.ids())
    await site.editor.delete("TEAM/multi.json")
    assert not any(found.startswith("team/multi") for found in site.ids())


async def test_a_folder_that_cannot_be_read_hides_only_its_own_files(tmp_path, monkeypatch):
    site, scandir = planted(tmp_path, auth_dir_subfolders=True), os.scandir

    def refusing(path: str) -> object:
        if path.endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", refusing)
    assert (await site.opened()).ids() == ["a.json", "team/a.json"]


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


async def test_folders_are_watched_whole_ones_that_come_and_go_and_the_switch_itself(tmp_path, tasks):
    site = await planted(tmp_path).opened()
    changed = asyncio.Event()

    def told(change: CredentialChange) -> None:
        changed.set()

    async def until(*ids: str) -> None:
        while site.ids() != list(ids):
            changed.clear()
            await changed.wait()

    site.manager.on_change = told
    watcher = AuthDirWatcher(site.directory)
    async with asyncio.timeout(60):
        tasks.start(watcher.run(), name="watch")
        await watcher.tried.wait()
        watcher.tried.clear()
        wanted = Site(tmp_path, auth_dir_subfolders=True).config
        await site.directory.apply_config(wanted)
        await until("a.json", "team/a.json", "team/deep/b.json")
        await watcher.tried.wait()
        site.put("team/c.json")
        await until("a.json", "team/a.json", "team/c.json", "team/deep/b.json")
        (site.path / "team").rename(tmp_path / "elsewhere")
        await until("a.json")
        (tmp_path / "elsewhere").rename(site.path / "back")
        await until("a.json", "back/a.json", "back/c.json", "back/deep/b.json")


async def test_a_directory_that_cannot_be_read_is_not_taken_over_and_nothing_is_lost(tmp_path, monkeypatch):
    site = await planted(tmp_path).opened()
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path == str(locked):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", refusing)
    with pytest.raises(PermissionError):
        await site.directory.apply_config(Site(tmp_path, auth_dir=str(locked)).config)
    assert (site.directory.directory, site.ids()) == (str(site.path), ["a.json"])
    assert await site.directory.load() == CredentialChange()


async def test_a_mounted_secret_that_is_swapped_as_a_whole_takes_effect(tmp_path, tasks):
    site = Site(tmp_path)
    changed = asyncio.Event()
    for version in ("..one", "..two"):
        (site.path / version).mkdir(parents=True)
        site.put(f"{version}/a.json", note=version)
    (site.path / "..data").symlink_to("..one")
    (site.path / "a.json").symlink_to("..data/a.json")
    await site.opened()
    site.manager.on_change = lambda change: changed.set()
    watcher = AuthDirWatcher(site.directory)
    async with asyncio.timeout(60):
        tasks.start(watcher.run(), name="watch")
        await watcher.tried.wait()
        assert site.manager.by_id["a.json"].note == "..one"
        (site.path / "..data_tmp").symlink_to("..two")
        (site.path / "..data_tmp").rename(site.path / "..data")
        await changed.wait()
    assert (site.ids(), site.manager.by_id["a.json"].note) == (["a.json"], "..two")
