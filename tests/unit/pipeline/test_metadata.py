"""Metadata of a request."""

import pytest

from host.pipeline.metadata import base_metadata, budget_label, full_metadata
from host.pipeline.request import Principal
from tests.support.pipeline import client_request


def metadata(body=None, **fields):
    request = client_request(body, **fields)
    return full_metadata(base_metadata(request, nested=False), request, request.body)


def test_MD_01_an_idempotency_key_is_there_only_when_it_was_sent():
    assert "idempotency_key" not in metadata()
    assert metadata(headers={"Idempotency-Key": " k "})["idempotency_key"] == "k"


def test_MD_03_a_responses_body_says_its_effort():
    body = {"reasoning": {"effort": "medium"}}
    assert metadata(body, protocol="openai-response")["reasoning_effort"] == "medium"


@pytest.mark.parametrize(("tier", "expected"), [(" priority ", "priority"), (None, "auto"), (5, "auto"), ("", "auto")])
def test_MD_04_MD_05_the_service_tier_is_trimmed_and_auto_by_default(tier, expected):
    assert metadata({"service_tier": tier})["service_tier"] == expected


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        (0, "none"),
        (1, "minimal"),
        (512, "minimal"),
        (513, "low"),
        (1024, "low"),
        (1025, "medium"),
        (8192, "medium"),
        (8193, "high"),
        (24576, "high"),
        (24577, "xhigh"),
        (-1, "auto"),
    ],
)
def test_MD_06_a_budget_has_a_label(budget, label):
    assert budget_label(budget) == label
    assert metadata(model=f"m({budget})")["reasoning_effort"] == label


def test_the_suffix_wins_over_the_body_and_an_unknown_one_does_not_count():
    assert metadata({"reasoning_effort": "low"}, model="m(high)")["reasoning_effort"] == "high"
    assert metadata({"reasoning_effort": "low"}, model="m(huge)")["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("body", "label"),
    [
        ({"thinking": {"type": "enabled"}}, "auto"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, "medium"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high"),
        ({}, None),
    ],
)
def test_MD_08_the_effort_of_a_claude_body(body, label):
    assert metadata(body, protocol="claude").get("reasoning_effort") == label


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"thinkingLevel": "HIGH"}, "high"),
        ({"thinkingBudget": 1000}, "low"),
        ({"thinking_budget": 0}, "none"),
        ({}, None),
    ],
)
def test_the_effort_of_a_gemini_body(config, label):
    body = {"generationConfig": {"thinkingConfig": config, "responseSchema": {"type": "OBJECT"}}}
    assert metadata(body, protocol="gemini").get("reasoning_effort") == label


def test_MD_09_the_path_is_the_route_template():
    assert metadata(endpoint="POST /v1beta/models/*action")["request_path"] == "/v1beta/models/*action"


def test_generate_is_true_unless_the_body_says_literally_false():
    assert [metadata({"generate": value})["generate"] for value in (None, 0, True, False)] == [True, True, True, False]


def test_the_caller_is_named_with_a_scope_and_never_by_key():
    principal = Principal(name="alice", provider="config-api-key", scope="h", metadata={"team": "red"})
    found = metadata(principal=principal)
    assert (found["caller"], found["caller_scope"], found["caller_metadata"]) == ("alice", "h", {"team": "red"})


@pytest.mark.parametrize("body", [b"[1]", b"", b'"x"', b'{"generationConfig":5}', b"{"])
def test_a_body_that_is_no_object_says_nothing(body):
    assert metadata(body, protocol="gemini")["service_tier"] == "auto"


def test_I51_metadata_cannot_be_changed():
    with pytest.raises(TypeError):
        metadata()["x"] = 1  # type: ignore[index]
