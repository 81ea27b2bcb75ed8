"""`jackfield plugins install …` and what belongs to it, without a running proxy."""

import asyncio
import json
import os
import pty
import sys
from pathlib import Path

import pytest

from tests.integration.install.conftest import Shelf
from tests.integration.serve.conftest import Site
from tests.support.archives import plugin_wheel, plugin_zip, registry_entry, registry_text, sha256_of, write_zip
from tests.support.proxy import ROOT, run_command, runtime_dir

WISHES = 'name = "Greeter"\npermissions = ["http", "kv"]\nhttp_hosts = ["api.example.com"]\nenvironment = ["REGION"]\n'


def installed(site: Site) -> list[str]:
    """What lies in the plugins folder, hidden files included."""
    return sorted(os.listdir(site.plugins)) if site.plugins.exists() else []


async def test_a_local_archive_is_shown_installed_locked_and_not_enabled(site: Site) -> None:
    archive = plugin_zip(site.directory / "greeter.zip", more=WISHES + '[[flags]]\nname = "greet"\n')
    done = await run_command(site.config_file, "plugins", "install", str(archive), "--yes")
    assert done.exit_code == 0, done.stderr
    for words in ("Greeter 1.0.0 (greeter)", "http, kv", "api.example.com", "REGION", "--greet", "a process: ./main"):
        assert words in done.stdout
    assert sha256_of(archive) in done.stdout
    assert "jackfield plugins enable greeter" in done.stdout
    assert installed(site) == ["greeter"]
    assert "greeter" not in site.config_file.read_text()
    lock = json.loads((site.directory / "plugins.lock").read_text())["plugins"]["greeter"]
    assert (lock["version"], lock["folder"], lock["source"]) == ("1.0.0", "plugins/greeter", str(archive))
    assert lock["archive"] == f"sha256:{sha256_of(archive)}"
    assert (await run_command(site.config_file, "plugins", "verify")).stdout == "greeter 1.0.0: fine\n"

    again = await run_command(site.config_file, "plugins", "install", str(archive), "--yes")
    assert (again.exit_code, "plugins upgrade greeter" in again.stderr) == (1, True)


async def test_where_nobody_can_be_asked_nothing_is_installed_without_yes(site: Site) -> None:
    archive = plugin_zip(site.directory / "greeter.zip", more=WISHES)
    done = await run_command(site.config_file, "plugins", "install", str(archive))
    assert (done.exit_code, "--yes" in done.stderr) == (1, True)
    assert "http, kv" in done.stdout
    assert installed(site) == []
    assert not (site.directory / "plugins.lock").exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
async def test_a_person_at_a_terminal_is_asked(site: Site, within, answer: str, code: int) -> None:
    archive = plugin_zip(site.directory / "greeter.zip")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "host", "plugins", "install", str(archive), "--config", str(site.config_file)),
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": runtime_dir(site.config_file)},
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    out, _ = await within(process.communicate())
    os.close(ours)
    assert process.returncode == code
    assert b"Install it into" in out
    assert installed(site) == (["greeter"] if code == 0 else [])


async def test_with_enable_it_is_enabled_and_says_what_it_is_not_granted(site: Site) -> None:
    archive = plugin_zip(site.directory / "greeter.zip", more=WISHES)
    done = await run_command(site.config_file, "plugins", "install", str(archive), "--yes", "--enable")
    assert (done.exit_code, "wishes for: http, kv" in done.stdout) == (0, True)
    assert "enabled: true" in site.config_file.read_text()


async def test_a_wheel_is_installed_into_a_folder_of_its_own_and_missing_packages_are_named(site: Site) -> None:
    wheel = plugin_wheel(
        site.directory / "acme_greeter-1.0.0-py3-none-any.whl", metadata="Requires-Dist: no-such-pkg>1\n"
    )
    done = await run_command(site.config_file, "plugins", "install", str(wheel), "--yes")
    assert done.exit_code == 0, done.stderr
    assert "no-such-pkg>1 (NOT INSTALLED" in done.stdout
    assert sorted(os.listdir(site.plugins / "greeter")) == ["__init__.py", "hooks.py", "plugin.toml"]


