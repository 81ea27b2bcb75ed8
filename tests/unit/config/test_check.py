"""`jackfield check` says beforehand what the start would stumble over."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from host.cli import main


def checked(directory: Path, text: str) -> tuple[int, str]:
    file = directory / "config.yaml"
    file.write_text(text)
    done = CliRunner().invoke(main, ["check", "--config", str(file)])
    return done.exit_code, done.output


def test_files_that_the_start_needs_are_looked_at_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert checked(tmp_path, "auth-dir: new/folder\n")[0] == 0
    assert not (tmp_path / "new").exists()
    for auth_dir in ("file", "file/below"):
        code, said = checked(tmp_path, f"auth-dir: {auth_dir}\n")
        assert (code, f"{tmp_path / 'file'} is no directory" in said) == (1, True)
    code, said = checked(tmp_path, "tls: {enable: true, cert: c.pem, key: k.pem}\n")
    assert (code, "`tls.cert`" in said) == (1, True)


@pytest.mark.parametrize(("plugin_id", "hint"), [("limitz", "did you mean `limits`?"), ("zzzzzz", "not there\n")])
def test_a_policy_for_a_plugin_that_is_not_there_is_a_warning(tmp_path: Path, plugin_id: str, hint: str) -> None:
    code, said = checked(tmp_path, f"plugins: {{policy: {{{plugin_id}: {{permissions: [kv]}}}}}}\n")
    assert code == 0
    assert f"warning: plugins.policy.{plugin_id} is for a plugin that is not there" in said and hint in said
