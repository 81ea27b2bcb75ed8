"""The auth directory: what is read, what takes effect, what stays when something is wrong."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from host.config.model import Config
from host.credentials import files
from host.credentials.listing import listing
from host.credentials.parse import InvalidCredential
from host.credentials.refresh import due_at
from host.credentials.secret import Secret
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.common import CredentialRecord
from tests.support.auth_plugins import ScriptedAuth, record
from tests.support.auth_site import Site

AWAY = PluginTransportError("p", "auth.parse", phase="unavailable", cause="restarting")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_every_file_becomes_a_record_and_the_directory_is_made_where_it_is_missing(site):
    await site.opened()
    assert site.path.is_dir() and site.ids() == []
    site.put("b.json", access_token="t")
    site.put("A.json", api_key="k")
    await site.opened()
    assert site.ids() == ["A.json", "b.json"]
    assert site.directory.providers() == {"claude"}


async def test_a_place_that_is_no_directory_is_an_error(site):
    site.path.write_text("")
    with pytest.raises(NotADirectoryError):
        await site.directory.scan()


async def test_I5_a_file_with_the_same_content_and_I10_one_that_only_looks_newer_are_no_update(site):
    path = site.put("a.json", api_key="k")
    await site.opened()
    told = len(site.told)
    site.put("a.json", api_key="k")
    assert not await site.directory.refresh([path])
    site.now_s += 50
    await site.directory.load()
    assert len(site.told) == told
    assert site.manager.by_id["a.json"].updated_at_s == 1000.0


async def test_I6_a_file_that_was_replaced_with_new_content_is_one_change(site):
    path = site.put("a.json", api_key="k")
    await site.opened()
    (site.path / "draft").write_text('{"type": "claude", "api_key": "new"}')
    os.replace(site.path / "draft", path)
    change = await site.directory.refresh([path, path])
    assert (change.ids, change.routing) == ({"a.json"}, False)
    assert site.manager.by_id["a.json"].secret == Secret("new")


async def test_I7_a_file_that_went_takes_its_records_along_and_I8_one_that_was_never_known_does_nothing(site):
    path = site.put("a.json", api_key="k")
    await site.opened()
    os.unlink(path)
    change = await site.directory.refresh([path, str(site.path / "unknown.json")])
    assert (change.removed, site.ids()) == ({"a.json"}, [])


async def test_B17_a_file_that_comes_back_starts_from_nothing(site):
    path = site.put("a.json", api_key="k", last_refresh="2026-01-01T00:00:00Z")
    await site.opened()
    os.unlink(path)
    await site.directory.refresh([path])
    site.now_s = 2000.0
    site.put("a.json", api_key="k")
    change = await site.directory.refresh([path])
    found = site.manager.by_id["a.json"]
    assert (found.created_at_s, found.last_refreshed_at_s, found.next_refresh_at_s) == (2000.0, None, None)
    assert (change.added, change.reset) == ({"a.json"}, {"a.json"})


@pytest.mark.parametrize("content", ["", "{", '{"type": "claude", "weight": "many"}'])
async def test_I2_a_file_that_became_unusable_keeps_its_record_and_is_reported(site, content):
    path = site.put("a.json", api_key="k")
    await site.opened()
    Path(path).write_text(content)
    assert not await site.directory.refresh([path])
    assert site.manager.by_id["a.json"].secret == Secret("k")
    assert path in site.directory.problems
    site.put("a.json", api_key="k2")
    await site.directory.refresh([path])
    assert site.directory.problems == {}


async def test_the_stored_content_is_checked_first_then_written_and_known_to_the_watcher(site):
    await site.opened()
    path = site.directory.path_of("new.json")
    with pytest.raises(InvalidCredential, match="proxy_url"):
        await site.directory.store(path, b'{"type": "claude", "proxy_url": "ftp://x"}')
    assert not os.path.exists(path)
    (made,) = await site.directory.store(path, b'{"type": "claude", "api_key": "k"}')
    assert (made.id, site.ids()) == ("new.json", ["new.json"])
    told = len(site.told)
    await site.directory.refresh([path])
    assert len(site.told) == told


async def test_B18_what_the_watcher_brings_is_not_written_and_what_is_stored_is_written_once(site, monkeypatch):
    written: list[str] = []
    real = files.write
    monkeypatch.setattr(files, "write", lambda path, data, **rest: written.append(path) or real(path, data, **rest))
    path = site.put("a.json", api_key="k")
    await site.opened()
    await site.directory.refresh([path])
    assert written == []
    await site.directory.store(path, b'{"type": "claude", "api_key": "new"}')
    assert written == [path]


async def test_B13_a_change_of_a_file_that_is_gone_makes_no_file(site):
    path = site.put("a.json", api_key="k", disabled=True)
    await site.opened()
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        await site.directory.change(path, lambda data: files.with_members(data, {"a": 1}))
    assert not os.path.exists(path)


async def test_a_change_starts_from_what_is_on_disk_and_keeps_what_it_does_not_know(site):
    path = site.put("a.json", api_key="k")
    await site.opened()
    site.put("a.json", api_key="k", by_somebody_else=1)
    await site.directory.change(path, lambda data: files.with_members(data, {"note": "n"}))
    assert json.loads(Path(path).read_text()) == {"type": "claude", "api_key": "k", "by_somebody_else": 1, "note": "n"}
    assert site.manager.by_id["a.json"].note == "n"


async def test_changes_of_one_file_at_the_same_time_are_all_kept(site):
    path = site.put("a.json", api_key="k")
    await site.opened()
    changes = [
        site.directory.change(path, lambda data, name=f"m{number}": files.with_members(data, {name: 1}))
        for number in range(5)
    ]
    await asyncio.gather(*changes)
    assert {f"m{number}" for number in range(5)} <= json.loads(Path(path).read_text()).keys()


async def test_another_directory_in_the_configuration_replaces_all_records(site, tmp_path):
    site.put("a.json", api_key="k")
    await site.opened()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.json").write_text('{"type": "claude"}')
    change = await site.directory.apply_config(Config(directory=str(tmp_path), auth_dir="other"))
    assert (change.added, change.removed, site.ids()) == ({"b.json"}, {"a.json"}, ["b.json"])
    assert site.directory.moved.is_set()


async def test_a_copy_of_the_directory_takes_over_the_credentials_of_the_one_before(site, tmp_path):
    site.put("a.json", api_key="k")
    site.put("b.json", api_key="k")
    await site.opened()
    (tmp_path / "other").mkdir()
    for name in ("a.json", "c.json"):
        (tmp_path / "other" / name).write_text('{"type": "claude", "api_key": "k"}')
    await site.directory.apply_config(Config(directory=str(tmp_path), auth_dir="other"))
    assert (site.ids(), site.directory.problems) == (["a.json", "c.json"], {})
    assert site.manager.by_id["a.json"].path == str(tmp_path / "other" / "a.json")


async def test_another_exclusion_in_the_configuration_changes_only_the_records_of_its_provider(site, tmp_path):
    site.put("a.json", api_key="k")
    site.put("b.json", type="acme")
    await site.opened()
    config = Config(directory=str(tmp_path), oauth_excluded_models={"acme": ["x"]})
    assert (await site.directory.apply_config(config)).ids == {"b.json"}


async def test_a_plugin_is_asked_first_and_only_about_its_provider(tmp_path):
    plugins = ScriptedAuth({"acme": lambda request: [record({"access_token": "of-plugin"}, label="L")]})
    site = Site(tmp_path, plugins)
    site.put("a.json", type="Acme", session="x")
    site.put("b.json", api_key="k")
    await site.opened()
    (asked,) = plugins.seen
    assert (asked.provider, asked.file_name, json.loads(bytes(asked.file))["session"]) == ("acme", "a.json", "x")
    found = site.manager.by_id["a.json"]
    assert (found.secret, found.label, found.auth_plugin) == (Secret("of-plugin"), "L", "scripted")


async def test_B2_a_plugin_that_answers_nothing_does_not_claim_the_file(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"claude": lambda request: []}))
    site.put("a.json", api_key="k")
    await site.opened()
    assert site.manager.by_id["a.json"].secret == Secret("k")


async def test_a_file_without_a_type_is_offered_to_plugins_that_take_any(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"": lambda request: [record({"access_token": "t"}, provider="acme")]}))
    site.put("a.json", type="")
    await site.opened()
    assert site.manager.by_id["a.json"].provider == "acme"


async def test_M103_one_file_becomes_several_credentials_and_they_go_with_it(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [record({"access_token": f"t{i}"}) for i in range(2)]}))
    path = site.put("multi.json", type="acme")
    await site.opened()
    assert site.ids() == ["multi.json#0", "multi.json#1"]
    assert len({found.auth_index for found in site.manager.credentials}) == 2
    await site.directory.discard(path)
    assert (site.ids(), os.path.exists(path)) == ([], False)


async def test_a_record_whose_id_is_taken_already_makes_its_file_unusable_and_never_replaces_the_other(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [record({}, id="a.json")]}))
    site.put("a.json", api_key="k")
    thief = site.put("b.json", type="acme")
    await site.opened()
    assert site.manager.by_id["a.json"].secret == Secret("k")
    assert "belongs to another credential" in site.directory.problems[thief]


def named_by_its_file(request: Any) -> list[Any]:
    """Several records with ids of their own, as `accounts` names them."""
    accounts = json.loads(bytes(request.file)).get("accounts", [])
    return [record({"access_token": f"t{it}"}, id=it) for it in accounts]


def of_accounts(tmp_path: Path) -> Site:
    return Site(tmp_path, ScriptedAuth({"acme": named_by_its_file}))


async def test_a_file_that_was_renamed_keeps_the_ids_that_its_plugin_gives_it(tmp_path):
    site = of_accounts(tmp_path)
    old = site.put("old.json", type="acme", accounts=["x", "y"])
    await site.opened()
    new = str(site.path / "new.json")
    os.rename(old, new)
    change = await site.directory.refresh([old, new])
    assert (site.ids(), change.removed, site.directory.problems) == (["x", "y"], set(), {})
    assert {found.path for found in site.manager.credentials} == {new}


async def test_files_that_exchange_accounts_in_one_moment_are_all_used(tmp_path):
    site = of_accounts(tmp_path)
    paths = [site.put(f"{name}.json", type="acme", accounts=ids) for name, ids in (("a", ["x", "y"]), ("b", ["z"]))]
    await site.opened()
    site.put("a.json", type="acme", accounts=["z"])
    site.put("b.json", type="acme", accounts=["y", "x"])
    await site.directory.refresh(paths)
    assert (site.ids(), site.directory.problems) == (["z", "y", "x"], {})


async def test_who_has_an_id_keeps_it_when_another_file_wants_it_in_the_same_moment(tmp_path):
    site = of_accounts(tmp_path)
    holder = site.put("z.json", type="acme", accounts=["x", "y"])
    await site.opened()
    thief = site.put("a.json", type="acme", accounts=["x", "v"])
    site.put("z.json", type="acme", accounts=["x", "w"])
    await site.directory.refresh([thief, holder])
    assert site.ids() == ["x", "w"]
    assert site.directory.problems.keys() == {thief}


@pytest.mark.parametrize("how", ["deleted", "over the management API", "another account"])
async def test_a_file_that_waited_for_an_id_gets_it_once_it_is_free(tmp_path, how):
    site = of_accounts(tmp_path)
    first = site.put("a.json", type="acme", accounts=["x"])
    second = site.put("b.json", type="acme", accounts=["x", "y"])
    await site.opened()
    assert (site.ids(), site.directory.problems.keys()) == (["x"], {second})
    if how == "another account":
        site.put("a.json", type="acme", accounts=["z"])
    elif how == "deleted":
        os.unlink(first)
    else:
        await site.directory.discard(first)
    await site.directory.refresh([first, second])
    assert (site.ids()[-2:], site.directory.problems) == (["x", "y"], {})


async def test_a_token_that_was_renewed_in_memory_only_survives_the_same_file_being_parsed_again(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [record({"access_token": f"t{i}"}) for i in range(2)]}))
    path = site.put("multi.json", type="acme")
    await site.opened()
    renewed = replace(site.manager.by_id["multi.json#0"], secret=Secret("renewed"), last_refreshed_at_s=1500.0)
    site.manager.update(renewed, refreshed=True)
    await site.directory.load()
    assert site.manager.by_id["multi.json#0"].secret == Secret("renewed")
    site.put("multi.json", type="acme", changed=True)
    await site.directory.refresh([path])
    assert site.manager.by_id["multi.json#0"].secret == Secret("t0")


async def test_a_file_that_is_written_while_it_is_parsed_ends_with_the_newest_content(tmp_path):
    parsing, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(request: Any) -> list[Any]:
        token = json.loads(bytes(request.file))["access_token"]
        if token == "old":
            parsing.set()
            await go_on.wait()
        return [record({"access_token": token})]

    site = Site(tmp_path, ScriptedAuth({"acme": slowly}))
    path = site.put("a.json", type="acme", access_token="old")
    await site.directory.scan()
    async with asyncio.timeout(10):
        loading = asyncio.create_task(site.directory.load())
        await parsing.wait()
        await site.directory.store(path, b'{"type": "acme", "access_token": "new"}')
        go_on.set()
        await loading
    assert site.manager.by_id["a.json"].secret == Secret("new")


async def test_a_file_whose_plugin_cannot_be_asked_keeps_its_record_and_is_tried_again(tmp_path):
    answers: list[Any] = [[record({"access_token": "first"})], AWAY, [record({"access_token": "second"})]]
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: answers.pop(0)}))
    path = site.put("a.json", type="acme")
    await site.opened()
    site.put("a.json", type="acme", changed=True)
    await site.directory.refresh([path])
    assert site.manager.by_id["a.json"].secret == Secret("first")
    assert site.directory.has_waiting.is_set() and "restarting" in site.directory.problems[path]
    await site.directory.retry()
    assert site.manager.by_id["a.json"].secret == Secret("second")
    assert not site.directory.has_waiting.is_set() and site.directory.problems == {}


async def test_a_file_whose_plugin_was_never_there_is_not_read_in_the_hosts_own_way(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: AWAY}))
    site.put("a.json", type="acme", access_token="t")
    await site.opened()
    assert site.ids() == []


@pytest.mark.parametrize(
    "members",
    [
        '"x": ' + "[" * 5000 + "]" * 5000,
        '"x": ' + "[" * 400 + "]" * 400,
        '"expires_at": 1' + "0" * 400,
        '"priority": 1' + "0" * 5000,
        '"weight": -1' + "0" * 400,
        '"refresh_interval": 1e308, "last_refresh": 253402300799',
    ],
    ids=["deeper than readable", "deep", "expiry", "priority", "weight", "interval"],
)
async def test_a_strange_file_never_harms_the_others(site, members):
    site.put("good.json", api_key="k")
    (site.path / "strange.json").write_text(f'{{"type": "claude", {members}}}')
    await site.opened()
    assert "good.json" in site.ids()
    assert [entry["name"] for entry in await listing(site.manager, site.directory)] == ["good.json", "strange.json"]
    for found in site.manager.credentials:
        due_at(found, now_s=1e9, lead_s=60.0)


async def test_one_link_that_leads_nowhere_keeps_no_other_file_from_being_used(tmp_path):
    site = Site(tmp_path)
    site.put("a.json", api_key="k")
    (site.path / "loop.json").symlink_to("loop.json")
    await site.opened()
    assert site.ids() == ["a.json"]
    assert site.directory.problems[str(site.path / "loop.json")].startswith("the file cannot be read")


async def test_storage_that_is_no_text_is_a_reason_against_its_file_alone(tmp_path):
    bad = CredentialRecord(storage=Raw(b'{"a": "\xff"}'))
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [bad]}))
    site.put("a.json", api_key="k")
    path = site.put("b.json", type="acme")
    await site.opened()
    assert site.ids() == ["a.json"] and "no JSON object" in site.directory.problems[path]
