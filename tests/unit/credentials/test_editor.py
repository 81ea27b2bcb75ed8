"""What management, plugins and logins may change."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from host.credentials import files
from host.credentials.editor import VIRTUAL_TEXT, CredentialEditor, CredentialError
from host.credentials.secret import Secret
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.payloads.credentials import AuthSaveRequest, AuthSaveResponse
from tests.support.auth_plugins import ScriptedAuth, record
from tests.support.auth_site import Site


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    return await Site(tmp_path).opened()


@pytest.fixture
async def multi(tmp_path: Path) -> Site:
    """A site with `multi.json`, of which a plugin makes two credentials."""
    plugins = ScriptedAuth({"acme": lambda request: [record({"access_token": f"t{i}"}) for i in range(2)]})
    site = Site(tmp_path, plugins)
    site.put("multi.json", type="acme")
    return await site.opened()


def refused(caught: Any) -> tuple[int, str]:
    return caught.value.http_status, str(caught.value)


async def test_an_upload_is_stored_as_written_and_used_at_once(site):
    await site.editor.upload("a.json", b'{"type": "claude",  "api_key": "k"}')
    assert (site.path / "a.json").read_bytes() == b'{"type": "claude",  "api_key": "k"}'
    assert site.ids() == ["a.json"]


@pytest.mark.parametrize(
    ("name", "data"), [("../x.json", b"{}"), ("x.txt", b"{}"), ("a.json", b"[1]"), ("a.json", b'{"weight": "x"}')]
)
async def test_an_upload_that_cannot_be_used_is_refused_and_leaves_the_file_as_it_is(site, name, data):
    await site.editor.upload("a.json", b'{"type": "claude"}')
    with pytest.raises(CredentialError) as caught:
        await site.editor.upload(name, data)
    assert caught.value.http_status == 400
    assert site.read("a.json") == {"type": "claude"}


async def test_B10_M103_one_credential_of_several_cannot_be_deleted_by_its_own_name(multi):
    with pytest.raises(CredentialError) as caught:
        await multi.editor.delete("multi.json#0")
    assert refused(caught) == (409, VIRTUAL_TEXT)
    assert len(multi.ids()) == 2


@pytest.mark.parametrize("name", ["multi.json", " MULTI.JSON "])
async def test_B11_M103_deleting_the_source_file_by_name_in_any_case_takes_all_its_credentials_along(multi, name):
    await multi.editor.delete(name)
    assert (multi.ids(), (multi.path / "multi.json").exists()) == ([], False)


async def test_M103_one_credential_of_several_can_neither_be_switched_off_nor_patched(multi):
    for change in (multi.editor.set_disabled("multi.json#1", True), multi.editor.patch("multi.json#1", {"note": "n"})):
        with pytest.raises(CredentialError) as caught:
            await change
        assert refused(caught) == (409, VIRTUAL_TEXT)


async def test_B3_a_file_of_which_a_plugin_makes_one_credential_can_be_switched_off(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [record({"access_token": "t"})]}))
    site.put("a.json", type="acme", own=1)
    await site.opened()
    await site.editor.set_disabled("a.json", True)
    assert site.read("a.json") == {"type": "acme", "own": 1, "disabled": True}
    assert site.manager.by_id["a.json"].disabled


async def test_a_credential_is_switched_off_and_on_in_its_file_and_says_who_did_it(site):
    site.put("a.json", api_key="k", big=12345678901234567890123)
    await site.opened()
    await site.editor.set_disabled("a.json", True)
    found = site.manager.by_id["a.json"]
    assert (found.status, found.status_message) == ("disabled", "disabled via management API")
    await site.editor.set_disabled("a.json", False)
    found = site.manager.by_id["a.json"]
    assert (found.status, found.status_message) == ("active", "")
    assert site.read("a.json")["big"] == 12345678901234567890123


@pytest.mark.parametrize(("name", "status"), [("missing.json", 404), ("../a.json", 404), ("", 400)])
async def test_a_credential_that_does_not_exist_cannot_be_changed(site, name, status):
    with pytest.raises(CredentialError) as caught:
        await site.editor.set_disabled(name, True)
    assert caught.value.http_status == status


async def test_the_index_guards_against_another_credential_of_the_same_name(site):
    site.put("a.json", api_key="k")
    await site.opened()
    with pytest.raises(CredentialError) as caught:
        await site.editor.set_disabled("a.json", True, auth_index="0000")
    assert caught.value.http_status == 409
    await site.editor.set_disabled("a.json", True, auth_index=site.manager.by_id["a.json"].auth_index)


async def test_fields_are_patched_where_they_stand_and_everything_else_keeps_its_form(site):
    (site.path / "a.json").write_text('{"type": "claude", "x": 1.10, "headers": {"A": "1", "B": "2"}, "priority": 3}')
    await site.opened()
    fields = {"a.b.c": Raw(b"1e2"), "headers": {"A": "", "C": "3"}, "priority": 0, "note": " ", "prefix": "team"}
    (found,) = await site.editor.patch("a.json", fields)
    text = (site.path / "a.json").read_text()
    assert "1.10" in text and "1e2" in text
    assert json.loads(text) == {
        "type": "claude",
        "x": 1.1,
        "headers": {"B": "2", "C": "3"},
        "a": {"b": {"c": 100.0}},
        "prefix": "team",
    }
    assert (found.prefix, found.priority, dict(found.headers)) == ("team", 0, {"b": "2", "c": "3"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "no fields to update"), ({"a..b": 1}, "invalid field path: a..b"), ({"weight": "x"}, "`weight`")],
)
async def test_a_patch_that_makes_no_sense_is_refused_and_changes_nothing(site, fields, message):
    site.put("a.json", api_key="k")
    await site.opened()
    with pytest.raises(CredentialError, match=message) as caught:
        await site.editor.patch("a.json", fields)
    assert caught.value.http_status == 400
    assert site.read("a.json") == {"type": "claude", "api_key": "k"}


async def test_a_file_that_cannot_be_used_can_still_be_deleted(site):
    (site.path / "bad.json").write_text("{")
    await site.opened()
    await site.editor.delete("bad.json")
    assert not (site.path / "bad.json").exists()
    with pytest.raises(CredentialError) as caught:
        await site.editor.delete("bad.json")
    assert refused(caught) == (404, "auth file not found")


async def test_all_files_are_deleted_at_once(site):
    site.put("a.json")
    site.put("b.json")
    await site.opened()
    assert await site.editor.delete_all() == 2
    assert site.ids() == []


async def test_a_login_is_stored_under_a_name_of_its_account(site):
    (found,) = await site.editor.save_login("acme", [record({"access_token": "t"}, metadata={"email": "me@x.test"})])
    assert found.id == "acme-me@x.test.json"
    assert site.read(found.id) == {"access_token": "t", "email": "me@x.test", "type": "acme"}


async def test_a_new_login_of_the_same_account_keeps_what_the_operator_wrote(site):
    site.put("a.json", type="acme", access_token="old", note="mine", priority=4, own=1)
    await site.opened()
    answer = record({"access_token": "new", "priority": 9}, file_name="a.json")
    await site.editor.save_login("acme", [answer])
    assert site.read("a.json") == {"type": "acme", "access_token": "new", "note": "mine", "priority": 4, "own": 1}


async def test_B12_M106_a_login_of_which_one_record_cannot_be_stored_leaves_nothing_behind(site):
    site.put("kept.json", type="acme", access_token="before")
    await site.opened()
    records = [
        record({"access_token": "1"}, file_name="kept.json"),
        record({"access_token": "2"}, file_name="new.json"),
        record({"access_token": "3", "proxy_url": "ftp://x"}, file_name="bad.json"),
    ]
    with pytest.raises(CredentialError) as caught:
        await site.editor.save_login("acme", records)
    assert refused(caught) == (500, "Failed to save authentication tokens")
    assert site.ids() == ["kept.json"]
    assert site.read("kept.json")["access_token"] == "before"
    assert sorted(path.name for path in site.path.iterdir()) == ["kept.json"]


async def test_a_plugin_may_say_what_is_stored_and_its_failure_loses_no_login(tmp_path):
    def wished(request: AuthSaveRequest) -> AuthSaveResponse:
        stored = json.loads(bytes(request.record.storage))
        return AuthSaveResponse(record=record({"sealed": f"<{stored['access_token']}>"}))

    site = await Site(tmp_path, ScriptedAuth(saved=wished)).opened()
    await site.editor.save_login("acme", [record({"access_token": "t"}, file_name="a.json")])
    assert site.read("a.json") == {"sealed": "<t>", "type": "acme"}

    def failing(request: AuthSaveRequest) -> AuthSaveResponse:
        raise PluginError(ErrorBody(message="no"))

    editor = CredentialEditor(site.manager, site.directory, ScriptedAuth(saved=failing))
    await editor.save_login("acme", [record({"access_token": "t2"}, file_name="b.json")])
    assert site.read("b.json")["access_token"] == "t2"


async def test_a_new_login_keeps_members_that_are_written_with_dashes_and_drops_the_expiry_of_the_old_token(site):
    site.put(
        "a.json", **{"type": "acme", "access_token": "old", "excluded-models": ["x"], "expired": "2001-01-01T00:00:00Z"}
    )
    await site.opened()
    answer = record({"access_token": "new", "excluded_models": [], "expires_at": 2e9}, file_name="a.json", label="L")
    (found,) = await site.editor.save_login("acme", [answer])
    assert (found.excluded_models, found.expires_at_s, found.label) == (("x",), 2e9, "L")
    assert site.read("a.json").keys() == {"type", "access_token", "excluded-models", "expires_at", "label"}
    await site.editor.patch("a.json", {"label": "mine"})
    await site.editor.save_login("acme", [answer])
    assert site.manager.by_id["a.json"].label == "mine"


@pytest.mark.parametrize(
    "records",
    [
        [record({"access_token": "1"}, file_name="new.json"), record({"access_token": "2"}, file_name="new.json")],
        [record({"access_token": "1"}, file_name="other.json")],
    ],
    ids=["two records under one name", "the file of another provider"],
)
async def test_a_login_never_replaces_another_credential(site, records):
    site.put("other.json", access_token="theirs")
    await site.opened()
    with pytest.raises(CredentialError) as caught:
        await site.editor.save_login("acme", records)
    assert refused(caught) == (500, "Failed to save authentication tokens")
    assert site.ids() == ["other.json"]
    assert site.read("other.json") == {"type": "claude", "access_token": "theirs"}


async def test_B12_a_login_whose_caller_goes_away_while_it_is_stored_is_stored_as_a_whole(site, monkeypatch):
    put = site.directory.put

    async def storing(path, edit):
        if path.endswith("b.json"):
            saving.cancel()
            await asyncio.sleep(0)
        return await put(path, edit)

    monkeypatch.setattr(site.directory, "put", storing)
    records = [record({"access_token": name}, file_name=f"{name}.json") for name in "abc"]
    async with asyncio.timeout(10):
        saving = asyncio.create_task(site.editor.save_login("acme", records))
        with pytest.raises(asyncio.CancelledError):
            await saving
    assert site.ids() == ["a.json", "b.json", "c.json"]


async def test_B12_what_is_rolled_back_is_what_the_login_wrote_and_nothing_that_came_after(site, monkeypatch):
    site.put("a.json", type="acme", access_token="before")
    (site.path / "b.json").write_text("no JSON")
    await site.opened()
    put = site.directory.put

    async def storing(path, edit):
        if path.endswith("d.json"):
            site.put("c.json", type="acme", access_token="newer")
            raise OSError(28, "No space left on device")
        return await put(path, edit)

    monkeypatch.setattr(site.directory, "put", storing)
    records = [record({"access_token": name}, file_name=f"{name}.json") for name in "abcd"]
    with pytest.raises(CredentialError):
        await site.editor.save_login("acme", records)
    assert (site.path / "b.json").read_text() == "no JSON"
    assert site.read("c.json")["access_token"] == "newer"
    assert sorted(path.name for path in site.path.iterdir()) == ["a.json", "b.json", "c.json"]
    assert site.manager.by_id["a.json"].secret == Secret("before")
    assert "b.json" not in site.manager.by_id


async def test_a_member_is_patched_whichever_way_it_is_written(site):
    site.put("a.json", **{"disable_cooling": True, "excluded-models": ["x"], "excluded_models": ["y"]})
    site.put("b.json", **{"request-retry": 1})
    await site.opened()
    await site.editor.patch("a.json", {"disable-cooling": False, "excluded_models": ["z"]})
    assert site.read("a.json") == {"type": "claude", "disable_cooling": False, "excluded_models": ["z"]}
    await site.editor.patch("b.json", {"request_retry": 2})
    assert site.read("b.json") == {"type": "claude", "request_retry": 2}
    assert site.manager.by_id["b.json"].request_retry == 2


async def test_a_change_whose_caller_goes_away_is_made_as_a_whole_before_the_next_one(site, monkeypatch):
    site.put("a.json")
    await site.opened()
    writing, go_on, write = threading.Event(), threading.Event(), files.write

    def slowly(path: str, data: bytes, **options: Any) -> bool:
        writing.set()
        assert go_on.wait(10)
        return write(path, data, **options)

    monkeypatch.setattr(files, "write", slowly)
    async with asyncio.timeout(10):
        first = asyncio.create_task(site.editor.patch("a.json", {"note": "first"}))
        await asyncio.to_thread(writing.wait, 10)
        first.cancel()
        second = asyncio.create_task(site.editor.patch("a.json", {"priority": 3}))
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
    found = site.manager.by_id["a.json"]
    assert (found.note, found.priority) == ("first", 3)
    assert site.read("a.json") == {"type": "claude", "note": "first", "priority": 3}


async def test_a_file_whose_plugin_cannot_be_asked_is_no_invalid_one(tmp_path):
    away = PluginTransportError("acme", "auth.parse", phase="unavailable", cause="it is starting")
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: away}))
    site.put("a.json", type="acme")
    await site.opened()
    with pytest.raises(CredentialError) as caught:
        await site.editor.upload("b.json", b'{"type": "acme"}')
    assert refused(caught) == (away.http_status, str(away))
    assert away.http_status > 500 and not (site.path / "b.json").exists()
