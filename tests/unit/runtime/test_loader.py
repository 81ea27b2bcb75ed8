"""Importing the code of in-process plugins."""

import sys
from pathlib import Path

import pytest

from host.runtime.discover import PluginSource
from host.runtime.loader import LoadError, load_plugin_code
from tests.support.runtime import manifest, plugin_folder, source_of

CLASS = "class P(Plugin):\n    value = {}\n    async def model_route(self, request): ...\n"


def load(folder: Path, generation: int = 1) -> type:
    return load_plugin_code(source_of(folder), generation=generation).plugin_class


def test_a_changed_folder_loads_anew_and_the_old_class_stays_what_it_was(tmp_path: Path):
    """Within the same second and with the same size, where cached bytecode would be taken for fresh."""
    folder = plugin_folder(tmp_path, "p", CLASS.format(1))
    old = load(folder)
    (folder / "plugin.py").write_text((folder / "plugin.py").read_text().replace("value = 1", "value = 2"))
    new = load(folder, generation=2)
    assert (old.value, new.value) == (1, 2)
    assert old.__module__ != new.__module__
    assert not (folder / "__pycache__").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "import helpers\nV = helpers.VALUE",
        "from helpers import VALUE as V",
        "from . import helpers\nV = helpers.VALUE",
        "from .helpers import VALUE as V",
        "import sub.inner\nV = sub.inner.VALUE",
        "from sub import inner\nV = inner.VALUE",
        "from sub.inner import VALUE as V",
        "def later():\n    import helpers\n    return helpers.VALUE\nV = later()",
    ],
)
def test_a_plugin_imports_its_own_files_as_it_does_in_a_process(tmp_path: Path, statement: str):
    folder = plugin_folder(
        tmp_path, "p", statement + "\n" + CLASS.format("V"), files={"helpers.py": "from deeper import VALUE\n"}
    )
    (folder / "deeper.py").write_text("VALUE = 'mine'\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "inner.py").write_text("import deeper\nVALUE = deeper.VALUE\n")
    assert load(folder).value == "mine"
    assert "helpers" not in sys.modules
    assert str(folder) not in sys.path


def test_two_plugins_may_use_the_same_file_names(tmp_path: Path):
    values = []
    for name in ("one", "two"):
        code = "import helpers\n" + CLASS.format("helpers.VALUE")
        folder = plugin_folder(tmp_path, name, code, files={"helpers.py": f"VALUE = {name!r}\n"})
        values.append(load(folder).value)
    assert values == ["one", "two"]


def test_the_standard_library_cannot_be_replaced_by_a_plugins_file(tmp_path: Path):
    code = "import json\n" + CLASS.format("json.dumps([1])")
    folder = plugin_folder(tmp_path, "p", code, files={"json.py": "raise RuntimeError('shadowed')\n"})
    assert load(folder).value == "[1]"


def test_unloading_forgets_the_modules_and_keeps_running_code_working(tmp_path: Path):
    code = "import helpers\ndef get(self):\n    return helpers.VALUE\n" + CLASS.format(0) + "    get = get\n"
    folder = plugin_folder(tmp_path, "p", code, files={"helpers.py": "VALUE = 7\n"})
    loaded = load_plugin_code(source_of(folder), generation=1)
    instance = loaded.plugin_class()
    loaded.unload()
    assert not any(name.startswith(loaded.module_name.rpartition(".")[0]) for name in sys.modules)
    assert instance.get() == 7  # type: ignore[attr-defined]


def test_a_failed_import_leaves_nothing_behind(tmp_path: Path):
    folder = plugin_folder(tmp_path, "p", "import helpers\nraise ValueError('x')\n", files={"helpers.py": ""})
    before = set(sys.modules)
    with pytest.raises(LoadError, match="ValueError: x"):
        load(folder)
    assert {name for name in set(sys.modules) - before if name.startswith("_jackfield")} == set()


def test_a_bundled_plugin_is_imported_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "jf_bundle").mkdir()
    (tmp_path / "jf_bundle" / "__init__.py").write_text("")
    folder = plugin_folder(tmp_path / "jf_bundle", "p", CLASS.format(3))
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = PluginSource(
        manifest=manifest(entry="plugin:P"), directory=folder, origin="bundled", package="jf_bundle.p"
    )
    code = load_plugin_code(source, generation=1)
    assert code.module_name == "jf_bundle.p.plugin"
    code.unload()
    assert "jf_bundle.p.plugin" in sys.modules


def test_an_entry_point_class_is_imported_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "jf_entry_class.py").write_text("from pluginapi import *\n" + CLASS.format(4))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = PluginSource(
        manifest=manifest(entry="jf_entry_class:P"),
        directory=tmp_path,
        origin="entry_point",
        entry_point="jf_entry_class:P",
    )
    assert load_plugin_code(source, generation=1).plugin_class.value == 4  # type: ignore[attr-defined]
