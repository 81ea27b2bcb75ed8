"""A plugin's section: what is shown, and what an edit leaves alone."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from host.config.load import load_config
from host.management.calls import ManagementError
from host.management.plugin_config import Edit, SecretFields, edit_section, merged_with, read_section, replaced_by
from host.runtime.manifest import parse_manifest

FILE = """\
# the operator's file
port: 0
plugins:
  enabled: true   # all of them
  configs:
    # keeps costs down
    limits:
      zulu: 'kept'   # a comment
      a: 1
      d: 2
      enabled: true
      token: hidden
    other: {x: 1}
api-keys:
  - jf-1
"""
SECRET = SecretFields(frozenset({"token"}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


def change(file: Path, edit: Edit, plugin_id: str = "limits") -> Mapping[str, Any]:
    edit_section(file, plugin_id, edit)
    return read_section(file, plugin_id)


def patch(values: Mapping[str, Any], *, references: bool = False) -> Edit:
    return merged_with(values, SECRET, references=references)


def put(values: Mapping[str, Any], *, references: bool = False) -> Edit:
    return replaced_by(values, SECRET, references=references)


def test_M136_a_patch_is_a_shallow_merge_in_which_null_deletes(file: Path) -> None:
    found = change(file, patch({"a": None, "b": {"c": 1}}))
    assert found == {"zulu": "kept", "d": 2, "enabled": True, "token": "hidden", "b": {"c": 1}}
    assert list(found) == ["zulu", "d", "enabled", "token", "b"]


def test_M136_a_put_replaces_the_section_in_sorted_order(file: Path) -> None:
    found = change(file, put({"z": 1, "a": 1, "zulu": "kept"}))
    assert list(found.items()) == [("a", 1), ("z", 1), ("zulu", "kept")]


@pytest.mark.parametrize("values", [{"enabled": "yes please"}, {"priority": "high"}, {"priority": True}])
def test_M136_a_section_the_host_cannot_read_is_refused_and_nothing_is_written(
    file: Path, values: dict[str, Any]
) -> None:
    for edit in (patch(values), put(values)):
        with pytest.raises(ManagementError) as caught:
            edit_section(file, "limits", edit)
        assert (caught.value.status, caught.value.document["error"]) == (400, "invalid_config")
    assert file.read_text() == FILE


def test_comments_and_the_order_of_everything_else_stay(file: Path) -> None:
    change(file, patch({"a": 5}))
    assert file.read_text() == FILE.replace("a: 1", "a: 5")


def test_a_new_section_is_added_below_the_others(file: Path) -> None:
    assert change(file, patch({"enabled": False}), "new-one") == {"enabled": False}
    assert file.read_text().startswith(FILE.partition("    other")[0])


def test_secrets_are_shown_as_a_mask_and_references_as_they_were_written() -> None:
    section = {"token": "hidden", "a": 1}
    assert SECRET.masked(section) == {"token": "***", "a": 1}
    assert SECRET.masked({"token": {"env": "TOKEN"}}) == {"token": {"env": "TOKEN"}}


def test_what_is_secret_is_what_the_manifest_says_or_else_what_sounds_like_it() -> None:
    manifest = parse_manifest('id = "p"\nversion = "1"\ncommand = ["x"]\n[[config]]\nname = "pin"\nsecret = true\n')
    assert SecretFields.of(manifest, {"api_key": "x"}).names == {"pin"}
    assert SecretFields.of(None, {"api_key": "x", "Password": "x", "limit": 1}).names == {"api_key", "Password"}


@pytest.mark.parametrize("edit", [patch({"token": "***"}), put({"token": "***"})])
def test_a_mask_that_is_written_back_keeps_the_value(file: Path, edit: Edit) -> None:
    assert change(file, edit)["token"] == "hidden"


NESTED = {"upstream": {"region": "eu", "password": "three"}, "servers": [{"at": "a", "token": "x"}, {"at": "b"}]}


def test_what_sounds_secret_inside_of_a_value_is_masked_and_kept(file: Path) -> None:
    change(file, put(NESTED))
    shown = SECRET.masked(read_section(file, "limits"))
    assert shown["upstream"] == {"region": "eu", "password": "***"}
    assert shown["servers"] == [{"at": "a", "token": "***"}, {"at": "b"}]
    shown["servers"].reverse()
    shown["upstream"]["region"] = "us"
    found = change(file, put(shown))
    assert found["upstream"] == {"region": "us", "password": "three"}
    assert found["servers"] == [{"at": "b"}, {"at": "a", "token": "x"}]


@pytest.mark.parametrize("values", [{"upstream": {"token": "***"}}, {"servers": [{"at": "c", "token": "***"}]}])
def test_a_mask_inside_of_a_value_that_stands_for_nothing_is_refused(file: Path, values: Mapping[str, Any]) -> None:
    change(file, put(NESTED))
    with pytest.raises(ManagementError, match="there is no value to keep"):
        change(file, patch(values))


def test_a_mask_without_a_value_behind_it_is_refused(file: Path) -> None:
    with pytest.raises(ManagementError) as caught:
        edit_section(file, "other", patch({"token": "***"}))
    assert caught.value.status == 400


def test_a_new_secret_replaces_the_old_one(file: Path) -> None:
    assert change(file, patch({"token": "new"}))["token"] == "new"


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 1.5, 1.0, True, "1", [1, {"a": 2.0}], 0])
def test_a_value_keeps_its_type(file: Path, value: Any) -> None:
    found = change(file, patch({"n": value}))["n"]
    assert found == value and type(found) is type(value)


def test_one_and_true_and_one_point_zero_are_different_values(file: Path) -> None:
    for value in (True, 1.0, 1):
        found = change(file, patch({"a": value}))["a"]
        assert type(found) is type(value)


@pytest.mark.parametrize("value", [2**63, [1, {"a": -(2**64)}]])
def test_a_whole_number_of_more_than_64_bits_is_refused(file: Path, value: Any) -> None:
    with pytest.raises(ManagementError) as caught:
        edit_section(file, "limits", patch({"n": value}))
    assert caught.value.document["error"] == "invalid_config"


@pytest.mark.parametrize("value", [{"file": "/etc/shadow"}, {"env": "HOME"}, [{"a": {"file": "x"}}]])
def test_a_reference_is_made_on_the_machine_only_and_may_be_kept_from_elsewhere(file: Path, value: Any) -> None:
    with pytest.raises(ManagementError) as caught:
        edit_section(file, "limits", patch({"n": value}))
    assert caught.value.document["error"] == "invalid_config"
    change(file, patch({"n": value}, references=True))
    assert change(file, patch({"n": value, "m": 1}))["n"] == value


@pytest.mark.parametrize("plugin_id", ["", "../x", "a b", ".enabled", "x" * 200])
def test_what_is_no_plugin_id_is_refused(file: Path, plugin_id: str) -> None:
    with pytest.raises(ManagementError) as caught:
        edit_section(file, plugin_id, patch({}))
    assert (caught.value.status, caught.value.document["error"]) == (400, "invalid_plugin_id")


def test_a_file_that_is_broken_already_is_not_written(file: Path) -> None:
    file.write_text(FILE + "nonsense: 1\n")
    with pytest.raises(ManagementError) as caught:
        edit_section(file, "limits", patch({"a": 2}))
    assert caught.value.status == 500
    assert str(caught.value.document["error"]).startswith("failed to save config: ")


def test_an_edit_that_changes_nothing_does_not_touch_the_file(file: Path) -> None:
    os.utime(file, ns=(1, 1))
    change(file, patch({"a": 1}))
    assert file.stat().st_mtime_ns == 1


def test_switching_on_also_sets_the_switch_for_all(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 0\n")
    edit_section(file, "p", patch({"enabled": True}), switch_on=True)
    config = load_config(file).config
    assert config.plugins.enabled and config.plugins.configs["p"].enabled


@pytest.mark.parametrize("anchor", ["", "&a "])
def test_nothing_is_lost_of_a_section_with_comments_that_the_library_cannot_keep(file: Path, anchor: str):
    text = f"request-retry: {anchor}1\nplugins:\n  configs:\n    p:\n      a: # why\n        x\n\n      b: 2\n"
    file.write_text(text + (f"max-retry-credentials: *{anchor[1:]}\n" if anchor else ""))
    before = file.read_text()
    try:
        edit_section(file, "p", patch({"c": 3}))
    except ManagementError as error:
        assert anchor and error.status == 500 and file.read_text() == before
    else:
        assert load_config(file).config.plugins.configs["p"].config == {"a": "x", "b": 2, "c": 3}
