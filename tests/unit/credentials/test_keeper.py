"""Cooldowns over a restart."""

import asyncio
import json
import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import CooldownBook, cause_of
from host.credentials.cooldown_files import CooldownFiles, file_name
from host.credentials.keeper import CooldownKeeper
from host.credentials.records import Credential
from host.registry.models import canonical
from host.state.cooldowns import CooldownRecord, CooldownSet, QuotaRecord
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody
from tests.support.cooldown_nodes import Counting
from tests.support.pipeline import Clock

NOW_S = 1_800_000_000.0


def text(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("vector", "auth_id", "path", "expected"),
    [
        ("G1", "nested/xai.json", "/auths/nested/xai.json", "nested/xai.cds"),
        ("G2", "x", "xai.json", "xai.cds"),
        ("G3", "x", "/elsewhere/outside.json", "outside.cds"),
        ("G5", "auth/id 5", "", "auth_id_5.cds"),
        ("odd", "///", "", "credential.cds"),
    ],
)
def test_the_file_of_a_credential_lies_beside_its_own_or_is_named_after_it(vector, auth_id, path, expected):
    assert file_name(auth_id, path, "/auths") == expected


def test_G4_a_path_that_leads_out_of_the_directory_is_rejected():
    with pytest.raises(ValueError, match="missing auth identity"):
        file_name("x", "../escape.json", "/auths")