async def test_nothing_of_an_archive_runs_while_it_is_looked_at_and_installed(site: Site) -> None:
    trap = f"open({str(site.directory / 'ran')!r}, 'w')\n"
    files = {"plugin.toml": 'id = "greeter"\nversion = "1"\nentry = "hooks:P"\n', "hooks.py": trap, "setup.py": trap}
    archive = write_zip(site.directory / "greeter.zip", {**files, "conftest.py": trap, "sitecustomize.py": trap})
    assert (await run_command(site.config_file, "plugins", "install", str(archive), "--yes")).exit_code == 0
    assert (await run_command(site.config_file, "plugins", "describe", "greeter")).exit_code == 0
    assert not (site.directory / "ran").exists()


@pytest.mark.parametrize("problem", ["hostile", "digest", "missing", "folder", "bundled", "taken"])
async def test_a_refused_archive_leaves_nothing_behind(site: Site, problem: str) -> None:
    archive = plugin_zip(site.directory / "greeter.zip")
    arguments = ["plugins", "install", str(archive), "--yes"]
    before = []
    if problem == "hostile":
        write_zip(archive, {"plugin.toml": "id = 'x'\nversion = '1'\n", "../../out": ""})
    elif problem == "digest":
        arguments += ["--sha256", "0" * 64]
    elif problem == "missing":
        archive.unlink()
    elif problem == "folder":
        archive.unlink()
        archive.mkdir()
    elif problem == "bundled":
        write_zip(archive, {"plugin.toml": "id = 'echo'\nversion = '1'\ncommand = ['./x']\n"})
    else:
        (site.plugins / "greeter").mkdir(parents=True)
        before = ["greeter"]
    done = await run_command(site.config_file, *arguments)
    assert (done.exit_code, done.stderr.startswith("error: ")) == (1, True)
    assert installed(site) == before
    assert not (site.directory / "plugins.lock").exists()
    assert not (site.directory / "out").exists() and not (site.directory.parent / "out").exists()


async def test_text_of_a_stranger_cannot_move_the_cursor(site: Site) -> None:
    archive = plugin_zip(
        site.directory / "greeter.zip", more='name = "A\\u001b[2J\\u202eB"\ndescription = "C\\r\\nD"\n'
    )
    done = await run_command(site.config_file, "plugins", "install", str(archive), "--yes")
    assert done.exit_code == 0
    assert not {"\x1b", "\u202e", "\r"} & set(done.stdout)


async def test_a_url_needs_its_sha256_and_has_to_have_it(site: Site, shelf: Shelf, tmp_path: Path) -> None:
    archive = plugin_zip(tmp_path / "greeter.zip")
    shelf.content["/greeter.zip"] = archive.read_bytes()
    url = f"{shelf.url}/greeter.zip"
    done = await run_command(site.config_file, "plugins", "install", url, "--yes")
    assert (done.exit_code, "--sha256 is missing" in done.stderr, shelf.asked) == (1, True, [])
    done = await run_command(site.config_file, "plugins", "install", url, "--yes", "--sha256", "0" * 64)
    assert (done.exit_code, sha256_of(archive) in done.stderr, installed(site)) == (1, True, [])
    sha256 = f"sha256:{sha256_of(archive).upper()}"
    done = await run_command(site.config_file, "plugins", "install", f"{url}?token=secret", "--yes", "--sha256", sha256)
    assert done.exit_code == 0, done.stderr
    assert installed(site) == ["greeter"]
    assert "secret" not in (site.directory / "plugins.lock").read_text() + done.stdout


async def test_a_plugin_is_found_installed_and_upgraded_through_a_registry(
    site: Site, shelf: Shelf, tmp_path: Path
) -> None:
    def publish(*versions: str) -> None:
        artifacts = []
        for version in versions:
            archive = plugin_zip(tmp_path / f"{version}.zip", version=version)
            shelf.content[f"/{version}.zip"] = archive.read_bytes()
            artifacts.append({"version": version, "url": f"{shelf.url}/{version}.zip", "sha256": sha256_of(archive)})
        entry = registry_entry(version=versions[-1], artifacts=artifacts)
        shelf.content["/registry.json"] = registry_text(entry, registry_entry("other", description="Something else"))

    publish("0.9.0", "1.0.0")
    site.configure(plugins={"store-sources": [f"{shelf.url}/registry.json"]})
    done = await run_command(site.config_file, "plugins", "search", "greets")
    assert done.exit_code == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [["greeter", "1.0.0", "-"]]

    done = await run_command(site.config_file, "plugins", "install", "greeter@0.9.0", "--yes")
    assert (done.exit_code, "greeter 0.9.0 is installed" in done.stdout) == (0, True), done.stderr
    done = await run_command(site.config_file, "plugins", "search", "--json")
    rows = {row["id"]: row for row in json.loads(done.stdout)}
    assert (rows["greeter"]["installed_version"], rows["greeter"]["update_available"]) == ("0.9.0", True)
    assert (rows["other"]["installed_version"], rows["other"]["update_available"]) == ("", False)

    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", "--yes")
    assert (done.exit_code, "0.9.0 -> 1.0.0" in done.stdout) == (0, True), done.stderr
    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", "--yes")
    assert (done.exit_code, "1.0.0 is the newest" in done.stdout) == (0, True)
    publish("1.0.0", "1.0.1")
    shelf.content["/1.0.1.zip"] = b"something else"
    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", "--yes")
    assert (done.exit_code, "not what was expected" in done.stderr) == (1, True)
    assert (await run_command(site.config_file, "plugins", "verify")).stdout == "greeter 1.0.0: fine\n"


