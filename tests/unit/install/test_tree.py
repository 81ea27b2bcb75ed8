"""What counts in a plugin's folder, and how a change is told."""

import os
from pathlib import Path

import pytest

from host.install.tree import LINK, SPECIAL, difference, digest_of, remove_caches, scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "p"
    (root / "lib").mkdir(parents=True)
    (root / "plugin.toml").write_text("id")
    (root / "lib" / "a.py").write_text("a")
    return root


def test_the_same_files_have_the_same_digest_wherever_and_whenever_they_were_written(folder, tmp_path):
    copy = tmp_path / "q"
    (copy / "lib").mkdir(parents=True)
    (copy / "lib" / "a.py").write_text("a")
    (copy / "plugin.toml").write_text("id")
    assert scan(folder).digest == scan(copy).digest
    (copy / "empty").mkdir()
    assert scan(folder).digest == scan(copy).digest


@pytest.mark.parametrize("change", ["content", "name", "executable", "hidden", "link", "pipe"])
def test_every_kind_of_change_changes_the_digest(folder, change):
    before = scan(folder).digest
    target = folder / "lib" / "a.py"
    if change == "content":
        target.write_text("b")
    elif change == "name":
        target.rename(folder / "lib" / "b.py")
    elif change == "executable":
        target.chmod(0o755)
    elif change == "hidden":
        (folder / ".env").write_text("")
    elif change == "link":
        target.unlink()
        target.symlink_to(folder / "plugin.toml")
    else:
        os.mkfifo(folder / "pipe")
    assert scan(folder).digest != before


def test_a_name_and_a_digest_cannot_be_shifted_into_each_other():
    assert digest_of({"a": "bc"}) != digest_of({"ab": "c"})
    assert digest_of({"a": "b", "c": "d"}) != digest_of({"a": "b\0c\0d"})


def test_links_and_special_files_are_never_opened(folder, tmp_path):
    (folder / "out").symlink_to(tmp_path)
    (folder / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    files = scan(folder).files
    assert (files["out"], files["gone"], files["pipe"]) == (LINK, LINK, SPECIAL)


def test_compiled_python_does_not_count_and_can_be_thrown_away(folder):
    before = scan(folder).digest
    cache = folder / "lib" / "__pycache__"
    cache.mkdir()
    (cache / "a.cpython-311.pyc").write_bytes(b"x")
    tree = scan(folder)
    assert (tree.digest, tree.caches) == (before, (cache,))
    remove_caches(tree)
    remove_caches(tree)
    assert not cache.exists()


def test_a_difference_names_every_file_and_its_summary_the_first_three():
    found = difference({"a": "1", "b": "1", "c": "1"}, {"a": "2", "b": "1", "d": "1", "e": "1"})
    assert list(found.lines()) == ["changed: a", "added: d", "added: e", "missing: c"]
    assert found.summary() == "changed: a, added: d, added: e and 1 more"
    assert found
    assert not difference({"a": "1"}, {"a": "1"})
