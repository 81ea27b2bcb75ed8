"""Where nobody tells of changes in the auth directory, they are found by looking."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.credentials import watch
from host.credentials.records import CredentialChange
from host.credentials.watch import AuthDirWatcher
from host.tasks import TaskGroup
from tests.support.auth_plugins import ScriptedAuth
from tests.support.auth_site import Site


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


async def test_what_no_event_tells_of_takes_effect_within_seconds(
    tmp_path: Path, tasks: TaskGroup, monkeypatch: pytest.MonkeyPatch
):
    def no_watches_left(*args: object, **kwargs: object) -> object:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(watch, "awatch", no_watches_left)
    site = Site(tmp_path, ScriptedAuth({}))
    site.put("a.json")
    site.put("b.json")
    await site.opened()
    changes: asyncio.Queue[CredentialChange] = asyncio.Queue()
    site.manager.on_change = changes.put_nowait
    watcher = AuthDirWatcher(site.directory, retry_s=3600.0, poll_s=0.01)
    tasks.start(watcher.run(), name="watch")
    tasks.start(watcher.poll(), name="poll")
    async with asyncio.timeout(60):
        await watcher.tried.wait()
        site.put("c.json")
        assert (await changes.get()).added == {"c.json"}
        site.put("a.json", note="another")
        assert "a.json" in (await changes.get()).ids
        os.unlink(site.path / "b.json")
        assert (await changes.get()).removed == {"b.json"}
        os.rename(site.path, tmp_path / "away")
        os.rename(tmp_path / "away", site.path)
        site.put("d.json")
        while "d.json" not in site.ids():
            await changes.get()
        assert site.ids() == ["a.json", "c.json", "d.json"]
        elsewhere = Site(tmp_path / "other", auth_dir="creds")
        elsewhere.path = tmp_path / "other" / "creds"
        elsewhere.path.mkdir(parents=True)
        await site.directory.apply_config(elsewhere.config)
        for name in ("e.json", "f.json"):  # the second is seen by a look that saw nothing of the directory before
            elsewhere.put(name)
            while name not in site.ids():
                await changes.get()
        assert site.ids() == ["e.json", "f.json"]
