"""`jackfield plugins new`: names, places, combinations, what is written and what is said."""

import json
import re
import tomllib

import pytest
from click.testing import CliRunner

from host.cli import main
from host.runtime.manifest import load_manifest
from host.scaffold.catalogue import LANGUAGES, read_kind
from host.scaffold.compose import CannotCreate, class_name, crate_name, module_name, render
from host.scaffold.names import KINDS, LANGUAGE_NAMES, kinds_of
from pluginabi.methods import PLUGIN_METHODS
from pluginapi.cases import read_cases

COMBINATIONS = [(language, kind) for language in LANGUAGES for kind in kinds_of(language)]


def new(tmp_path, monkeypatch, *words):
    monkeypatch.chdir(tmp_path)
    return CliRunner().invoke(main, ["plugins", "new", *words])


def test_a_new_plugin_is_a_folder_and_the_next_three_commands_are_printed(tmp_path, monkeypatch):
    done = new(tmp_path, monkeypatch, "first", "--lang", "go", "--kind", "guard")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "first: a plugin in Go that ends requests it does not like; 8 files."
    commands = [line.split("#")[0].strip() for line in lines[3:]]
    assert len(commands) == 3
    assert commands[0].startswith("make -C first && ") and commands[0].endswith(" plugins test first")
    assert commands[1].endswith(" plugins dev first")
    assert commands[2].startswith("cp -r first plugins/ && ") and commands[2].endswith(" plugins enable first")
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "Makefile",
        "README.md",
        "cases.json",
        "go.mod",
        "jackfield",
        "main.go",
        "main_test.go",
        "plugin.toml",
    ]


def test_without_options_it_is_a_router_in_python(tmp_path, monkeypatch):
    assert new(tmp_path, monkeypatch, "night.shift-2").exit_code == 0
    assert (tmp_path / "night.shift-2" / "night_shift_2.py").read_text().startswith('"""night.shift-2 decides')
    assert load_manifest(tmp_path / "night.shift-2").entry == "night_shift_2:NightShift2"


def test_nothing_that_exists_is_changed(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plugin.toml").write_text("precious")
    done = new(tmp_path, monkeypatch, "mine")
    assert (done.exit_code, done.output) == (2, "mine exists already; nothing was changed\n")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a b"], "'a b' is no plugin id: 1 to 128 letters"),
        (["-", "--kind", "guard"], "'-' is no plugin id"),
        (["x", "--lang", "perl"], "there is no language 'perl'; there are: python, node, go, rust, c, shell"),
        (["x", "--kind", "rooter"], "there is no kind 'rooter'; there are: router, scheduler"),
        (
            ["x", "--lang", "shell", "--kind", "executor"],
            "executor is not offered in shell, which has: router, scheduler, interceptor, guard, usage, frontend-auth,"
            " command-line; executor is there in: python, node, go, rust, c",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(tmp_path, monkeypatch, words, said):
    done = new(tmp_path, monkeypatch, *words)
    assert done.exit_code == 2
    assert said in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    done = new(tmp_path, monkeypatch, "file/x")
    assert done.exit_code == 2
    assert "Not a directory" in done.output


@pytest.mark.parametrize(("language", "kind"), COMBINATIONS)
def test_what_is_made_says_nothing_of_its_templates_and_its_files_are_valid(tmp_path, language, kind):
    rendered = render("my-1st.plugin", language=language, kind=kind)
    for place, text in rendered.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert re.search("@[A-Z]+@", text) is None, place
        assert text.endswith("\n") and "\n\n\n\n" not in text, place
    manifest = load_manifest(tmp_path)
    assert (manifest.id, manifest.version) == ("my-1st.plugin", "0.1.0")
    assert list(manifest.dev.build) == (["make"] if LANGUAGES[language].is_built else [])
    assert {case.method for case in read_cases(tmp_path / "cases.json").cases} == set(read_kind(kind).methods)
    assert all(f"({place})" in rendered["README.md"] for place in rendered if place != "README.md")


def test_every_kind_is_there_in_every_language_that_has_it_and_uses_methods_of_the_contract():
    assert tuple(LANGUAGES) == LANGUAGE_NAMES
    for kind in KINDS:
        assert set(read_kind(kind).methods) <= set(PLUGIN_METHODS), kind
    assert len(COMBINATIONS) == 5 * len(KINDS) + 7


def test_the_cases_of_a_kind_are_the_same_in_every_language():
    for kind in KINDS:
        files = {render("x", language=language, kind=kind)["cases.json"] for language, it in COMBINATIONS if it == kind}
        assert len(files) == 1
        assert json.loads(files.pop())["cases"]


@pytest.mark.parametrize(
    ("plugin_id", "module", "python_class", "crate"),
    [
        ("night-shift", "night_shift", "NightShift", "jackfield-night-shift"),
        ("2nd.try", "plugin_2nd_try", "The2ndTry", "jackfield-2nd-try"),
        ("class", "plugin_class", "Class", "jackfield-class"),
        ("plugin", "plugin", "PluginPlugin", "jackfield-plugin"),
        ("A_b", "a_b", "AB", "jackfield-a_b"),
    ],
)
def test_an_id_becomes_a_valid_name_in_every_language(plugin_id, module, python_class, crate):
    assert module_name(plugin_id) == module
    assert crate_name(plugin_id) == crate
    assert class_name(plugin_id) == python_class


def test_a_manifest_with_a_misspelt_dev_key_is_refused_with_its_line(tmp_path):
    text = render("x", language="go", kind="router")["plugin.toml"]
    assert tomllib.loads(text)["dev"] == {"build": ["make"], "model": "x"}
    (tmp_path / "plugin.toml").write_text(text.replace("build =", "biuld ="))
    line = text.splitlines().index('build = ["make"]') + 1
    with pytest.raises(Exception, match=rf"plugin\.toml:{line}: unknown key 'biuld', did you mean 'build'\?"):
        load_manifest(tmp_path)


def test_an_unknown_combination_raises_before_anything_is_written():
    with pytest.raises(CannotCreate):
        render("x", language="shell", kind="stream")