async def test_P134_an_id_of_two_registries_needs_a_source_and_is_installed_from_that_one(
    site: Site, tmp_path: Path, shelf: Shelf
) -> None:
    for name, version in (("one", "1.0.0"), ("two", "2.0.0")):
        archive = plugin_zip(tmp_path / f"{name}.zip", version=version)
        shelf.content[f"/{name}.zip"] = archive.read_bytes()
        entry = registry_entry(version=version, url=f"{shelf.url}/{name}.zip", sha256=sha256_of(archive))
        (site.directory / f"{name}.json").write_bytes(registry_text(entry))
    site.configure(plugins={"store-sources": ["one.json", "two.json", f"{shelf.url}/down.json"]})
    done = await run_command(site.config_file, "plugins", "install", "greeter", "--yes")
    assert done.exit_code == 1
    assert all(name in done.stderr for name in ("--source", "one.json", "two.json"))
    done = await run_command(site.config_file, "plugins", "search")
    assert (done.exit_code, "status 404" in done.stderr) == (0, True)
    two = next(line.split()[3] for line in done.stdout.splitlines() if line.split()[1] == "2.0.0")
    done = await run_command(site.config_file, "plugins", "install", "greeter", "--yes", "--source", two)
    assert (done.exit_code, "greeter 2.0.0 is installed" in done.stdout) == (0, True), done.stderr
    lock = json.loads((site.directory / "plugins.lock").read_text())["plugins"]["greeter"]
    assert lock["registry"] == str(site.directory / "two.json")


async def test_a_search_fails_only_when_no_registry_can_be_read(site: Site, shelf: Shelf) -> None:
    done = await run_command(site.config_file, "plugins", "search")
    assert (done.exit_code, "plugins.store-sources" in done.stderr) == (1, True)
    done = await run_command(site.config_file, "plugins", "search", "--source", f"{shelf.url}/registry.json")
    assert (done.exit_code, "status 404" in done.stderr) == (1, True)
    shelf.content["/registry.json"] = registry_text()
    done = await run_command(site.config_file, "plugins", "search", "--source", f"{shelf.url}/registry.json")
    assert (done.exit_code, "empty" in done.stdout) == (0, True)


async def test_an_archive_that_is_not_what_the_registry_calls_it_is_refused(
    site: Site, shelf: Shelf, tmp_path: Path
) -> None:
    archive = plugin_zip(tmp_path / "greeter.zip", version="1.0.0")
    shelf.content["/greeter.zip"] = archive.read_bytes()
    pinned = {"url": f"{shelf.url}/greeter.zip", "sha256": sha256_of(archive)}
    for entry, says in (
        (registry_entry("other", **pinned), "the archive greeter"),
        (registry_entry(version="2.0.0", **pinned), "the archive 1.0.0"),
    ):
        (site.directory / "r.json").write_bytes(registry_text(entry))
        arguments = ("plugins", "install", entry["id"], "--yes", "--source", str(site.directory / "r.json"))
        done = await run_command(site.config_file, *arguments)
        assert (done.exit_code, says in done.stderr, installed(site)) == (1, True, [])


