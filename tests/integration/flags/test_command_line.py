"""`jackfield --option-of-a-plugin`: real processes, from the help to the exit code (spec plugin-abi 7.7)."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.serve.conftest import Site
from tests.support.proxy import ROOT, runtime_dir, serve_process

PROGRAM = """\
import json, os, sys

plugin_id = os.path.basename(os.environ["JACKFIELD_PLUGIN_DIR"])
with open({seen!r}, "a") as seen:
    seen.write(plugin_id + " started\\n")

def send(frame):
    print(json.dumps(frame), flush=True)

for line in sys.stdin:
    frame = json.loads(line)
    if frame["kind"] == "hello":
        hello = {{"kind": "hello", "abi": [1], "schema": 1, "plugin": plugin_id}}
        send({{**hello, "capabilities": ["command_line.execute"]}})
    elif frame["kind"] == "call":
        params = frame["params"]
        with open({seen!r}, "a") as seen:
            seen.write(plugin_id + " asked\\n")
        answer = {{"stdout": plugin_id + " says " + json.dumps(params) + "\\n", "stderr": plugin_id + " grumbles\\n"}}
        own = params["triggered_flags"]
        answer["exit_code"] = int(own.get(plugin_id + "-exit", {{}}).get("value", 0))
        if plugin_id + "-login" in own:
            record = {{"provider": "acme", "label": plugin_id, "storage": {{"api_key": "s3cret"}}}}
            answer["records"] = [record, {{**record, "label": plugin_id + "-2"}}]
        if plugin_id + "-hang" in own:
            pass
        elif plugin_id + "-fail" in own:
            error = {{"message": "no such account", "code": "not_found", "http_status": 404}}
            send({{"kind": "result", "id": frame["id"], "ok": False, "error": error}})
        else:
            send({{"kind": "result", "id": frame["id"], "ok": True, "result": answer}})
