"""The kit itself: every example keeps the contract, and the report says so in every format."""

import asyncio
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from host.cli import main as jackfield
from pluginabi.codec import encode
from pluginabi.frames import Call, Cancel, Result
from pluginabi.limits import Limits
from pluginabi.memory_channel import memory_pair
from pluginabi.session import Session
from pluginapi import Plugin
from pluginapi.conformance import Options, TargetError, run, target_of_command, target_of_folder
from pluginapi.conformance.checks import CHECKS
from pluginapi.conformance.command import ProgressLine, main
from pluginapi.conformance.runner import NO_SESSION
from pluginapi.conformance.samples import callable_methods, read_samples, sample
from pluginapi.conformance.subject import Subject, group_members
from pluginapi.dispatch import Dispatcher
from pluginapi.service import PluginService
from tests.support.example_auth import OAUTH_CONFIG
from tests.support.example_languages import need_compiler
from tests.support.example_reference import CONFIG_CARD

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BROKEN = Path(__file__).with_name("broken")
CONFIG = {"relay": {"url": "http://127.0.0.1:1/v1/chat/completions"}, "oauth-login": OAUTH_CONFIG}
"""What an example does not run without."""
SAMPLES = {
    "oauth-login": {"auth.login.poll": b'{"state":"s"}'},
    "auth-files-page": {"management.handle": b'{"path":"/v0/resource/plugins/auth-files-page/status"}'},
    "config-card": {"command_line.execute": encode(CONFIG_CARD.steps[0].params)},
}
"""For methods that act on the world, which the kit calls with an author's sample only."""
LEVELS = {"jq-router": "minimal", "shell-gate": "minimal"}


def folders() -> list[str]:
    return sorted(path.parent.name for path in EXAMPLES.glob("*/plugin.toml"))


def broken(name: str) -> list[str]:
    return [sys.executable, "-S", "-B", str(BROKEN / f"{name}.py")]


@pytest.mark.parametrize("name", folders())
async def test_every_example_keeps_the_contract(name):
    need_compiler(name)
    options = Options(config=CONFIG.get(name), samples=SAMPLES.get(name, {}), timeout_s=60)
    report = await run(target_of_folder(EXAMPLES / name), options)
    assert [(outcome.id, outcome.expected, outcome.got) for outcome in report.failed] == []
    assert report.level == LEVELS.get(name, "full")
    assert report.plugin == name
    assert report.counts["pass"] > report.counts["skip"]
    assert report.measured.call_count > 0 and report.measured.hello_ms is not None


async def test_the_javascript_handler_keeps_the_contract_while_its_script_works():
    folder = ROOT / "plugins" / "js_handler"
    config = {"script": str(folder / "examples" / "redact.js")}
    report = await run(target_of_folder(folder), Options(config=config, timeout_s=60))
    assert [(outcome.id, outcome.expected, outcome.got) for outcome in report.failed] == []
    assert (report.level, report.plugin) == ("full", "js-handler")


async def test_a_stream_longer_than_the_window_is_held_and_looked_at_while_it_is_held():
    report = await run(target_of_command(broken("plugin")), Options())
    notes = {outcome.id: outcome.note for outcome in report.outcomes}
    assert notes["streams.credit"] == "it stopped at 32 items and went on with credit to 100"
    assert notes["calls.beside"] == "while executor.execute_stream waits for credit"
    assert notes["ping.answered"] == "while executor.execute_stream was in progress"
    assert "cancelled" in notes["cancel.closed"]


