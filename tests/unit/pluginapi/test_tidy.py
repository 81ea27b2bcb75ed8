"""Answers of authors: short spellings are written out, mistakes are named, right ones pass as they are."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import UNSET, Raw

from pluginabi.methods import PLUGIN_METHODS
from pluginapi import (
    AuthRecordsResponse,
    Body,
    CredentialRecord,
    ExecutorResponse,
    FrontendAuthResponse,
    ModelInfo,
    ModelRouteResponse,
    RegisterResponse,
    RequestInterceptResponse,
    StreamInterceptResponse,
    StreamItem,
    Termination,
)
from pluginapi.tidy import tidy

WRONG: Any = SimpleNamespace(
    Executor=ExecutorResponse,
    Intercept=RequestInterceptResponse,
    Route=ModelRouteResponse,
    Register=RegisterResponse,
    Auth=FrontendAuthResponse,
    Terminate=Termination,
    Records=AuthRecordsResponse,
)
"""The constructors without their types: the mistakes are the point."""


@pytest.mark.parametrize(
    "answer",
    [
        ModelRouteResponse(target_kind="self"),
        ExecutorResponse(status=201, headers={"x-a": ["b", "c"]}, body=Body(text="")),
        RequestInterceptResponse(clear_headers=["a"], headers={"x": ()}, patch=Raw(b"{}")),
        RequestInterceptResponse(terminate=Termination(status=403, body=Body.from_value({"a": 1}))),
        StreamInterceptResponse(items=[StreamItem(event="e", body=Body(text="x")), StreamItem(raw=Body(text="y"))]),
        RegisterResponse(models=[ModelInfo(id="m", created=5)], providers=("p",), capabilities=None),
        FrontendAuthResponse(decision="deny", status=418, metadata={"a": "b"}),
        AuthRecordsResponse(records=[None, CredentialRecord(label="a")]),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_a_right_answer_is_the_very_object(answer: Any) -> None:
    assert tidy(answer) is answer


def test_every_answer_of_every_method_passes_as_it_is_made() -> None:
    for spec in PLUGIN_METHODS.values():
        answer = spec.response()
        assert tidy(answer) is answer, spec.name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"a": [1, None]}, Body.from_value({"a": [1, None]})),
        ("text", Body(text="text")),
        (b"\xff", Body(base64=b"\xff")),
        (None, UNSET),
    ],
    ids=["mapping", "text", "bytes", "none"],
)
def test_a_body_may_be_written_as_what_it_holds(given: Any, meant: Any) -> None:
    assert tidy(WRONG.Executor(body=given)).body == meant
    assert tidy(WRONG.Intercept(terminate=Termination(body=given))).terminate == Termination(body=meant)


@pytest.mark.parametrize("given", [{"user": "x"}, b'{"user":"x"}', '{"user":"x"}'], ids=["mapping", "bytes", "text"])
def test_a_patch_may_be_a_mapping_or_its_json(given: Any) -> None:
    patch = tidy(WRONG.Intercept(patch=given)).patch
    assert isinstance(patch, Raw)
    assert bytes(patch) == b'{"user":"x"}'


def test_a_list_keeps_its_nulls_where_it_may_have_some() -> None:
    wrong: Any = {"token": "t"}
    answer = tidy(AuthRecordsResponse(records=[None, CredentialRecord(storage=wrong)]))
    assert answer.records == (None, CredentialRecord(storage=Raw(b'{"token":"t"}')))


def test_a_headers_value_may_be_one_string() -> None:
    headers = tidy(WRONG.Executor(headers={"X-A": "yes", "x-b": ["1", "2"]})).headers
    assert headers == {"x-a": ("yes",), "x-b": ("1", "2")}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: WRONG.Route(target_kind=7), "target_kind: expected str, got 7"),
        (lambda: WRONG.Executor(status="200"), "status: expected int, got '200'"),
        (lambda: WRONG.Executor(status=True), "status: expected int, got True"),
        (lambda: WRONG.Executor(headers=[("a", "b")]), "headers: expected a mapping of names to lists of strings"),
        (lambda: WRONG.Executor(headers={"x-a": [1]}), "headers: expected lists of strings as values, got [1]"),
        (lambda: WRONG.Intercept(clear_headers="x-a"), "clear_headers: expected a list, got 'x-a'"),
        (lambda: WRONG.Intercept(clear_headers=[1]), "clear_headers: expected str, got 1"),
        (lambda: WRONG.Intercept(patch="{"), "patch: expected JSON, got '{'"),
        (lambda: WRONG.Intercept(terminate={"status": 200}), "terminate: expected Termination"),
        (lambda: WRONG.Intercept(terminate=WRONG.Terminate(status="4")), "terminate: status: expected int"),
        (lambda: WRONG.Register(models=["m"]), "models: expected ModelInfo, got 'm'"),
        (lambda: WRONG.Records(records=[None, {"label": "a"}]), "records: expected CredentialRecord, got {"),
        (lambda: WRONG.Auth(decision="perhaps"), "decision: expected 'allow' or 'abstain' or 'deny'"),
        (lambda: WRONG.Route(target_kind=["x" * 500]), "…"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(answer: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        tidy(answer())
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200
