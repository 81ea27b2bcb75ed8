"""Several hands in one credential file: none of them takes back what another has written, nor meets another's file."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from host.credentials import files
from host.credentials.secret import MASK, Secret
from host.tasks import TaskGroup
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import AuthParseRequest, AuthRefreshRequest, AuthRefreshResponse
from tests.support.auth_plugins import ScriptedAuth, Slowly, record
from tests.support.auth_site import Site
from tests.support.refreshing import NOW_S, Bench, renewed


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


async def test_a_masked_save_that_waits_for_a_refresh_keeps_the_token_that_the_refresh_brought(tmp_path, tasks):
    writing = Slowly(lambda request: None)
    bench = Bench(tmp_path, renewed(), tasks, saved=None)
    bench.plugins.save = lambda provider, request: writing(request)  # type: ignore[assignment]
    await bench.opened()
    async with asyncio.timeout(10):
        ticking = asyncio.create_task(bench.tick(300))
        await writing.going.wait()
        members = {"type": "acme", "access_token": MASK, "refresh_token": MASK, "expires_at": NOW_S + 600, "note": "n"}
        saving = asyncio.create_task(bench.site.editor.save_for_plugin("a.json", members))
        await asyncio.sleep(0)
        writing.go_on.set()
        await asyncio.gather(ticking, saving)
    stored = bench.site.read("a.json")
    assert (stored["access_token"], stored["refresh_token"], stored["note"]) == ("new2", "r2", "n")
    assert bench.record().secret == Secret("new2")


async def test_an_answer_with_the_attributes_it_was_asked_with_changes_none_of_the_operators_members(tmp_path, tasks):
    def answer(request: AuthRefreshRequest) -> AuthRefreshResponse:
        tokens = {"access_token": "new", "refresh_token": "r2"}
        return AuthRefreshResponse(record=record(tokens, attributes=request.credential.attributes))

    slowly = Slowly(answer)
    own = {"priority": 5, "excluded_models": ["b", "a"], "websockets": True, "email": "me@example.com"}
    bench = await Bench(tmp_path, slowly, tasks).opened(**own)
    async with asyncio.timeout(10):
        ticking = asyncio.create_task(bench.tick(300))
        await slowly.going.wait()
        await bench.site.editor.patch("a.json", {"priority": 7})
        slowly.go_on.set()
        await ticking
    stored = bench.site.read("a.json")
    assert {name: stored[name] for name in own} == own | {"priority": 7}
    assert (stored["access_token"], bench.record().priority) == ("new", 7)


async def test_a_note_does_not_begin_the_pause_after_an_ineffective_refresh_anew(tmp_path, tasks):
    short = AuthRefreshResponse(record=record({"access_token": "new", "refresh_token": "r2", "expires_at": NOW_S + 1}))
    bench = await Bench(tmp_path, lambda request: short, tasks).opened()
    await bench.tick(300)
    assert bench.due_in() == 30.0
    await bench.site.editor.patch("a.json", {"note": "mine"})
    assert bench.due_in() == 30.0


async def test_a_token_that_another_process_has_just_renewed_is_not_renewed_again_at_once(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    stored = {"access_token": "new", "refresh_token": "r2", "expires_at": NOW_S + 60, "last_refresh": NOW_S}
    await bench.site.directory.refresh([bench.site.put("a.json", type="acme", **stored)])
    assert bench.due_in() == 30.0


@pytest.mark.parametrize("is_usable", [True, False])
async def test_of_two_names_that_differ_in_case_only_the_one_that_was_named_is_meant(tmp_path, is_usable):
    def parse(request: AuthParseRequest) -> list[CredentialRecord]:
        return [record({}, id=f"id of {request.file_name}")]

    site = Site(tmp_path, ScriptedAuth({"acme": parse}))
    site.put("A.json", type="acme")
    site.put("a.json", type="acme")
    if not is_usable:
        (site.path / "a.json").write_text("{")
    await site.opened()
    await site.editor.delete("a.json")
    assert [it.name for it in sorted(site.path.iterdir())] == ["A.json"]


async def test_an_edit_of_the_source_file_keeps_the_tokens_that_its_virtual_credentials_have_got(tmp_path, tasks):
    def parse(request: AuthParseRequest) -> list[CredentialRecord]:
        members = json.loads(bytes(request.file))
        return [record({"access_token": token, "refresh_token": f"r-{token}"}) for token in members["tokens"]]

    bench = await Bench(tmp_path, renewed(), tasks, parsers={"acme": parse}).opened(tokens=["x", "y"])
    for number in (0, 1):
        assert await bench.site.manager.refresh_now(f"a.json#{number}")
    await bench.site.directory.refresh([bench.site.put("a.json", type="acme", tokens=["x", "z"], note="mine")])
    first, second = bench.record("a.json#0"), bench.record("a.json#1")
    assert (first.secret, first.note) == (Secret("new2"), "mine")
    assert first.metadata.reveal()["refresh_token"] == "r2"
    assert second.secret == Secret("z")


async def test_a_patch_that_met_another_process_keeps_what_that_one_wrote(tmp_path):
    """Each process has locks of its own: what one reads, another may write before the first one does."""
    parsing = Slowly(lambda request: [record({})])
    site = Site(tmp_path, ScriptedAuth({"acme": parsing}))
    parsing.go_on.set()
    path = site.put("a.json", type="acme", access_token="old", refresh_token="r1")
    await site.opened()
    parsing.go_on.clear()
    parsing.going.clear()
    async with asyncio.timeout(10):
        patching = asyncio.create_task(site.editor.patch("a.json", {"note": "mine"}))
        await parsing.going.wait()
        members = {"type": "acme", "access_token": "new", "refresh_token": "r2"}
        await asyncio.to_thread(files.write, path, files.render(members))
        parsing.go_on.set()
        await patching
    assert site.read("a.json") == members | {"note": "mine"}
    assert site.manager.by_id["a.json"].secret == Secret("new")


async def test_a_login_that_is_cut_off_leaves_all_of_it_or_nothing(tmp_path: Path):
    parsing = Slowly(lambda request: [record({})])

    def parse(request: AuthParseRequest) -> Any:
        return parsing(request) if request.file_name == "one.json" else [record({}, id="one.json")]

    site = await Site(tmp_path, ScriptedAuth({"acme": parse})).opened()
    records = [CredentialRecord(file_name=name, metadata={"access_token": name}) for name in ("one.json", "two.json")]
    async with asyncio.timeout(10):
        storing = asyncio.create_task(site.editor.save_login("acme", records))
        await parsing.going.wait()
        storing.cancel()
        await asyncio.sleep(0)
        parsing.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await storing
    assert (list(site.path.glob("*.json")), site.ids()) == ([], [])