"""
OPTIONS = {"login": "bool", "exit": "int", "fail": "bool", "hang": "bool", "wait": "duration"}


@pytest.fixture
def plugins(site: Site) -> Path:
    """Two plugins with options of their own, `b` before `a`; the file that notes what they do."""
    seen = site.directory / "seen"
    for plugin_id in ("a", "b"):
        folder = site.plugins / plugin_id
        folder.mkdir(parents=True)
        (folder / "main.py").write_text(PROGRAM.format(seen=str(seen)))
        flags = "".join(
            f'[[flags]]\nname = "{plugin_id}-{name}"\ntype = "{kind}"\ndescription = "What {name} does."\n'
            for name, kind in (
                ("login", "bool"),
                ("exit", "int"),
                ("fail", "bool"),
                ("hang", "bool"),
                ("wait", "duration"),
            )
        )
        command = "command = ['{python}', '-S', 'main.py']\n"
        (folder / "plugin.toml").write_text(f'id = "{plugin_id}"\nversion = "1.0.0"\n{command}{flags}')
    configs = {"a": {"enabled": True}, "b": {"enabled": True, "priority": 5}}
    # They note what they do in a file that is not their own.
    policy = {plugin_id: {"confinement": "off"} for plugin_id in configs}
    site.configure(plugins={"enabled": True, "configs": configs, "policy": policy})
    return seen


def jackfield(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "host", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": runtime_dir(site.config_file), "JACKFIELD_CONFIG": str(site.config_file)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_help_shows_the_options_of_enabled_plugins_and_starts_none(site: Site, plugins: Path) -> None:
    done = jackfield(site, "--help")
    assert done.returncode == 0
    assert "--a-login " in done.stdout and "--b-wait DURATION" in done.stdout and "What wait does. [b]" in done.stdout
    assert done.stdout.index("--b-login") < done.stdout.index("--a-login")
    assert not plugins.exists()
    site.configure(plugins={"enabled": True, "configs": {"a": {"enabled": True}}})
    assert "--b-login" not in jackfield(site, "--help").stdout


def test_only_the_owner_of_a_given_option_is_started_and_gets_it_in_its_one_form(site: Site, plugins: Path) -> None:
    done = jackfield(site, "--a-wait", "60s", "some", "--", "--more")
    assert (done.returncode, done.stderr) == (0, "a grumbles\n")
    params = json.loads(done.stdout.removeprefix("a says "))
    wait = {"name": "a-wait", "type": "duration", "value": "1m0s", "set": True}
    assert params["triggered_flags"] == {"a-wait": wait}
    assert params["args"] == ["some", "--more"]
    assert params["config_path"] == str(site.config_file)
    assert params["host"]["auth_dir"] == str(site.directory / "auths")
    assert params["flags"]["a-wait"] == wait
    assert params["flags"]["a-exit"] == {"name": "a-exit", "type": "int", "value": "0"}
    assert "b-exit" not in params["flags"]
    assert params["flags"]["config"] == {"name": "config", "type": "", "value": str(site.config_file)}
    assert plugins.read_text() == "a started\na asked\n"


def test_plugins_are_asked_by_priority_and_the_first_exit_code_counts_while_later_ones_still_run(
    site: Site, plugins: Path
) -> None:
    done = jackfield(site, "--a-exit=5", "--b-exit=4")
    assert done.returncode == 4
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["b", "a"]
    assert [line for line in plugins.read_text().splitlines() if "asked" in line] == ["b asked", "a asked"]


def test_M109_nothing_is_saved_with_an_exit_code_and_a_later_code_does_not_replace_it(
    site: Site, plugins: Path
) -> None:
    done = jackfield(site, "--b-login", "--b-exit=3", "--a-exit=5")
    assert done.returncode == 3
    assert "saved" not in done.stdout
    assert list((site.directory / "auths").iterdir()) == []


def test_what_a_plugin_logged_in_to_is_saved_for_the_owner_only_and_said(site: Site, plugins: Path) -> None:
    done = jackfield(site, "--a-login", "--b-exit=3")
    assert done.returncode == 3, done.stderr
    paths = [line.removeprefix("Authentication saved to ") for line in done.stdout.splitlines() if "saved to" in line]
    assert paths == [str(site.directory / "auths" / name) for name in ("acme-a.json", "acme-a-2.json")]
    assert stat.S_IMODE(os.stat(paths[0]).st_mode) == 0o600
    assert json.loads(Path(paths[0]).read_text()) == {"api_key": "s3cret", "label": "a", "type": "acme"}


def test_a_login_that_cannot_be_saved_ends_with_1_after_the_plugins_own_words(site: Site, plugins: Path) -> None:
    (site.directory / "auths").mkdir()
    (site.directory / "auths" / "acme-a-2.json").mkdir()
    done = jackfield(site, "--a-login")
    assert done.returncode == 1
    assert done.stdout.startswith("a says ") and "saved" not in done.stdout
    assert "error: " in done.stderr
    assert not (site.directory / "auths" / "acme-a.json").exists()


def test_an_error_is_a_warning_and_1_unless_there_is_another_code(site: Site, plugins: Path) -> None:
    done = jackfield(site, "--b-fail", "--a-wait=1s")
    assert (done.returncode, "warning: plugin b failed: " in done.stderr) == (1, True)
    assert "no such account" in done.stderr
    assert "a says " in done.stdout
    assert jackfield(site, "--a-fail", "--b-exit=7").returncode == 7


def test_a_plugin_that_never_answers_is_given_up_at_its_deadline(site: Site, plugins: Path) -> None:
    manifest = site.plugins / "b" / "plugin.toml"
    manifest.write_text(manifest.read_text() + '[timeouts]\n"command_line.execute" = "200ms"\n')
    done = jackfield(site, "--b-hang", "--a-wait=1s")
    assert (done.returncode, "warning: plugin b failed: " in done.stderr) == (1, True)
    assert "200 ms" in done.stderr and "a says " in done.stdout


def test_a_plugin_that_does_not_start_is_a_warning_with_its_reason(site: Site, plugins: Path) -> None:
    (site.plugins / "a" / "main.py").write_text("raise SystemExit('no python here')")
    done = jackfield(site, "--a-wait=1s")
    assert done.returncode == 1
    assert "warning: plugin a cannot be asked: " in done.stderr and "no python here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--a-lgoin"], "--a-login"),
        (["--a-exit"], "--a-exit needs a value"),
        (["--a-exit", "many"], "no whole number"),
        (["--config", "x.yaml", "--a-login"], "No such option"),
        (["--config", "x.yaml", "serve"], "behind the command"),
    ],
)
def test_a_wrong_command_line_is_explained_and_starts_nothing(
    site: Site, plugins: Path, arguments: list[str], says: str
) -> None:
    done = jackfield(site, *arguments)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert not plugins.exists()


def test_options_that_are_left_out_are_warned_about_by_help_and_check(site: Site, plugins: Path) -> None:
    manifest = site.plugins / "a" / "plugin.toml"
    manifest.write_text(manifest.read_text() + '[[flags]]\nname = "version"\n[[flags]]\nname = "b-login"\n')
    done = jackfield(site, "--help")
    assert (done.returncode, done.stderr.count("left out")) == (0, 2)
    assert jackfield(site, "check", "--config", str(site.config_file)).stdout.count("left out") == 2


def test_a_plugin_inside_the_host_can_be_asked_as_well(site: Site) -> None:
    folder = site.plugins / "inner"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text('id = "inner"\nversion = "1"\nentry = "inner:P"\n[[flags]]\nname = "inner"\n')
    (folder / "inner.py").write_text(
        "import os\nfrom pluginapi import *\n\nclass P(Plugin):\n"
        "    async def command_line_execute(self, request, ctx):\n"
        "        await ctx.kv.set('asked', 1)\n"
        "        return CommandLineResponse(stdout=f'pid {os.getppid()} {await ctx.kv.get(\"asked\")}')\n"
    )
    policy = {"inner": {"runtime": "inprocess", "permissions": ["kv"]}}
    manifest = folder / "plugin.toml"
    manifest.write_text(manifest.read_text().replace("entry", 'permissions = ["kv"]\nentry'))
    site.configure(plugins={"enabled": True, "configs": {"inner": {"enabled": True}}, "policy": policy})
    done = jackfield(site, "--inner")
    assert (done.returncode, done.stdout) == (0, f"pid {os.getpid()} 1\n"), done.stderr


async def test_beside_a_running_proxy_it_runs_in_a_process_of_the_command(site: Site, plugins: Path) -> None:
    async with serve_process(site.config_file):
        before = plugins.read_text().count("a started")
        done = await asyncio.to_thread(jackfield, site, "--a-login")
        assert (done.returncode, "saved to" in done.stdout) == (0, True), done.stderr
        assert plugins.read_text().count("a started") == before + 1


def test_without_a_configuration_the_help_needs_nothing_but_click(site: Site) -> None:
    code = "import sys; from host.cli import main; main(['--help'], standalone_mode=False)\n"
    code += "print('msgspec' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JACKFIELD_CONFIG": str(site.directory / "none.yaml")},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"
