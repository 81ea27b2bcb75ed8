"""What management, plugins and logins may change."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from host.credentials.editor import VIRTUAL_TEXT, CredentialEditor, CredentialError
from pluginabi.errors import ErrorBody, PluginError
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
