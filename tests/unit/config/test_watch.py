"""Whatever way a configuration gets a new content, it is read again; whatever has no new content is not."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from host.config import watch as config_watch
from host.config.model import Config
from host.reload import Reloader

WAIT_S = 60.0


class Proxy:
    """In place of the proxy: reads the file, and refuses what is not valid."""

    registry: Any = None

    def __init__(self, file: Path) -> None:
        self.config_path = file
        self.config = Config()
        self.text = file.read_text()
        self.has_read = True
        self.reads: list[str] = []
        self.before_reading: list[Callable[[], object]] = []
        self.reading = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self._news = asyncio.Condition()

    def is_in_force(self, text: str) -> bool:
        return text == self.text

    async def reload_config(self) -> bool:
        if self.before_reading and self.reads:
            self.before_reading.pop()()
        text = self.config_path.read_text() if self.config_path.exists() else ""
        self.has_read = bool(text)
        self.reading.set()
        await self.may_go_on.wait()
        async with self._news:
            self.reads.append(text)
            self._news.notify_all()
        if text == "raises\n":
            raise RuntimeError(text)
        self.text = text if text.startswith("port: ") else self.text
        return self.text == text

    async def read(self, text: str) -> None:
        """Wait until it has read this."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: text in self.reads)


@asynccontextmanager
async def watched(file: Path, *, poll_s: float = 0.05) -> AsyncIterator[Proxy]:
    proxy = Proxy(file)
    reloader = Reloader(proxy, watch_plugins=False, poll_s=poll_s)
    async with asyncio.timeout(WAIT_S):
        await reloader.start()
    try:
        yield proxy
    finally:
        await reloader.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "config.yaml"
    path.parent.mkdir()
    path.write_text("port: 1\n")
    return path


def overwritten(file: Path, text: str) -> None:
    file.write_text(text)


def renamed_over(file: Path, text: str) -> None:
    beside = file.with_name(".config.yaml.tmp")
    beside.write_text(text)
    beside.rename(file)


def moved_away_and_written(file: Path, text: str) -> None:
    file.rename(file.with_name("config.yaml~"))
    file.write_text(text)


def removed_and_written(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


def truncated_and_filled(file: Path, text: str) -> None:
    with file.open("w") as out:
        out.flush()
        out.write(text)


def of_the_same_size_and_time(file: Path, text: str) -> None:
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def directory_replaced(file: Path, text: str) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    file.write_text(text)


def directory_swapped(file: Path, text: str) -> None:
    file.parent.rename(file.parent.with_name("old"))
    file.parent.mkdir()
    file.write_text(text)


WAYS = [
    overwritten,
    renamed_over,
    moved_away_and_written,
    removed_and_written,
    truncated_and_filled,
    of_the_same_size_and_time,
    directory_replaced,
    directory_swapped,
]


@pytest.mark.parametrize("way", WAYS)
async def test_a_new_content_is_read_however_it_came_there_and_so_is_the_one_after_it(
    file: Path, way: Callable[[Path, str], None]
):
    async with watched(file) as proxy:
        for port in (2, 3):
            way(file, f"port: {port}\n") if way is not directory_swapped or port == 2 else file.write_text("port: 3\n")
            await proxy.read(f"port: {port}\n")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A mounted ConfigMap: the file is a link into a link, and only that one is swapped."""
    directory = tmp_path / "etc"
    directory.mkdir()
    made: list[Path] = []

    def mount(text: str) -> Path:
        version = directory / f"..{len(made)}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        link = directory / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(directory / "..data")
        file = directory / "config.yaml"
        if made:
            shutil.rmtree(made[-1])
        else:
            file.symlink_to("..data/config.yaml")
        made.append(version)
        return file

    yield mount


@pytest.mark.parametrize("poll_s", [0.05, 60.0])
async def test_a_swapped_link_is_followed_again_and_again(mounted: Callable[[str], Path], poll_s: float):
    async with watched(mounted("port: 1\n"), poll_s=poll_s) as proxy:
        mounted("port: 2\n")
        await proxy.read("port: 2\n")
        if poll_s < 1:
            mounted("port: 3\n")
            await proxy.read("port: 3\n")


async def test_without_events_the_look_every_few_seconds_finds_it(file: Path, monkeypatch: pytest.MonkeyPatch):
    def no_watches_left(*args: object, **kwargs: object) -> object:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(config_watch, "awatch", no_watches_left)
    async with watched(file) as proxy:
        file.write_text("port: 2\n")
        await proxy.read("port: 2\n")


async def test_what_an_editor_leaves_beside_it_and_a_touch_are_no_change(file: Path):
    async with watched(file) as proxy:
        for name in ("config.yaml~", ".config.yaml.swp", "4913", "config.yaml.bak", "#config.yaml#"):
            file.with_name(name).write_text("port: 9\n")
        os.utime(file)
        renamed_over(file, "port: 1\n")
        file.write_text("port: 2\n")
        await proxy.read("port: 2\n")
        assert proxy.reads == ["port: 2\n"]


async def test_a_save_during_a_reload_is_applied_after_it_and_of_many_the_last(file: Path):
    async with watched(file) as proxy:
        proxy.may_go_on.clear()
        file.write_text("port: 2\n")
        async with asyncio.timeout(WAIT_S):
            await proxy.reading.wait()
        for port in (3, 4, 5):
            renamed_over(file, f"port: {port}\n")
        proxy.may_go_on.set()
        await proxy.read("port: 5\n")
        assert proxy.reads[0] == "port: 2\n"
        assert proxy.text == "port: 5\n"


async def test_a_refused_content_is_not_refused_again_by_whoever_looks_next_but_when_it_was_saved_again(file: Path):
    proxy = Proxy(file)
    reloader = Reloader(proxy, watch_plugins=False)
    file.write_text("refused\n")
    assert [reloader.is_news(file) for _ in range(3)] == [True, False, False]
    os.utime(file, ns=(1, 1))
    assert [reloader.is_news(file), reloader.is_news(file)] == [True, False]
    file.write_text("port: 1\n")
    assert not reloader.is_news(file)
    file.write_bytes(b"\xff")
    assert reloader.is_news(file)


async def test_a_file_that_was_away_when_it_was_to_be_read_is_read_when_it_is_back_as_it_was(file: Path):
    async with watched(file) as proxy:
        proxy.may_go_on.clear()
        renamed_over(file, "port: 2\n")
        async with asyncio.timeout(WAIT_S):
            await proxy.reading.wait()
        # What waits for the first reload judges what is there now, and reads it later.
        renamed_over(file, "port: 3\n")
        proxy.reading.clear()
        away = file.with_suffix(".away")
        proxy.before_reading.append(lambda: file.rename(away))
        proxy.may_go_on.set()
        await proxy.read("")
        away.rename(file)
        await proxy.read("port: 3\n")


async def test_a_refused_content_is_read_once_and_a_reload_that_fails_is_not_the_last(file: Path):
    async with watched(file) as proxy:
        file.write_text("refused\n")
        await proxy.read("refused\n")
        file.write_text("raises\n")
        await proxy.read("raises\n")
        file.write_text("port: 2\n")
        await proxy.read("port: 2\n")
        assert proxy.reads.count("refused\n") == 1
