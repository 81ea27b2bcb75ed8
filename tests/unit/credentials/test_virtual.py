"""Records that plugins make of a file."""

from dataclasses import replace
from typing import Any

import pytest

from host.config.model import Config
from host.credentials.parse import InvalidCredential, parse_settings
from host.credentials.records import Credential, HandleMint
from host.credentials.secret import Secret
from host.credentials.virtual import (
    plugin_record,
    records_of_plugin,
    renewed_members,
    renewed_record,
    stored_document,
    stored_name,
)
from tests.support.auth_plugins import record

PATH = "/auths/multi.json"
SETTINGS = parse_settings(Config(), "/auths")


def made(*records, document: dict[str, Any] | None = None, provider: str = "acme") -> tuple[Credential, ...]:
    return records_of_plugin(
        records,
        plugin_id="p",
        provider=provider,
        document=document or {"type": "acme"},
        path=PATH,
        settings=SETTINGS,
        mint=HandleMint(),
        now_s=1.0,
    )


def test_B1_several_records_of_a_file_are_virtual_each_with_an_index_of_its_own():
    first, second = made(
        record({"access_token": "t1"}, metadata={"headers": {"X-A": "1"}}), record({"access_token": "t2"}, id="own")
    )
    assert (first.source_kind, second.source_kind) == ("virtual", "virtual")
    assert first.auth_index != second.auth_index
    assert (first.id, second.id) == ("multi.json#0", "own")
    for found in (first, second):
        assert found.attributes["virtual_source"] == found.attributes["path"] == found.attributes["source"] == PATH
        assert found.attributes["plugin_virtual"] == "true"
        assert found.auth_kind == "oauth"
    assert first.headers == (("x-a", "1"),)
    assert (first.secret, second.secret) == (Secret("t1"), Secret("t2"))


def test_B3_one_record_is_an_ordinary_one_with_the_whole_file_behind_it():
    (found,) = made(record({"access_token": "t"}, label="L"), document={"type": "acme", "own": 1, "priority": 2})
    assert (found.source_kind, found.id, found.label, found.priority) == ("file", "multi.json", "L", 2)
    assert found.metadata.reveal() == {"type": "acme", "own": 1, "priority": 2, "access_token": "t", "label": "L"}


@pytest.mark.parametrize(
    ("given", "asked", "expected"), [("", "acme", "acme"), (" Other ", "acme", "other"), ("x", "", "x")]
)
def test_B5_M104_a_record_without_a_provider_belongs_to_the_one_that_was_asked_for(given, asked, expected):
    (found,) = made(record({}, provider=given), provider=asked)
    assert (found.provider, found.metadata.reveal()["type"]) == (expected, expected)


def test_M104_a_record_that_belongs_to_nobody_fails_the_whole_file():
    with pytest.raises(InvalidCredential, match="named no provider"):
        made(record({}, provider="acme"), record({}), provider="")


def test_storage_that_is_no_object_fails_the_whole_file():
    with pytest.raises(InvalidCredential, match="no JSON object"):
        made(record([1]))


def test_what_the_operator_wrote_into_the_file_holds_for_every_record_of_it():
    document = {"type": "acme", "disabled": True, "excluded-models": ["x"], "priority": 3, "note": "n", "secret": "s"}
    for found in made(record({"a": 1, "priority": 9}), record({"a": 2}), document=document):
        assert (found.disabled, found.excluded_models, found.priority, found.note) == (True, ("x",), 3, "n")
        assert "secret" not in found.metadata.reveal()


def test_two_records_with_the_same_id_fail_the_file():
    with pytest.raises(InvalidCredential, match="same id"):
        made(record({}, id="a"), record({}, id="a"))


def test_a_plugin_says_where_the_secret_goes_and_what_it_is_called():
    attributes = {"secret_field": "session.key", "secret_place": "header", "secret_name": "X-Session", "region": "eu"}
    (found,) = made(record({"session": {"key": "s"}}, attributes=attributes))
    assert (found.secret, found.secret_place, found.secret_name) == (Secret("s"), "header", "x-session")
    assert found.attributes["region"] == "eu"
    (itself,) = made(record({"access_token": "t"}, attributes={"secret_place": "none"}))
    assert (itself.secret, itself.secret_place) == (None, "none")


@pytest.mark.parametrize("attributes", [{"secret_place": "body"}, {"secret_place": "query"}])
def test_a_secret_place_that_makes_no_sense_fails_the_file(attributes):
    with pytest.raises(InvalidCredential, match="secret_place"):
        made(record({"access_token": "t"}, attributes=attributes))


def test_a_secret_or_header_that_a_plugin_gave_as_an_attribute_works_and_is_not_shown():
    (found,) = made(record(attributes={"api_key": "sk-hidden", "header:X-Org": "o", "base_url": "https://a.test/"}))
    assert (found.secret, found.headers, found.base_url) == (Secret("sk-hidden"), (("x-org", "o"),), "https://a.test")
    assert "sk-hidden" not in str(found.attributes)
    assert "header:X-Org" not in found.attributes


def test_B6_storage_and_metadata_become_one_object_with_the_provider_as_type():
    assert stored_document(record({"a": 1}, metadata={"b": 2}, provider="acme")) == {"a": 1, "b": 2, "type": "acme"}


@pytest.mark.parametrize("empty", [record(), record({"a": 1})])
def test_B8_a_record_that_says_nothing_or_belongs_to_nobody_cannot_be_stored(empty):
    with pytest.raises(InvalidCredential):
        stored_document(empty)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"file_name": "mine.json"}, "mine.json"),
        ({"file_name": "../../etc/x"}, "x.json"),
        ({"metadata": {"email": "me@x.test"}}, "acme-me@x.test.json"),
        ({"label": "a/b c"}, "acme-a_b_c.json"),
        ({}, "acme-account.json"),
    ],
)
def test_a_new_record_gets_a_plain_file_name(fields, expected):
    assert stored_name(record({}, **fields), provider="acme") == expected


def test_a_renewed_record_keeps_its_identity_its_attributes_and_what_the_answer_left_empty():
    (before,) = made(
        record({"access_token": "old", "refresh_token": "r"}, attributes={"region": "eu", "base_url": "https://a.test"})
    )
    before = replace(before, created_at_s=5.0)
    answer = record({"access_token": "new"})
    changes = renewed_members(before, answer)
    assert changes == {"access_token": "new"}
    after = renewed_record(before, answer, {**before.metadata.reveal(), **changes}, SETTINGS, now_s=9.0)
    assert (after.id, after.handle, after.auth_index, after.created_at_s) == (
        before.id,
        before.handle,
        before.auth_index,
        5.0,
    )
    assert (after.secret, after.base_url, after.attributes["region"]) == (Secret("new"), "https://a.test", "eu")
    assert after.metadata.reveal()["refresh_token"] == "r"


def test_a_plugin_gets_its_record_back_with_its_secrets():
    (found,) = made(record({"access_token": "t"}, next_refresh_after="2030-01-01T00:00:00Z"))
    given = plugin_record(found)
    assert b'"access_token":"t"' in bytes(given.storage)
    assert (given.id, given.provider, given.next_refresh_after) == ("multi.json", "acme", "2030-01-01T00:00:00Z")
