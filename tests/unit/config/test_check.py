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


ROUTER = 'id = "mine"\nversion = "1"\ncommand = ["true"]\n'
NOBODY = "no bundled plugin executes it"


@pytest.mark.parametrize(
    ("manifest", "enabled", "is_told"),
    [
        ("", False, True),
        (ROUTER, False, True),
        (ROUTER, True, False),
        (f'{ROUTER}capabilities = ["model.route"]\n', True, True),
        (f'{ROUTER}capabilities = ["executor.execute"]\n', True, False),
    ],
    ids=["none", "not enabled", "unknown", "router", "executor"],
)
def test_credentials_that_no_plugin_can_use_are_a_warning(
    tmp_path: Path, manifest: str, enabled: bool, is_told: bool
) -> None:
    (tmp_path / "auths").mkdir()
    for name, provider in (("v.json", "vertex"), ("c.json", "claude"), ("n.json", ""), ("x.json", "acme-oauth")):
        (tmp_path / "auths" / name).write_text(f'{{"type": "{provider}"}}')
    if manifest:
        (tmp_path / "plugins" / "mine").mkdir(parents=True)
        (tmp_path / "plugins" / "mine" / "plugin.toml").write_text(manifest)
    keys = "vertex-api-key: [{api-key: v}]\nclaude-api-key: [{api-key: c}]\n"
    _, said = checked(
        tmp_path, f"{keys}plugins: {{enabled: {str(enabled).lower()}, configs: {{mine: {{enabled: true}}}}}}\n"
    )
    told = [line for line in said.splitlines() if NOBODY in line]
    assert [line.split(" cannot")[0] for line in told] == is_told * [
        "warning: 1 credential of provider `acme-oauth`",
        "warning: 2 credentials of provider `vertex`",
    ]
