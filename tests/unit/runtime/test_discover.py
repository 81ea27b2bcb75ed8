"""Which plugins exist."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from host.config.model import Config
from host.runtime.discover import discover, folder_digest, why_missing
from tests.support.runtime import plugin_folder


def ids(found: object) -> list[str]:
    return [source.plugin_id for source in found.found]  # type: ignore[attr-defined]


def entry_point(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, "jackfield.plugins")


def test_L14_a_folder_that_does_not_exist_holds_no_plugins(tmp_path: Path):
    found = discover(None, tmp_path / "nothing")
    assert (found.found, found.shadowed, found.broken) == ((), (), ())


def test_L09_only_folders_with_a_manifest_are_plugins_in_the_order_of_their_names(tmp_path: Path):
    plugin_folder(tmp_path, "b")
    plugin_folder(tmp_path, "a")
    plugin_folder(tmp_path / ".hidden", "c")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.so").write_bytes(b"")
    assert ids(discover(None, tmp_path)) == ["a", "b"]


def test_L12_a_folder_may_have_any_name_and_the_id_keeps_its_case(tmp_path: Path):
    plugin_folder(tmp_path, "x").rename(tmp_path / "Some Folder.SO")
    manifest = tmp_path / "Some Folder.SO" / "plugin.toml"
    manifest.write_text(manifest.read_text().replace('id = "x"', 'id = "Plugin"'))
    assert ids(discover(None, tmp_path)) == ["Plugin"]


def test_a_missing_plugins_folder_does_not_hide_the_bundled_ones(tmp_path: Path):
    plugin_folder(tmp_path / "bundled", "a")
    found = discover(tmp_path / "bundled", tmp_path / "plugins")
    assert [(source.plugin_id, source.origin) for source in found.found] == [("a", "bundled")]


def test_the_first_of_an_id_wins_and_the_shadowed_one_is_reported(tmp_path: Path):
    plugin_folder(tmp_path / "bundled", "a")
    other = plugin_folder(tmp_path / "plugins", "a")
    found = discover(tmp_path / "bundled", tmp_path / "plugins")
    assert ids(found) == ["a"]
    assert [(entry.plugin_id, entry.path) for entry in found.shadowed] == [("a", str(other))]
    assert found.shadowed[0].by == str(tmp_path / "bundled" / "a")


def test_one_real_path_counts_once(tmp_path: Path):
    folder = plugin_folder(tmp_path, "a")
    (tmp_path / "b").symlink_to(folder)
    found = discover(None, tmp_path)
    assert ids(found) == ["a"]
    assert found.shadowed == ()


def test_a_broken_plugin_stays_in_the_list_with_its_reason(tmp_path: Path):
    plugin_folder(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "plugin.toml").write_text('id = "bad"\nversion = "1"\nnmae = "x"')
    found = discover(None, tmp_path)
    assert ids(found) == ["good"]
    (broken,) = found.broken
    assert broken.plugin_id == "bad"
    assert "plugin.toml:3: unknown key 'nmae', did you mean 'name'?" in broken.reason


def test_a_plugins_path_that_is_no_folder_is_reported_and_hides_nothing(tmp_path: Path):
    plugin_folder(tmp_path / "bundled", "a")
    (tmp_path / "file").write_text("")
    found = discover(tmp_path / "bundled", tmp_path / "file")
    assert ids(found) == ["a"]
    assert "cannot be read" in found.broken[0].reason


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "site"
    base.mkdir()
    monkeypatch.syspath_prepend(str(base))
    return base


def test_an_entry_point_may_name_a_package_with_a_manifest(packages: Path):
    folder = plugin_folder(packages, "jf_pkg_plugin", 'raise RuntimeError("must not be imported")')
    (folder / "__init__.py").write_text("")
    found = discover(None, None, [entry_point("x", "jf_pkg_plugin")])
    (source,) = found.found
    assert (source.plugin_id, source.origin, source.package) == ("jf_pkg_plugin", "entry_point", "jf_pkg_plugin")


def test_an_entry_point_may_name_a_class_and_nothing_is_imported_to_list_it(packages: Path):
    (packages / "jf_module_plugin.py").write_text('raise RuntimeError("must not be imported")')
    found = discover(None, None, [entry_point("by-class", "jf_module_plugin:P")])
    (source,) = found.found
    assert (source.plugin_id, source.entry_point) == ("by-class", "jf_module_plugin:P")
    assert "jf_module_plugin" not in sys.modules


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("gone", "jf_no_such_module:P", "cannot be found"),
        ("plain", "json", "contains no plugin.toml"),
        ("bad id", "json:P", "is no plugin id"),
    ],
)
def test_a_broken_entry_point_is_listed_with_its_reason(name: str, value: str, reason: str):
    found = discover(None, None, [entry_point(name, value)])
    assert found.found == ()
    assert reason in found.broken[0].reason


def test_the_folder_comes_before_the_entry_point(tmp_path: Path, packages: Path):
    plugin_folder(tmp_path / "plugins", "same")
    (packages / "jf_same.py").write_text("")
    found = discover(None, tmp_path / "plugins", [entry_point("same", "jf_same:P")])
    assert [source.origin for source in found.found] == ["directory"]
    assert [entry.plugin_id for entry in found.shadowed] == ["same"]


def test_the_digest_changes_with_content_and_names_but_not_with_caches(tmp_path: Path):
    folder = plugin_folder(tmp_path, "a", "X = 1")
    first = folder_digest(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "plugin.pyc").write_bytes(b"1")
    (folder / ".swp").write_text("x")
    assert folder_digest(folder) == first
    (folder / "data.txt").write_text("x")
    second = folder_digest(folder)
    (folder / "data.txt").rename(folder / "other.txt")
    assert len({first, second, folder_digest(folder)}) == 3


def test_a_folder_that_may_not_be_looked_into_is_broken_and_hides_no_other(tmp_path: Path, monkeypatch):
    plugin_folder(tmp_path, "locked")
    plugin_folder(tmp_path, "open")
    look = Path.is_file

    def is_file(path: Path) -> bool:
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    found = discover(None, tmp_path)
    assert ids(found) == ["open"]
    assert [(it.plugin_id, it.reason) for it in found.broken] == [("locked", "cannot be read: Permission denied")]


def test_what_is_said_of_a_missing_plugin_tells_a_folder_of_its_name_from_none(tmp_path: Path):
    plugins = tmp_path / "plugins"
    plugin_folder(plugins, "other").rename(plugins / "renamed")
    (plugins / "empty").mkdir()
    config = Config(directory=str(tmp_path))
    assert why_missing(config, "gone") == "not found in plugins/"
    assert why_missing(config, "empty") == "not found in plugins/: plugins/empty has no plugin.toml"
    assert why_missing(config, "renamed") == "not found in plugins/: plugins/renamed holds a plugin with the id 'other'"
    assert why_missing(config, "../plugins/renamed") == "not found in plugins/"
