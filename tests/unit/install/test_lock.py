"""`plugins.lock`: what it remembers, when it speaks against a start, and whom the management API may enable."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from host.install.lock import LockError, PluginsLock, Seals, changed_lock, may_enable, note_enabled, read_lock
from host.runtime.discover import Origin, PluginSource
from host.runtime.manifest import Manifest
from tests.support.locked import lock_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "plugins" / "greeter"
    made.mkdir(parents=True)
    (made / "plugin.toml").write_text("id = 'greeter'")
    (made / "main.py").write_text("print()")
    return made


def source(folder: Path, origin: Origin = "directory") -> PluginSource:
    return PluginSource(manifest=Manifest(id=folder.name, version="1"), directory=folder, origin=origin)


def test_without_a_lock_file_nothing_is_locked_and_everything_starts(tmp_path, folder):
    assert read_lock(tmp_path) == PluginsLock()
    assert Seals(tmp_path)(source(folder)) is None


def test_the_file_is_readable_json_for_its_owner_only_and_keeps_what_was_put_into_it(tmp_path, folder):
    entry = lock_folder(tmp_path, "greeter", folder, source="https://example.com/greeter.zip", archive="sha256:00")
    file = tmp_path / "plugins.lock"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = json.loads(file.read_text())["plugins"]["greeter"]
    assert written["folder"] == "plugins/greeter"
    assert sorted(written["files"]) == ["main.py", "plugin.toml"]
    assert read_lock(tmp_path).plugins == {"greeter": entry}


def test_an_installed_plugin_starts_only_as_it_was_installed(tmp_path, folder):
    lock_folder(tmp_path, "greeter", folder)
    check = Seals(tmp_path)
    assert check(source(folder)) is None
    (folder / "main.py").write_text("import os")
    problem = check(source(folder))
    assert problem is not None
    assert "changed: main.py" in problem
    assert "plugins verify greeter" in problem and "plugins lock greeter" in problem
    (folder / "main.py").write_text("print()")
    assert check(source(folder)) is None


def test_a_planted_compiled_module_is_gone_before_the_start(tmp_path, folder):
    lock_folder(tmp_path, "greeter", folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"evil")
    assert Seals(tmp_path)(source(folder)) is None
    assert not (folder / "__pycache__").exists()


def test_a_folder_that_cannot_be_read_does_not_start(tmp_path, folder):
    lock_folder(tmp_path, "greeter", folder)
    gone = folder.rename(tmp_path / "elsewhere")
    problem = Seals(tmp_path)(source(folder))
    assert problem is not None and "cannot be checked" in problem
    # Wherever a plugin of that id lies now, it has to be what was installed.
    (gone / "main.py").write_text("other")
    moved = PluginSource(manifest=Manifest(id="greeter", version="1"), directory=gone, origin="directory")
    assert "changed: main.py" in (Seals(tmp_path)(moved) or "")


def test_bundled_and_pip_installed_plugins_are_not_looked_at(tmp_path, folder):
    lock_folder(tmp_path, "greeter", folder)
    (folder / "main.py").write_text("other")
    assert Seals(tmp_path)(source(folder, "bundled")) is None
    assert Seals(tmp_path)(source(folder, "entry_point")) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "damaged"),
        ('{"plugins": {"x": {"version": "1"}}}', "damaged"),
        ('{"lock_version": 2}', "another version"),
        ('{"plugins":{"x":{"version":"1","folder":"f","tree":"sha256:0","files":{"a":"b"}}}}', "contradicts itself"),
    ],
)
def test_with_a_lock_nobody_can_read_no_plugin_of_the_folder_starts(tmp_path, folder, text, says):
    (tmp_path / "plugins.lock").write_text(text)
    with pytest.raises(LockError, match=says):
        read_lock(tmp_path)
    assert says in (Seals(tmp_path)(source(folder)) or "")
    assert says in (may_enable(tmp_path, "greeter") or "")
    assert says in (note_enabled(tmp_path, ["greeter"]) or "")
    assert (tmp_path / "plugins.lock").read_text() == text


def test_http_may_enable_what_is_installed_and_unchanged(tmp_path, folder):
    lock_folder(tmp_path, "greeter", folder)
    assert may_enable(tmp_path, "greeter") is None
    (folder / "extra.py").write_text("")
    assert "added: extra.py" in (may_enable(tmp_path, "greeter") or "")


def test_http_may_enable_what_was_enabled_on_this_machine_before_and_nothing_else(tmp_path, folder):
    refusal = may_enable(tmp_path, "greeter")
    assert refusal is not None and "jackfield plugins enable greeter" in refusal
    assert note_enabled(tmp_path, ["greeter"]) is None
    assert may_enable(tmp_path, "greeter") is None
    assert may_enable(tmp_path, "other") is not None
    with changed_lock(tmp_path) as change:
        change.drop("greeter")
    assert may_enable(tmp_path, "greeter") is not None


def test_an_installed_plugin_that_was_changed_cannot_be_enabled_because_it_was_enabled_before(tmp_path, folder):
    lock_folder(tmp_path, "greeter", folder)
    note_enabled(tmp_path, ["greeter"])
    (folder / "main.py").write_text("other")
    assert "changed: main.py" in (may_enable(tmp_path, "greeter") or "")


def test_what_is_noted_again_is_not_written_again(tmp_path):
    note_enabled(tmp_path, ["a"])
    before = (tmp_path / "plugins.lock").stat()
    note_enabled(tmp_path, ["a"])
    assert (tmp_path / "plugins.lock").stat().st_ino == before.st_ino


def test_changes_of_several_processes_at_once_all_count(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda number: note_enabled(tmp_path, [f"p{number}"]), range(24))) == {None}
    assert len(read_lock(tmp_path).enabled_here) == 24


def test_a_folder_that_cannot_be_written_is_said_and_changes_nothing(tmp_path):
    assert "No such file" in (note_enabled(tmp_path / "missing", ["a"]) or "")