def test_a_run_without_failures_exits_with_0_and_names_every_check(capsys):
    assert main(["--id", "broken", "--", *broken("plugin")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("broken 1.0.0: level full, json over stdio")
    for check in CHECKS:
        assert check.id in text
    assert " 0 failed" in text and "measured, no verdict: hello after" in text


def test_a_failure_exits_with_1_and_shows_what_was_expected_what_came_and_the_last_words(capsys):
    assert main(["--timeout", "30", "--", *broken("dies_of_unknown_fields")]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("  FAIL frames.unknown_fields"))
    assert lines[at + 1].split(maxsplit=1) == ["expected", "a closing frame for model.route within 30 s"]
    assert lines[at + 2].split(maxsplit=1) == ["came", "no answer; it ended with exit code 1"]
    assert lines[at + 3].split(maxsplit=1) == ["stderr", "unknown fields: {'x_conformance'}"]


def test_the_json_report_has_the_outcome_of_every_check(tmp_path, capsys):
    target = tmp_path / "report.json"
    words = ["--format", "json", "--output", str(target), "--timeout", "30", "--", *broken("status_as_string")]
    assert main(words) == 1
    report = json.loads(target.read_text())
    assert capsys.readouterr().out == ""
    assert report["ok"] is False and report["counts"]["fail"] == 1 and report["level"] == "full"
    failed = next(outcome for outcome in report["outcomes"] if outcome["verdict"] == "fail")
    assert failed["id"] == "errors.well_formed" and "http_status" in failed["got"]
    assert {outcome["id"] for outcome in report["outcomes"]} == {check.id for check in CHECKS}


def test_the_junit_report_counts_failures_and_skips_as_build_servers_do(capsys):
    assert main(["--format", "junit", "--timeout", "30", "--", *broken("prints_on_stdout")]) == 1
    suite = ET.fromstring(capsys.readouterr().out)
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    assert [case.attrib["classname"] for case in suite.findall("testcase[failure]")] == ["conformance.stdout"]
    assert int(suite.attrib["skipped"]) == len(suite.findall("testcase[skipped]")) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a plugin's folder"),
        (["somewhere", "--", "true"], "give a plugin's folder"),
        (["no-such-folder"], "there is no"),
        (["--", "/no/such/program"], "cannot start /no/such/program"),
        (["--config", "[]", "--", "true"], "--config is a JSON object"),
        (["--timeout", "0", "--", "true"], "--timeout"),
        (["--level", "huge", "--", "true"], "invalid choice"),
    ],
)
def test_arguments_that_make_no_sense_exit_with_2_and_a_sentence(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_program_that_dies_before_its_hello_is_reported_with_exit_code_and_last_words():
    program = [sys.executable, "-S", "-c", "import sys; sys.exit('no licence found')"]
    report = asyncio.run(run(target_of_command(program), Options()))
    (failed,) = report.failed
    assert (failed.id, failed.got) == ("hello.answered", "none; it ended with exit code 1")
    assert failed.stderr == ["no licence found"] or failed.stderr == ("no licence found",)
    assert {outcome.reason for outcome in report.outcomes if outcome.id.startswith("frames.")} == {NO_SESSION}


async def test_a_cancelled_run_leaves_no_process_behind():
    started = asyncio.Event()
    pids = []

    def progress(check):
        if check.id == "calls.answered":
            started.set()

    async def watched():
        await run(target_of_command(broken("plugin")), Options(), progress=progress)

    before = Subject.__init__

    def remember(self, popen, stderr):
        pids.append(popen.pid)
        before(self, popen, stderr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "__init__", remember)
        task = asyncio.ensure_future(watched())
        async with asyncio.timeout(60):
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert pids and [group_members(pid) for pid in pids] == [[]] * len(pids)


def test_on_a_terminal_the_running_check_is_shown_on_one_line():
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.show(CHECKS[0])
    line.show(CHECKS[1])
    line.clear()
    assert stream.getvalue().count("\r\x1b[K") == 3 and "\n" not in stream.getvalue()
    assert CHECKS[1].sentence in stream.getvalue()


def test_help_and_the_list_of_checks_exit_with_0(capsys):
    assert main(["--help"]) == 0
    assert "exit code: 0" in capsys.readouterr().out
    assert main(["--list"]) == 0
    assert "cancel.at_once" in capsys.readouterr().out


def test_jackfield_plugins_test_is_the_same_kit(capsys):
    with pytest.raises(SystemExit) as left:
        jackfield(["plugins", "test", "--level", "minimal", str(EXAMPLES / "jq-router")], prog_name="jackfield")
    assert left.value.code == 0
    assert "jq-router 1.0.0: level minimal" in capsys.readouterr().out


def test_the_kit_runs_with_nothing_but_the_authors_wheel():
    code = (
        "import sys, pluginapi.conformance.command; "
        "sys.exit(any(name.split('.')[0] in ('host', 'grpc', 'aiohttp', 'click') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=110).returncode == 0


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('version = "1"', "'id' is missing"),
        ('id = "x"', "neither a command nor an entry"),
        ('id = "x"\ncommand = "./x"', "list of strings"),
        ('id = "x"\ncommand = ["no-such-program-anywhere"]', "not on PATH"),
        ("id = ", "plugin.toml"),
    ],
)
def test_a_manifest_that_starts_nothing_is_refused_with_the_reason(tmp_path, toml, said):
    (tmp_path / "plugin.toml").write_text(toml)
    with pytest.raises(TargetError, match=said):
        target_of_folder(tmp_path)


