"""The embedded default: memory that survives a restart in a file."""

import stat
from pathlib import Path

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


async def test_a_file_that_cannot_be_read_is_set_aside_and_counts_as_empty(tmp_path: Path):
    path = tmp_path / "values"
    path.write_bytes(b"\xc1")
    state = LocalState(path)
    await state.start()
    assert await state.store.items("a") == {}
    assert path.with_suffix(".broken").read_bytes() == b"\xc1"


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