class Node:
    """A book, what keeps it, and its two clocks."""

    def __init__(self, *ids: str, wall_s: float = NOW_S) -> None:
        self.clock = Clock()
        self.wall_s = wall_s
        self.book = CooldownBook(clock=self.clock)
        self.tasks = TaskGroup("test")
        self.usable: set[str] = set(ids or ("a",))
        self.keeper = CooldownKeeper(
            self.book, usable=self.credential, tasks=self.tasks, canonical=canonical, wall_clock=lambda: self.wall_s
        )

    def credential(self, credential_id: str) -> Credential | None:
        if credential_id not in self.usable:
            return None
        return Credential(id=credential_id, provider="p", label="", source_kind="file", path=f"{credential_id}.json")

    def fail(self, status: int = 429, *, name: str = "a", model: str = "m", **fields: Any) -> float:
        error = ErrorBody(http_status=status, **fields)
        return self.book.failed(name, model, classify(error), cause=cause_of(status, "code", "why"))

    def succeed(self, name: str = "a", model: str = "m") -> None:
        self.book.succeeded(name, model, began_s=self.clock(), seen_s=self.clock())

    def turn(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.wall_s += seconds
        self.book.tick()

    def rests(self, name: str = "a", model: str = "m") -> float:
        block = self.book.block(name, model)
        return 0.0 if block is None else block.until_s - self.clock()


def kept(name: str = "a", *, model: str = "m", ends_in_s: float = 60, **fields: Any) -> CooldownSet:
    record = {"auth_id": name, "status": "cooling", "model": model, "next_retry_after": text(NOW_S + ends_in_s)}
    return CooldownSet(version=1, auth_id=name, records=[CooldownRecord(**record, **fields)])


async def test_G8_only_what_differs_is_saved():
    node, store = Node(), Counting()
    await node.keeper.open([store])
    store.saves.clear()
    counts = []
    for step in (node.succeed, lambda: node.fail(500), node.succeed, node.succeed):
        step()
        await node.keeper.flush()
        counts.append(len(store.saves))
    assert counts == [0, 1, 2, 2]
    assert store.kept == {}


async def test_G9_a_block_that_is_still_true_is_taken_over_and_written_once():
    store = Counting(kept(reason="quota", quota=QuotaRecord(exceeded=True, backoff_level=3)))
    node = Node()
    await node.keeper.open([store])
    [state] = node.book.states("a").values()
    assert (node.rests(), state.quota, state.level) == (60, True, 3)
    assert len(store.saves) == 1
    node.turn(60)
    assert node.rests() == 0
    assert node.fail() == 8


@pytest.mark.parametrize("why", ["expired", "unknown", "disabled or without cooling", "no time"])
async def test_G10_what_is_not_true_any_more_is_left_out_and_dropped_from_the_store(why):
    found = kept("other" if why == "unknown" else "a", ends_in_s=0 if why == "expired" else 60)
    if why == "no time":
        record = CooldownRecord(auth_id="a", status="cooling", next_retry_after="soon")
        found = CooldownSet(version=1, auth_id="a", records=[record])
    node, store = Node(), Counting(found)
    if why.startswith("disabled"):
        node.usable.clear()
    await node.keeper.open([store])
    assert node.book.empty
    assert store.kept == {}


async def test_several_names_of_one_model_are_one_block_the_longest():
    names = {"m": 20, "m(high)": 90, "M": 50}
    records = [record for name, ends in names.items() for record in kept(model=name, ends_in_s=ends).records]
    node = Node()
    await node.keeper.open([Counting(CooldownSet(version=1, auth_id="a", records=records))])
    assert (list(node.book.states("a")), node.rests()) == (["m"], 90)


async def test_a_clock_that_was_set_back_makes_no_block_longer_than_a_day():
    node = Node(wall_s=NOW_S - 30 * 86400)
    await node.keeper.open([Counting(kept())])
    assert node.rests() == 86400


async def test_a_block_means_the_same_time_after_a_restart():
    store, first = Counting(), Node()
    await first.keeper.open([store])
    first.fail(retry_after_ms=90_000)
    await first.keeper.flush()
    second = Node(wall_s=NOW_S + 30)
    second.clock.now_s = 5.0
    await second.keeper.open([store])
    assert second.rests() == pytest.approx(60, abs=0.01)
    assert second.book.states("a")["m"].cause == cause_of(429, "code", "why")


async def test_a_block_on_the_whole_credential_is_kept_without_a_model():
    store, node = Counting(), Node()
    await node.keeper.open([store])
    node.fail(401, scope="credential")
    await node.keeper.flush()
    [record] = store.kept["a"].records
    assert (record.model, record.reason) == ("", "unauthorized")
    other = Node()
    await other.keeper.open([store])
    assert other.rests(model="any") == pytest.approx(1800, abs=0.01)


async def test_a_block_that_is_no_matter_of_cooling_is_still_none_after_a_restart():
    store, node = Counting(), Node()
    await node.keeper.open([store])
    node.fail(400, code="model_not_supported")
    await node.keeper.stop()
    other = Node()
    await other.keeper.open([store])
    other.book.lift_unless_forced("a")
    assert other.rests() == pytest.approx(12 * 3600, abs=0.01)


async def test_blocks_that_have_ended_leave_the_store_with_the_next_save():
    store, node = Counting(), Node("a", "b")
    await node.keeper.open([store])
    node.fail()
    await node.keeper.flush()
    node.turn(5)
    assert set(store.kept) == {"a"}
    node.fail(name="b")
    await node.keeper.flush()
    assert set(store.kept) == {"b"}


async def test_a_store_that_is_not_wanted_any_more_is_emptied():
    store, node = Counting(), Node()
    await node.keeper.open([store])
    node.fail()
    await node.keeper.open([])
    assert store.kept == {}
    node.fail(503)
    await node.keeper.flush()
    assert store.kept == {}


async def test_what_ended_while_nothing_was_kept_is_not_kept_afterwards():
    node, store = Node(), Counting()
    await node.keeper.open([Counting()])
    node.fail(401)
    await node.keeper.open([])
    node.book.reset("a")
    await node.keeper.open([store])
    assert store.kept == {}


async def test_a_store_that_cannot_be_written_is_tried_again(monkeypatch, within):
    monkeypatch.setattr("host.credentials.keeper.RETRY_S", 0.01)
    store, node = Counting(), Node()
    await node.keeper.open([store])
    store.stored.clear()
    store.error = OSError("disk full")
    node.fail()
    await within(store.refused.wait())
    assert store.kept == {}
    store.error = None
    await within(store.stored.wait())
    assert set(store.kept) == {"a"}


async def test_what_failed_to_be_written_while_another_write_waits_is_written_with_it(monkeypatch, within):
    monkeypatch.setattr("host.credentials.keeper.RETRY_S", 0.05)
    store, node = Counting(), Node("a", "b")
    await node.keeper.open([store])
    store.error = OSError("disk full")
    for name in ("a", "b"):
        node.fail(name=name)
        await node.keeper.flush()
    store.error = None
    store.stored.clear()
    await within(store.stored.wait())
    assert store.saves[-1] == {"a", "b"}


async def test_at_the_end_what_could_not_be_written_is_tried_once_more():
    store, node = Counting(), Node()
    await node.keeper.open([store])
    store.error = OSError("disk full")
    node.fail()
    await node.keeper.flush()
    store.error = None
    await node.keeper.stop()
    assert set(store.kept) == {"a"}


async def test_a_block_that_ends_while_nothing_else_happens_leaves_the_store(monkeypatch, within):
    monkeypatch.setattr("host.credentials.keeper.PRUNE_S", 0.01)
    store, node = Counting(), Node("a", "b")
    await node.keeper.open([store])
    node.fail(retry_after_ms=20)
    node.fail(model="other", retry_after_ms=90_000)
    node.fail(name="b", retry_after_ms=20)
    await node.keeper.flush()
    store.stored.clear()
    node.turn(1)
    await within(store.stored.wait())
    await node.keeper.stop()
    assert {name: [it.model for it in found.records] for name, found in store.kept.items()} == {"a": ["other"]}


async def test_a_change_during_the_change_of_stores_does_not_reach_the_one_that_was_emptied(within):
    node, emptying, release = Node(), asyncio.Event(), asyncio.Event()

    class Slow(Counting):
        async def save(self, every: Mapping[str, CooldownSet], changed: Collection[str]) -> None:
            await super().save(every, changed)
            if not every and changed:
                emptying.set()
                await release.wait()

    old, new = Slow(), Counting()
    await node.keeper.open([old])
    node.fail()
    await node.keeper.flush()
    opening = asyncio.create_task(node.keeper.open([new]))
    await within(emptying.wait())
    node.fail(model="later")
    for _ in range(5):
        await asyncio.sleep(0)
    release.set()
    await within(opening)
    await node.keeper.stop()
    assert old.kept == {}
    assert [it.model for it in new.kept["a"].records] == ["later", "m"]


@pytest.mark.parametrize("step_s", [-7200, 7200])
async def test_when_the_wall_clock_is_set_what_is_stored_is_told_in_its_time_and_nothing_is_lost(step_s):
    store, node = Counting(), Node("a", "b")
    await node.keeper.open([store])
    node.fail(retry_after_ms=600_000)
    await node.keeper.flush()
    node.wall_s += step_s
    node.fail(name="b")
    await node.keeper.flush()
    assert store.saves[-1] == {"a", "b"}
    again = Node("a", "b", wall_s=node.wall_s)
    await again.keeper.open([store])
    assert again.rests() == pytest.approx(600, abs=0.01)


async def test_a_clock_that_was_set_back_between_two_runs_makes_no_block_longer_than_it_was():
    store, node = Counting(), Node()
    await node.keeper.open([store])
    node.fail(retry_after_ms=60_000)
    await node.keeper.flush()
    again = Node(wall_s=NOW_S - 7200)
    await again.keeper.open([store])
    assert again.rests() == pytest.approx(60, abs=0.01)


def cds(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.cds"))


async def test_a_file_is_written_whole_with_the_fields_that_other_tools_read(tmp_path):
    node = Node()
    await node.keeper.open([CooldownFiles(str(tmp_path))])
    node.fail(retry_after_ms=60_000)
    await node.keeper.stop()
    data = (tmp_path / "a.cds").read_text()
    document = json.loads(data)
    assert data.endswith("}\n")
    assert '\n  "auth_id": "a"' in data
    [record] = document.pop("records")
    assert document == {"version": 1, "auth_id": "a", "provider": "p", "updated_at": "2027-01-15T08:00:00.000Z"}
    assert record["next_retry_after"] == record["quota"]["next_recover_at"] == "2027-01-15T08:01:00.000Z"
    assert (record["status"], record["model"], record["reason"]) == ("cooling", "m", "quota")
    assert record["last_error"] == {"code": "code", "message": "why", "http_status": 429}
    assert os.stat(tmp_path / "a.cds").st_mode & 0o777 == 0o600


async def test_G6_a_save_removes_files_that_belong_to_nobody_and_only_those(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("stale.cds", "deep/stale.cds", "a.json"):
        (tmp_path / name).write_text("{}")
    node = Node()
    await node.keeper.open([CooldownFiles(str(tmp_path))])
    node.fail()
    await node.keeper.flush()
    assert cds(tmp_path) == ["a.cds"]
    assert (tmp_path / "a.json").exists()


async def test_an_unreadable_file_is_skipped_and_reported_and_the_others_count(tmp_path, capsys):
    node = Node()
    await node.keeper.open([CooldownFiles(str(tmp_path))])
    node.fail()
    await node.keeper.stop()
    (tmp_path / "bad.cds").write_text('{"version": 1, "auth_id": ')
    (tmp_path / "empty.cds").write_text("\n")
    again = Node()
    await again.keeper.open([CooldownFiles(str(tmp_path))])
    assert again.rests() == pytest.approx(1, abs=0.01)
    assert "bad.cds" in capsys.readouterr().out


async def test_a_directory_that_is_missing_holds_nothing(tmp_path):
    assert await CooldownFiles(str(tmp_path / "none")).load() == []


async def test_G11_many_saves_at_once_leave_no_torn_file(tmp_path):
    files = CooldownFiles(str(tmp_path))
    sets = [{it.auth_id: it for it in (kept("a", ends_in_s=60 + n), kept("b", ends_in_s=60 + n))} for n in range(20)]
    await asyncio.gather(*(files.save(every, {"a", "b"}) for every in sets))
    found = {it.auth_id: it.records[0].next_retry_after for it in await files.load()}
    assert found == dict.fromkeys("ab", text(NOW_S + 79))
    assert cds(tmp_path) == ["a.cds", "b.cds"]


async def test_a_file_that_cannot_be_written_keeps_no_other_from_being_written(tmp_path):
    files = CooldownFiles(str(tmp_path))
    (tmp_path / "a.cds").mkdir()
    every = {name: kept(name) for name in "abc"}
    with pytest.raises(OSError, match="directory"):
        await files.save(every, set(every))
    assert sorted(it.auth_id for it in await files.load()) == ["b", "c"]
    (tmp_path / "a.cds").rmdir()
    await files.save(every, set())
    assert sorted(it.auth_id for it in await files.load()) == ["a", "b", "c"]


async def test_two_credentials_of_one_file_keep_their_cooldowns_apart(tmp_path):
    files = CooldownFiles(str(tmp_path))
    await files.save({name: kept(name) for name in ("x/y", "x y")}, {"x/y", "x y"})
    assert {it.auth_id for it in await files.load()} == {"x/y", "x y"}
    # The first leaves the name to the other, about whom there is nothing new.
    await files.save({"x y": kept("x y")}, {"x/y"})
    assert {it.auth_id for it in await files.load()} == {"x y"}
