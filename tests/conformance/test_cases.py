"""`cases.json`: what an author's own cases look like, what the kit makes of them, and what it refuses."""

import sys
from pathlib import Path

import pytest

from pluginapi import ModelRouteRequest, ModelRouteResponse, Plugin, PluginError
from pluginapi.conformance import Options, TargetError, run, target_of_folder
from pluginapi.testing import PluginHarness, check_case, read_cases

PROGRAM = """\
import json, sys

config = {}

def send(frame):
    print(json.dumps(frame), flush=True)

for line in sys.stdin:
    frame = json.loads(line)
    if frame["kind"] == "hello":
        methods = ["plugin.register", "model.route", "executor.execute_stream"]
        send({"kind": "hello", "abi": [1], "schema": 1, "plugin": "p", "features": ["ping"], "capabilities": methods})
    elif frame["kind"] == "ping":
        send({"kind": "pong", "id": frame["id"]})
    elif frame["kind"] == "call":
        answer = {"kind": "result", "id": frame["id"], "ok": True}
        model = frame["params"].get("requested_model")
        if frame["method"] == "plugin.register":
            config = frame["params"].get("config", {})
        elif frame["method"] == "model.route" and model == "broken":
            answer = {**answer, "ok": False, "error": {"message": "no", "code": "c", "http_status": 418}}
        elif frame["method"] == "model.route" and model:
            answer["result"] = {"target_kind": "self", "target": config.get("target", "")}
        elif frame["method"] == "executor.execute_stream" and frame.get("stream"):
            send({**answer, "stream": True, "result": {"status": 200}})
            send({"kind": "item", "id": frame["id"], "event": "e", "body": {"json": {"n": 1}}})
            answer["kind"] = "end"
        elif frame["method"] not in ("model.route", "executor.execute_stream"):
            answer = {**answer, "ok": False, "error": {"message": "no", "code": "method_not_found"}}
        send(answer)
"""
FILE = """{"config": {"target": "t"}, "cases": [
  {"name": "right", "method": "model.route", "params": {"requested_model": "m"},
   "answer": {"target_kind": "self", "target": "t"}},
  {"name": "wrong", "method": "model.route", "params": {"requested_model": "m"}, "answer": {"target_kind": "executor"}},
  {"name": "nothing", "method": "model.route"},
  {"name": "an error", "method": "model.route", "params": {"requested_model": "broken"},
   "error": {"message": "no", "code": "c", "http_status": 418}},
  {"name": "a stream", "method": "executor.execute_stream", "answer": {"status": 200},
   "items": [{"event": "e", "body": {"json": {"n": 1}}}]},
  {"name": "another stream", "method": "executor.execute_stream", "items": [{"body": {"json": {"n": 2}}}]},
  {"name": "no such hook", "method": "scheduler.pick"}
]}"""


def folder_with(tmp_path: Path, cases: str) -> Path:
    (tmp_path / "plugin.toml").write_text(f'id = "p"\nversion = "1"\ncommand = ["{sys.executable}", "-S", "main.py"]\n')
    (tmp_path / "main.py").write_text(PROGRAM)
    (tmp_path / "cases.json").write_text(cases)
    return tmp_path


async def test_each_case_is_a_check_with_its_name_and_a_failed_one_shows_both_answers(tmp_path):
    report = await run(target_of_folder(folder_with(tmp_path, FILE)), Options(timeout_s=20))
    seen = {it.sentence: (it.id, it.verdict) for it in report.outcomes if it.group == "cases"}
    assert seen == {
        "right": ("cases.1", "pass"),
        "wrong": ("cases.2", "fail"),
        "nothing": ("cases.3", "pass"),
        "an error": ("cases.4", "pass"),
        "a stream": ("cases.5", "pass"),
        "another stream": ("cases.6", "fail"),
        "no such hook": ("cases.7", "skip"),
    }
    wrong, stream = [it for it in report.failed if it.group == "cases"]
    assert (wrong.expected, wrong.got) == (
        '{"answer":{"target_kind":"executor"}}',
        '{"answer":{"target_kind":"self","target":"t"}}',
    )
    assert '"items":[{"body":{"json":{"n":2}}}]' in stream.expected and '"n":1' in stream.got
    assert not report.ok


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ("{", "Input data was truncated"),
        ('{"case": []}', "unknown field `case`"),
        ('{"cases": [{"name": "a", "method": "model.rout"}]}', r"case 1 \(a\): there is no method model.rout"),
        (
            '{"cases": [{"name": "a", "method": "model.route", "params": {"model": "m"}}]}',
            r"case 1 \(a\): params of model.route has no member 'model'",
        ),
        ('{"cases": [{"name": "a", "method": "model.route", "answer": {"targe": 1}}]}', "has no member 'targe'"),
        ('{"cases": [{"name": "a", "method": "model.route", "error": {"status": 1}}]}', "has no member 'status'"),
        ('{"cases": [{"name": "a", "method": "model.route", "answer": {"target": 1}}]}', "Expected `str`, got `int`"),
    ],
)
def test_cases_that_could_never_be_met_are_refused_with_the_reason(tmp_path, cases, said):
    with pytest.raises(TargetError, match=said):
        target_of_folder(folder_with(tmp_path, cases))


class Route(Plugin):
    id, version = "p", "1"

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        if request.requested_model == "broken":
            raise PluginError("no", code="c", http_status=418)
        return ModelRouteResponse(target_kind="self", target=self.config["target"]) if request.requested_model else None


async def test_the_same_cases_run_in_the_tests_own_process(tmp_path):
    file = read_cases(folder_with(tmp_path, FILE) / "cases.json")
    right, wrong, nothing, error, *_ = file.cases
    async with PluginHarness(Route, config=file.config) as plugin:
        for case in (right, nothing, error):
            await check_case(plugin, case)
        with pytest.raises(AssertionError, match=r"wrong: .*'target': 't'.* instead of .*executor"):
            await check_case(plugin, wrong)
