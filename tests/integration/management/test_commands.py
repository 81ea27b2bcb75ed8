"""`jackfield plugins …` on a running proxy and on the file, and `jackfield management key`."""

import json
import tempfile
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from host.cli import main
from host.config.load import load_config
from host.install.lock import read_lock
from host.management.secret import matches
from tests.support.management import Api
from tests.support.plugin_folders import write_greeter
from tests.support.proxy import run_command, serve_process

FIELDS = '[[config]]\nname = "token"\nsecret = true\n'
CONFIG = "# mine\nport: 0\nplugins:\n  enabled: true\n"


@pytest.fixture
def file(directory: Path) -> Path:
    write_greeter(directory / "plugins", toml=FIELDS)
    path = directory / "config.yaml"
    path.write_text(CONFIG)
    return path


async def ok(file: Path, *arguments: str) -> str:
    done = await run_command(file, *arguments)
    assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
    return str(done.stdout)


async def failed(file: Path, *arguments: str) -> str:
    done = await run_command(file, *arguments)
    assert done.exit_code == 1, (done.stdout, done.stderr, done.exception)
    return str(done.stderr)


async def test_the_commands_act_on_the_running_proxy(file: Path) -> None:
    async with serve_process(file) as served:
        assert "it is ready" in await ok(file, "plugins", "enable", "greeter")
        assert "picks it up: it is ready" in await ok(file, "plugins", "config", "set", "greeter", "token", "hidden")
        await ok(file, "plugins", "config", "set", "greeter", "limit", "5")
        await ok(file, "plugins", "config", "set", "greeter", "home", '{"env": "HOME"}')
        shown = json.loads(await ok(file, "plugins", "config", "get", "greeter"))
        assert shown == {"enabled": True, "token": "***", "limit": 5, "home": {"env": "HOME"}}
        await ok(file, "plugins", "config", "unset", "greeter", "limit")
        section = "      enabled: true\n      token: hidden\n      home:\n        env: HOME\n"
        assert file.read_text() == f"{CONFIG}  configs:\n    greeter:\n{section}"
        assert "must be a whole number" in await failed(file, "plugins", "config", "set", "greeter", "priority", "x")
        assert "greeter is ready" in await ok(file, "plugins", "reset", "greeter")
        assert "has said nothing yet" in await ok(file, "plugins", "logs", "greeter")
        write_greeter(file.parent / "plugins", prelude="print('oops', file=sys.stderr)")
        await ok(file, "plugins", "reload", "greeter")
        said = json.loads(await ok(file, "plugins", "logs", "greeter", "--json", "--lines", "5"))
        assert said["stderr"] == ["oops"] and said["lines"][-1]["event"] == "oops"
        assert "oops" in await ok(file, "plugins", "logs", "greeter")
        assert "is disabled" in await ok(file, "plugins", "disable", "greeter")
        assert "it is not enabled" in await failed(file, "plugins", "reset", "greeter")
        for command in (("config", "get"), ("logs",), ("reset",)):
            assert "no plugin 'nobody'" in await failed(file, "plugins", *command, "nobody")
        await served.event("management.write", caller="local", method="POST", path="/plugins/greeter/disable")


async def test_a_change_that_makes_no_difference_to_the_proxy_says_what_stands_in_its_way(file: Path) -> None:
    async with serve_process(file) as served:
        write_greeter(file.parent / "plugins", prelude="raise SystemExit('I am broken')")
        said = await ok(file, "plugins", "enable", "greeter")
        assert "I am broken" in said and "is enabled" in said
        file.write_text(file.read_text() + "prot: 1\n")
        await served.event("config.rejected")
        assert "failed to save config" in await failed(file, "plugins", "config", "set", "greeter", "a", "1")


async def test_without_a_running_proxy_the_commands_act_on_the_file(file: Path) -> None:
    await ok(file, "plugins", "config", "set", "greeter", "token", "hidden")
    assert json.loads(await ok(file, "plugins", "config", "get", "greeter")) == {"token": "***"}
    await ok(file, "plugins", "enable", "greeter")
    assert "greeter" in read_lock(file.parent).enabled_here
    await ok(file, "plugins", "config", "unset", "greeter", "token")
    assert file.read_text() == CONFIG + "  configs:\n    greeter:\n      enabled: true\n"
    assert "must be true or false" in await failed(file, "plugins", "config", "set", "greeter", "enabled", "maybe")
    for command in ("reset", "logs"):
        assert "no proxy runs" in await failed(file, "plugins", command, "greeter")


async def test_a_key_is_made_printed_once_and_works_in_the_proxy_that_runs(file: Path) -> None:
    async with serve_process(file) as served, aiohttp.ClientSession() as session:
        key = (await ok(file, "management", "key")).strip()
        await served.event("config.applied")
        assert key not in file.read_text() and "# mine" in file.read_text()
        api = Api(served.url, session, {"Authorization": f"Bearer {key}"})
        assert (await api.get("/plugins")).status == 200
        assert key not in "\n".join(served.lines)


@pytest.mark.parametrize(("key", "code"), [("short", 1), ("changeme", 1), ("long-enough-for-me", 0)])
def test_a_key_of_ones_own_is_taken_from_standard_input_and_a_weak_one_is_not(file: Path, key: str, code: int) -> None:
    done = CliRunner().invoke(main, ["management", "key", "--stdin", "--config", str(file)], input=f"{key}\n")
    assert done.exit_code == code, done.output
    assert key not in done.output
    stored = load_config(file).config.remote_management.secret_key
    assert matches(key, stored) is (code == 0)


async def test_check_says_that_a_weak_key_leaves_the_api_off(file: Path) -> None:
    file.write_text(CONFIG + "remote-management:\n  secret-key: changeme\n")
    assert "there is no management API: it is a placeholder" in await ok(file, "check")


@pytest.mark.parametrize(
    "arguments",
    [
        ("management", "key"),
        ("plugins", "shadow", "greeter", "{}/greeter"),
        ("plugins", "install", "gone.zip", "--yes"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_without_a_traceback(
    file: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> tuple[int, str]:
        raise OSError(28, "No space left on device", "a-file")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    filled = [argument.format(file.parent / "plugins") for argument in arguments]
    done = CliRunner().invoke(main, [*filled, "--config", str(file)])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].removeprefix("error: ") in (
        "a-file: No space left on device",
        "gone.zip: No such file or directory",
    )


def test_init_says_which_directory_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = CliRunner().invoke(main, ["init", str(tmp_path / "taken" / "gateway")])
    assert (done.exit_code, done.stderr) == (1, f"{tmp_path}/taken/gateway/plugins: Not a directory\n")
