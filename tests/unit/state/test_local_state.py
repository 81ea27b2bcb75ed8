"""The embedded default: memory that survives a restart in a file."""

import asyncio
import stat
from pathlib import Path

import pytest

from host.state import local
from host.state.local import LocalState


async def test_what_was_stored_is_there_after_a_restart_with_what_is_left_of_its_life(tmp_path: Path):
    path = tmp_path / "state" / "values"
    first = LocalState(path)
    await first.start()
    await first.store.set("a", "kept", b"\x00")
    await first.store.set("a", "short", b"1", ttl_s=0.000001)
    await first.store.increment("a", "n", 3, ttl_s=1000)
    await first.stop()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    second = LocalState(path)
    await second.start()
    assert await second.store.items("a") == {"kept": b"\x00", "n": b"3"}
    assert await second.store.increment("a", "n") == 4


@pytest.mark.parametrize("content", [b"\xc1", b"\x91\x94\xa1\xff\xa1k\xc4\x011\xc0"])
async def test_a_file_that_cannot_be_read_is_set_aside_and_counts_as_empty(tmp_path: Path, content: bytes):
    path = tmp_path / "values"
    path.write_bytes(content)
    state = LocalState(path)
    await state.start()
    assert await state.store.items("a") == {}
    assert path.with_suffix(".broken").read_bytes() == content


async def test_what_could_not_be_written_is_written_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(local, "WRITE_DELAY_S", 0.0)
    monkeypatch.setattr(local, "RETRY_S", 0.0)
    path, refused, replace = tmp_path / "values", asyncio.Event(), local._replace
    loop = asyncio.get_running_loop()

    def full(target: Path, rows: list[local._Row]) -> None:
        if not refused.is_set():
            loop.call_soon_threadsafe(refused.set)
            raise OSError(28, "No space left on device")
        replace(target, rows)

    monkeypatch.setattr(local, "_replace", full)
    state = LocalState(path)
    await state.store.set("a", "k", b"1")
    async with asyncio.timeout(10):
        await refused.wait()
        await state.stop()
    again = LocalState(path)
    await again.start()
    assert await again.store.get("a", "k") == b"1"


async def test_nothing_is_written_when_nothing_changed(tmp_path: Path):
    path = tmp_path / "values"
    state = LocalState(path)
    await state.start()
    assert await state.store.get("a", "k") is None
    assert await state.store.delete("a", "k") is False
    await state.stop()
    assert not path.exists()


async def test_a_single_node_is_always_available_and_alone():
    state = LocalState(None)
    called: list[bool] = []
    state.on_available(lambda: called.append(True))
    assert (state.available, state.nodes, called) == (True, 1, [True])
    assert await state.publish("t", b"x") is True
