"""Credential files on disk."""

import os
import stat

import msgspec
import pytest

from host.credentials import files
from host.credentials.files import InvalidName


@pytest.mark.parametrize(
    "name", ["../x.json", "a/b.json", "a\\b.json", "C:x.json", "", "  ", ".hidden.json", "a\0.json", "a\nb.json"]
)
def test_H123_a_name_with_a_path_in_it_is_no_name_of_a_credential_file(name):
    with pytest.raises(InvalidName, match="invalid auth file name"):
        files.checked_name(name)


def test_H123_a_name_has_to_end_with_json_in_any_case():
    with pytest.raises(InvalidName, match="must end with"):
        files.checked_name("x.txt")
    assert files.checked_name(" X.JSON ") == "X.JSON"


@pytest.mark.parametrize("place", ["auths", "deep/auths"])
def test_a_directory_that_another_process_makes_in_the_same_moment_is_used(tmp_path, monkeypatch, place):
    mkdir = os.mkdir

    def slower(path, mode=0o777):
        mkdir(path, mode)  # the other one
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", slower)
    files.prepare_directory(str(tmp_path / place))
    assert stat.S_IMODE((tmp_path / place).stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["file", "file/below", "nowhere"])
def test_what_is_no_directory_is_not_taken_for_one(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("gone")
    with pytest.raises(NotADirectoryError):
        files.prepare_directory(str(tmp_path / place))


def test_a_written_file_is_whole_and_for_its_owner_only_whatever_the_mask(tmp_path):
    target = tmp_path / "new" / "a.json"
    before = os.umask(0)
    try:
        assert files.write(str(target), b'{"a":1}') is True
    finally:
        os.umask(before)
    assert target.read_bytes() == b'{"a":1}'
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in target.parent.iterdir()] == ["a.json"]


def test_B7_a_file_that_says_the_same_is_not_touched(tmp_path):
    target = tmp_path / "a.json"
    files.write(str(target), b'{"a": 1, "b": [1, 2]}')
    os.utime(target, (1, 1))
    assert files.write(str(target), b'{"b":[1,2],"a":1}') is False
    assert target.stat().st_mtime == 1
    assert files.write(str(target), b'{"b":[2,1],"a":1}') is True


def test_a_file_that_others_may_read_is_written_again_for_its_owner_only(tmp_path):
    target = tmp_path / "a.json"
    target.write_bytes(b"{}")
    target.chmod(0o644)
    assert files.write(str(target), b"{}") is True
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    target.write_bytes(b'{"old":1}')

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(str(target), b'{"new":1}')
    assert target.read_bytes() == b'{"old":1}'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_bytes(b"{}")
    link.symlink_to(real)
    files.write(str(link), b'{"a":1}')
    assert link.is_symlink() and real.read_bytes() == b'{"a":1}'


def test_only_the_top_level_of_the_directory_is_read_without_drafts_and_other_files(tmp_path):
    for name in ("b.JSON", "a.json", ".a.json.tmp", ".draft.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.json").write_text("{}")
    assert [os.path.basename(path) for path in files.scan(str(tmp_path))] == ["a.json", "b.JSON"]
    assert list(files.scan(str(tmp_path / "missing"))) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[1]", "is no JSON object"),
        (b"{", "is no JSON object"),
        (b'{"a":"\xff"}', "is no JSON object"),
        (b'{"a":"' + b"x" * files.MAX_FILE_BYTES + b'"}', "is larger than"),
    ],
)
def test_content_that_cannot_be_used_says_why(data, problem):
    content = files.content_of("x.json", data)
    assert content.members is None
    assert problem in content.problem


def test_setting_a_member_keeps_all_others_as_they_are_written():
    before = b'{"a": 1.10, "big": 123456789012345678901234567890, "u": {"x": 1e3}}'
    after = files.with_members(before, {"t": "new"}, removed=["u"])
    assert b"1.10" in after and b"123456789012345678901234567890" in after
    assert msgspec.json.decode(after, type=dict) == {"a": 1.1, "big": 123456789012345678901234567890, "t": "new"}


def test_a_name_of_a_member_that_is_no_text_makes_it_no_object():
    for change in (lambda data: files.with_members(data, {"a": 1}), lambda data: files.with_value(data, ["a"], 1)):
        with pytest.raises(msgspec.DecodeError):
            change(b'{"\xff": 1}')


def test_setting_a_nested_value_makes_the_objects_on_the_way_and_keeps_their_other_members():
    after = files.with_value(b'{"n": {"x": 1.50}, "s": "text"}', ["n", "y", "z"], True)
    assert b"1.50" in after
    assert msgspec.json.decode(after) == {"n": {"x": 1.5, "y": {"z": True}}, "s": "text"}
    assert msgspec.json.decode(files.with_value(after, ["s", "t"], 1))["s"] == {"t": 1}


def test_a_pipe_or_folder_with_the_name_of_a_file_is_no_file_and_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    assert list(files.scan(str(tmp_path))) == []
    assert files.read(str(tmp_path / "pipe.json")) is None
    assert files.read(str(tmp_path / "folder.json")) is None


def test_a_name_that_is_no_text_is_left_out(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with open(os.fsencode(tmp_path) + b"/\xff.json", "wb"):
        pass
    assert [os.path.basename(path) for path in files.scan(str(tmp_path))] == ["a.json"]