def test_a_folder_gets_the_environment_of_a_host_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("EXAMPLE_REGION", "eu")
    monkeypatch.setenv("A_SECRET_OF_THE_SHELL", "x")
    (tmp_path / "run").touch()
    (tmp_path / "plugin.toml").write_text('id = "x"\ncommand = ["./run", "run"]\nenvironment = ["EXAMPLE_REGION"]')
    target = target_of_folder(tmp_path)
    assert target.command == (str(tmp_path / "run"), "run")
    assert set(target.environment) - {"HOME", "LANG", "TZ"} == {"PATH", "EXAMPLE_REGION", "JACKFIELD_PLUGIN_DIR"}


def test_a_sample_carries_only_what_the_inputs_ask_for():
    assert "body" not in json.loads(sample("model.route", inputs=()))
    parts = json.loads(sample("model.route", inputs=["body:/messages/-1", "body:/nothing"]))["body_parts"]
    assert list(parts) == ["/messages/-1"] and parts["/messages/-1"]["role"] == "user"
    assert json.loads(sample("executor.execute", inputs=["body"]))["body"]["json"]["model"] == "conformance"


def test_methods_that_act_on_the_world_are_called_only_with_a_sample_of_the_author():
    listed = ["plugin.register", "command_line.execute", "executor.execute_stream", "model.route"]
    assert callable_methods(listed, {}) == ["model.route", "executor.execute_stream"]
    given = read_samples('{"command_line.execute": {"program": "x"}}')
    assert "command_line.execute" in callable_methods(listed, given)
    for text in ('{"no.method": {}}', '{"model.route": {"stream": "yes"}}', "[]"):
        with pytest.raises(ValueError, match="samples"):
            read_samples(text)


def test_the_pytest_plugin_makes_a_test_of_every_check(tmp_path):
    (tmp_path / "test_contract.py").write_text(
        "import pytest\n"
        "from pluginapi.conformance import Options, target_of_command\n"
        "pytest_plugins = ['pluginapi.conformance.pytest_plugin']\n"
        "@pytest.fixture(scope='session')\n"
        "def conformance_target():\n"
        f"    return target_of_command({broken('status_as_string')!r})\n"
        "@pytest.fixture(scope='session')\n"
        "def conformance_options():\n"
        "    return Options(timeout_s=30)\n"
        "def test_contract(conformance_check):\n"
        "    conformance_check()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "[errors.well_formed]" in done.stdout and "1 failed" in done.stdout


async def test_the_sdk_closes_a_call_that_is_cancelled_in_the_same_breath():
    class Quiet(Plugin):
        id, version = "quiet", "1.0.0"

        async def model_route(self, request):
            return None

    host_end, plugin_end = memory_pair()
    service = PluginService(Dispatcher(Quiet()), plugin_id="quiet")
    session = Session(
        plugin_end,
        role="plugin",
        features=frozenset({"cancel"}),
        peer="quiet",
        peer_limits=Limits(),
        handler=service.handle,
    )
    service.attach(session)
    seen = _Frames()
    host_end.attach(seen)
    reading = asyncio.ensure_future(session.run())
    # Both are delivered in one turn of the loop, so that the task of the call has not begun when its cancel comes.
    host_end.send(Call(id=1, method="model.route"))
    host_end.send(Cancel(id=1, reason="client_gone"))
    async with asyncio.timeout(60):
        closing = await seen.first
    assert isinstance(closing, Result) and not closing.ok and closing.error.code == "cancelled"
    await session.close()
    await reading
    host_end.close()


class _Frames:
    def __init__(self):
        self.first = asyncio.get_running_loop().create_future()

    def frame_received(self, frame, size):
        if not self.first.done():
            self.first.set_result(frame)

    def channel_closed(self, cause):
        """The session ended."""
