"""Which paths a confined plugin may read, and how what must stay hidden is kept out of them."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

from host.runtime.confine_paths import carved, program_paths, python_paths, system_paths, without


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = Path(os.path.realpath(tmp_path))
    for name in ("etc/secret.yaml", "etc/public", "lib/a", "lib/deep/auths/key", "lib/deep/b", "opt/tool"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return root


def names(root: Path, paths: list[Path]) -> set[str]:
    return {str(path.relative_to(root)) for path in paths}


def test_a_directory_without_anything_hidden_stays_one_path(tree: Path):
    assert names(tree, without([tree / "lib", tree / "opt"], [tree / "etc"])) == {"lib", "opt"}


def test_a_directory_that_holds_something_hidden_is_replaced_by_its_other_children(tree: Path):
    found = names(tree, without([tree], [tree / "lib/deep/auths", tree / "etc/secret.yaml"]))
    assert found == {"etc/public", "lib/a", "lib/deep/b", "opt"}


def test_what_is_hidden_or_lies_in_something_hidden_is_left_out(tree: Path):
    assert without([tree / "etc/secret.yaml", tree / "lib/deep/auths/key"], [tree / "etc", tree / "lib/deep"]) == []


def test_a_link_out_of_a_replaced_directory_is_not_followed(tree: Path):
    (tree / "lib/escape").symlink_to(tree / "etc")
    assert "etc" not in names(tree, without([tree / "lib"], [tree / "lib/deep/auths"]))


def test_a_path_given_through_a_link_is_what_it_leads_to(tree: Path):
    (tree / "alias").symlink_to(tree / "etc/secret.yaml")
    assert without([tree / "alias"], [tree / "etc/secret.yaml"]) == []


def test_a_plugins_own_folder_is_readable_inside_of_something_hidden_but_not_what_lies_hidden_in_it(tree: Path):
    assert names(tree, carved([tree / "lib"], [tree])) == {"lib"}
    assert names(tree, carved([tree / "lib"], [tree, tree / "lib/deep/auths"])) == {"lib/a", "lib/deep/b"}


def test_paths_beneath_another_one_are_left_out(tree: Path):
    assert names(tree, without([tree / "lib", tree / "lib/deep", tree / "lib/a"], [])) == {"lib"}
    assert without([tree / "lib/deep"], [], beneath={tree / "lib"}) == []


def test_the_system_paths_hold_no_secrets():
    shared = without([*system_paths(), *python_paths()], [])
    for secret in ("/etc/shadow", "/etc/ssl/private", "/root/.ssh", "/proc/1/environ", "/var/lib", "/home", "/tmp"):
        assert not any(Path(secret).is_relative_to(path) for path in shared), secret
    assert Path("/") not in shared
    assert Path(os.path.realpath(os.path.expanduser("~"))) not in shared


def test_the_hosts_interpreter_and_its_packages_are_readable():
    shared = without([*system_paths(), *python_paths()], [])
    for needed in (sys.executable, os.path.realpath(sys.executable), os.__file__, msgspec.__file__):
        assert any(Path(os.path.realpath(needed)).is_relative_to(path) for path in shared), needed


def test_a_program_brings_its_prefix_but_never_a_home_directory(tree: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("node/bin/node", "node/lib/x", "node/etc/npmrc", "bin/tool", "lib/x"):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = names(tree, program_paths(str(tree / "node/bin/node"), search_path=""))
    assert found == {"node/bin/node", "node/bin", "node/lib"}
    monkeypatch.setenv("HOME", str(tree))
    assert names(tree, program_paths(str(tree / "bin/tool"), search_path="")) == {"bin/tool"}


def test_a_scripts_interpreter_is_a_program_too_directly_and_by_env(tree: Path):
    interpreter = tree / "sdk/bin/run"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text("")
    interpreter.chmod(0o755)
    for line in (f"#!{interpreter} -x", "#!/usr/bin/env run", "#!/usr/bin/env -S A=1 run -x"):
        script = tree / "plugin.sh"
        script.write_text(f"{line}\n")
        found = program_paths(str(script), search_path=str(interpreter.parent))
        assert {script, interpreter} <= set(found), line


def test_scripts_that_name_each_other_come_to_an_end(tree: Path):
    one, other = tree / "one", tree / "other"
    one.write_text(f"#!{other}\n")
    other.write_text(f"#!{one}\n")
    assert {one, other} == set(program_paths(str(one), search_path=""))