async def test_an_upgrade_shows_every_difference_and_what_is_lost(site: Site) -> None:
    old = plugin_zip(site.directory / "old.zip", more=WISHES + "[limits]\nmemory_mb = 64\n")
    wishes = 'permissions = ["http", "model"]\nenvironment = ["REGION", "TOKEN"]\n[limits]\nmemory_mb = 128\n'
    new = plugin_zip(site.directory / "new.zip", version="1.1.0", more=wishes, extra="")
    assert (await run_command(site.config_file, "plugins", "install", str(old), "--yes")).exit_code == 0
    (site.plugins / "greeter" / "main").write_text("changed")
    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", str(new))
    assert (done.exit_code, "--yes" in done.stderr) == (1, True)
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert shown["version"] == "1.0.0 -> 1.1.0"
    assert shown["permissions"] == "+model -kv"
    assert shown["hosts"] == "-api.example.com"
    assert shown["environment"] == "+TOKEN"
    assert shown["limits"] == "memory_mb 64 -> memory_mb 128"
    assert "changed: main" in shown["note"]
    assert (site.plugins / "greeter" / "main").read_text() == "changed"

    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", str(new), "--yes")
    assert (done.exit_code, "wishes for: http, model" in done.stdout) == (0, True)
    assert sorted(os.listdir(site.plugins / "greeter")) == ["extra", "main", "plugin.toml"]
    assert installed(site) == ["greeter"]
    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", str(old))
    assert "older than 1.1.0" in done.stdout
    done = await run_command(site.config_file, "plugins", "upgrade", "greeter", str(new))
    assert (done.exit_code, "already" in done.stdout) == (0, True)


async def test_changed_files_are_named_and_can_be_accepted(site: Site) -> None:
    archive = plugin_zip(site.directory / "greeter.zip")
    await run_command(site.config_file, "plugins", "install", str(archive), "--yes", "--enable")
    (site.plugins / "greeter" / "main").write_text("changed")
    (site.plugins / "greeter" / "new").write_text("")
    done = await run_command(site.config_file, "plugins", "verify", "greeter")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1:] == ["  changed: main", "  added: new"]
    done = await run_command(site.config_file, "plugins", "list")
    row = next(line for line in done.stdout.splitlines() if line.startswith("greeter"))
    assert "changed: main, added: new" in row
    assert (await run_command(site.config_file, "plugins", "lock", "greeter")).exit_code == 1
    done = await run_command(site.config_file, "plugins", "lock", "greeter", "--yes")
    assert (done.exit_code, "  changed: main" in done.stdout) == (0, True)
    assert (await run_command(site.config_file, "plugins", "verify")).exit_code == 0


async def test_a_plugin_put_there_by_hand_can_be_locked_but_not_with_links_and_not_removed(site: Site) -> None:
    folder = site.plugins / "mine"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text('id = "mine"\nversion = "1"\ncommand = ["./x"]\n')
    (folder / "x").symlink_to("/bin/true")
    done = await run_command(site.config_file, "plugins", "remove", "mine", "--yes")
    assert (done.exit_code, "not installed by" in done.stderr, folder.exists()) == (1, True, True)
    done = await run_command(site.config_file, "plugins", "lock", "mine", "--yes")
    assert (done.exit_code, "links" in done.stderr) == (1, True)
    (folder / "x").unlink()
    assert (await run_command(site.config_file, "plugins", "lock", "mine", "--yes")).exit_code == 0
    (folder / "plugin.toml").write_text('id = "mine"\nversion = "2"\ncommand = ["./x"]\n')
    assert (await run_command(site.config_file, "plugins", "verify", "mine")).exit_code == 1


async def test_remove_takes_the_files_the_lock_and_when_told_the_configuration(site: Site) -> None:
    site.config_file.write_text("port: 0  # mine\nplugins:\n  policy:\n    greeter:\n      instances: 2\n  # kept\n")
    archive = plugin_zip(site.directory / "greeter.zip")
    await run_command(site.config_file, "plugins", "install", str(archive), "--yes", "--enable")
    (site.directory / "plugin-data" / "greeter").mkdir(parents=True)
    done = await run_command(site.config_file, "plugins", "remove", "greeter")
    assert (done.exit_code, "--yes" in done.stderr, installed(site)) == (1, True, ["greeter"])
    done = await run_command(site.config_file, "plugins", "remove", "greeter", "--yes", "--forget")
    assert (done.exit_code, "plugin-data" in done.stdout) == (0, True), done.stderr
    assert installed(site) == []
    text = site.config_file.read_text()
    assert "greeter" not in text and "# mine" in text and "# kept" in text
    assert json.loads((site.directory / "plugins.lock").read_text())["plugins"] == {}
