"""Listings: complete for operators and plugins, without secrets."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from host.config.model import ProviderKey
from host.credentials.listing import disk_listing, entry_of, listing, masked, unmasked
from host.credentials.manager import CredentialHealth
from host.credentials.records import RefreshError
from tests.support.auth_plugins import ScriptedAuth, record
from tests.support.auth_site import Site

ALWAYS = {
    *("id", "auth_index", "name", "type", "provider", "label", "status", "status_message", "disabled", "unavailable"),
    *("runtime_only", "source", "size", "success", "failed", "recent_requests"),
}


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, claude_api_key=[ProviderKey(api_key="sk-config")])
    site.manager.apply_config(site.config)
    return site


async def test_an_entry_says_everything_but_secrets_and_keys_of_the_configuration_have_none(site):
    expiry = "2030-01-01T00:00:00Z"
    site.put("B.json", access_token="hidden", email="me@x.test", note="n", priority=2, expires_at=expiry)
    site.put("a.json", api_key="hidden")
    await site.opened()
    first, second = await listing(site.manager, site.directory)
    assert [first["name"], second["name"]] == ["a.json", "B.json"]
    assert first.keys() >= ALWAYS
    assert second["account_type"], second["account"] == ("oauth", "me@x.test")
    assert (second["note"], second["priority"], second["source"]) == ("n", 2, "file")
    assert [(it["source_kind"], it["auth_kind"]) for it in (first, second)] == [("file", "apikey"), ("file", "oauth")]
    assert second["expires_at"] == expiry
    assert second["size"] == os.stat(second["path"]).st_size
    assert "hidden" not in json.dumps([first, second]) and "sk-config" not in json.dumps([first, second])


async def test_an_entry_shows_how_the_credential_does(site):
    site.put("a.json", api_key="k")
    await site.opened()
    health = CredentialHealth(unavailable=True, status_message="quota", next_retry_at_s=1.8e9, succeeded=3, failed=1)

    class Source:
        def health_of(self, credential_id: str) -> CredentialHealth:
            assert credential_id == "a.json"
            return health

    site.manager.health = Source()
    (entry,) = await listing(site.manager, site.directory)
    assert (entry["status"], entry["status_message"], entry["unavailable"]) == ("error", "quota", True)
    assert (entry["success"], entry["failed"], entry["next_retry_after"]) == (3, 1, "2027-01-15T08:00:00Z")


async def test_a_disabled_credential_whose_file_is_gone_is_not_listed_and_an_enabled_one_is_in_memory(site):
    site.put("on.json")
    site.put("off.json", disabled=True)
    await site.opened()
    os.unlink(site.path / "on.json")
    os.unlink(site.path / "off.json")
    (entry,) = await listing(site.manager, site.directory)
    assert (entry["name"], entry["source"]) == ("on.json", "memory")


async def test_a_file_that_cannot_be_used_is_listed_with_the_reason(site):
    site.path.mkdir()
    (site.path / "bad.json").write_text("{")
    await site.opened()
    (entry,) = await listing(site.manager, site.directory)
    assert (entry["name"], entry["status"]) == ("bad.json", "error")
    assert "no JSON object" in entry["status_message"]


async def test_credentials_of_one_file_are_listed_under_names_of_their_own(tmp_path):
    site = Site(tmp_path, ScriptedAuth({"acme": lambda request: [record({"access_token": f"t{i}"}) for i in range(2)]}))
    site.put("multi.json", type="acme")
    await site.opened()
    entries = await listing(site.manager, site.directory)
    assert [(entry["name"], entry["virtual"]) for entry in entries] == [("multi.json#0", True), ("multi.json#1", True)]


async def test_a_refresh_that_was_refused_shows_as_unauthorized(site):
    site.put("a.json", api_key="k")
    await site.opened()
    known = site.manager.by_id["a.json"]
    ended = replace(known, refresh_error=RefreshError(message="invalid_grant", code="invalid_grant", http_status=401))
    entry = entry_of(ended, CredentialHealth())
    assert (entry["status"], entry["status_message"], entry["unavailable"]) == ("error", "unauthorized", True)
    assert entry["refresh_error"] == {"message": "invalid_grant", "code": "invalid_grant", "status": 401}


async def test_H124_before_there_are_records_the_files_themselves_are_listed_by_name_whatever_its_case(tmp_path):
    site = Site(tmp_path)
    site.path.mkdir()
    for name, text in (
        ("b.json", "{}"),
        ("A.json", '{"type": "Claude", "email": "e", "access_token": "hidden"}'),
        ("c.json", "{"),
        ("d.txt", ""),
    ):
        (site.path / name).write_text(text)
    entries = disk_listing(site.directory)
    assert [entry["name"] for entry in entries] == ["A.json", "b.json", "c.json"]
    assert (entries[0]["type"], entries[0]["email"], entries[0]["source"]) == ("claude", "e", "file")
    assert entries[2]["status"] == "error"
    assert "hidden" not in str(entries)


SECRETS = {
    "type": "claude",
    "access_token": "s1",
    "token": {"refresh_token": "s2", "expiry": "2030", "list": ["s3", 5, True]},
    "headers": {"x-org": "s4"},
    "email": "me@x.test",
    "excluded_models": ["a"],
    "priority": 3,
    "empty": "",
}


def test_every_text_of_a_file_is_masked_unless_it_is_known_to_be_harmless():
    shown = masked(SECRETS)
    assert not any(f"s{number}" in json.dumps(shown) for number in range(1, 5))
    assert (shown["email"], shown["excluded_models"], shown["priority"], shown["empty"]) == ("me@x.test", ["a"], 3, "")
    assert shown["token"] == {"refresh_token": "***", "expiry": "2030", "list": ["***", 5, True]}


def test_a_mask_that_comes_back_means_unchanged_and_is_never_stored_as_a_secret():
    changed = masked(SECRETS) | {"note": "new"}
    assert unmasked(changed, SECRETS) == SECRETS | {"note": "new"}
    with pytest.raises(KeyError):
        unmasked({"other_token": "***"}, SECRETS)
    with pytest.raises(KeyError):
        unmasked({"access_token": "***"}, None)
