"""What a failure means for its credential and for the request."""

import re

import msgspec
import pytest

from host.credentials.classify import ErrorRule, classify, hint_of
from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from pluginapi.upstream import upstream_error


def error(status: int, **fields) -> ErrorBody:
    if "body" in fields:
        fields["body"] = Body.from_value(fields["body"])
    return ErrorBody(http_status=status, **fields)


GOOGLE_RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "31s"}
STORED_ITEM_GONE = {"error": {"message": "Item not found", "type": "invalid_request_error", "param": "input"}}
KEY_REFUSED = {
    "error": {
        "code": 400,
        "status": "INVALID_ARGUMENT",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US"},
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
        ],
    }
}
BAD_FIELD = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": 7}, "?", None]}}
MODEL_GONE = {"error": {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}}


@pytest.mark.parametrize(
    ("vector", "failure", "rotate", "cooldown_s", "reason"),
    [
        ("F1", error(401), True, 1800, "unauthorized"),
        ("F2", error(402), True, 1800, "payment_required"),
        ("F2", error(403), True, 1800, "payment_required"),
        ("P126", error(404), True, 12 * 3600, "not_found"),
        ("P126", error(503), True, 60, "transient"),
        ("P126", error(408), True, 60, "transient"),
        ("P126", error(418), True, 60, "failed"),
        ("F6", error(429, retry_after_ms=90_000), True, 90, "quota"),
        ("P127", error(400), False, 0, "request"),
        ("P127", error(409), False, 0, "request"),
        ("P127", error(413), False, 0, "request"),
        ("F12", error(422), False, 0, "request"),
        ("F10", error(400, code="model_not_supported"), True, 12 * 3600, "model_not_supported"),
        ("F10", error(400, scope="model"), True, 12 * 3600, "model_not_supported"),
        ("12.2", error(500, body={"error": {"code": "context_length_exceeded"}}), False, 0, "request"),
        ("12.2", error(500, body={"error": {"type": "invalid_request_error"}}), False, 0, "request"),
        ("12.2", error(402, body={"error": {"code": "invalid_prompt"}}), True, 1800, "payment_required"),
        ("12.2", error(401, body={"error": {"type": "invalid_request_error"}}), True, 1800, "unauthorized"),
        ("design", error(500, retryable=False), False, 0, "request"),
        ("design", error(400, retryable=True), True, 0, "failed"),
        ("design", error(502, scope="connection"), True, 0, "connection"),
        ("design", error(500, scope="request"), False, 0, "request"),
        ("F11", error(404, scope="model", body=STORED_ITEM_GONE), False, 0, "request"),
        ("F11", error(404, body=STORED_ITEM_GONE), False, 0, "request"),
        ("404", error(404, scope="model", body=MODEL_GONE), True, 12 * 3600, "not_found"),
        ("400", error(400, scope="request", body=KEY_REFUSED), True, 1800, "unauthorized"),
        ("400", error(400, scope="request", body=[KEY_REFUSED]), True, 1800, "unauthorized"),
        ("400", error(400, scope="request", body=BAD_FIELD), False, 0, "request"),
        ("400", error(400, scope="request", body=[]), False, 0, "request"),
        ("403", error(403, scope="credential", body=MODEL_GONE), True, 12 * 3600, "model_not_supported"),
        ("F9", error(403, headers={"cf-mitigated": ["challenge"]}), True, 10, "challenge"),
        ("12.2", error(400, body={"error": "invalid_grant"}), True, 1800, "invalid_grant"),
        ("12.2", error(500, body={"error": {"status": "UNKNOWN"}}), True, 60, "transient"),
        ("12.2", error(429, scope="credential", retry_after_ms=5_000), True, 5, "credential_quota"),
        ("403", error(403, retry_after_ms=90_000), True, 90, "payment_required"),
        ("401", error(401, retry_after_ms=90_000), True, 1800, "unauthorized"),
        ("9.2", error(499, code="cancelled"), False, 0, "request"),
        ("5xx", error(503, retry_after_ms=5_000), True, 5, "transient"),
    ],
)
def test_a_failure_is_judged_by_its_structure(vector, failure, rotate, cooldown_s, reason):
    verdict = classify(failure)
    assert (verdict.rotate, verdict.cooldown_s, verdict.reason) == (rotate, cooldown_s, reason)


@pytest.mark.parametrize(("setting_s", "rest_s"), [(60.0, 60.0), (0.0, 0.0), (5.0, 5.0)])
def test_F7_the_rest_after_a_transient_failure_is_configured(setting_s, rest_s):
    assert classify(error(500), transient_s=setting_s).cooldown_s == rest_s


def test_the_text_of_a_message_decides_nothing():
    told = error(500, message='{"error":{"type":"invalid_request_error"}} model not supported cloudflare <html')
    assert classify(told) == classify(error(500))


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_endpoint_that_is_missing_says_nothing_about_the_model(status):
    verdict = classify(error(status), may_be_missing=True)
    assert (verdict.rotate, verdict.rests) == (True, False)


def test_an_upstream_that_refuses_a_key_as_a_bad_request_refuses_it_for_all_models():
    refused = classify(upstream_error(400, {}, msgspec.json.encode(KEY_REFUSED), protocol="gemini").body)
    assert (refused.fault, refused.whole_credential, refused.quota) == ("credential", True, False)
    forbidden = classify(error(403, scope="credential", body=MODEL_GONE))
    assert (forbidden.fault, forbidden.whole_credential) == ("model", False)


def test_a_model_that_such_an_endpoint_does_not_know_is_a_missing_model():
    unknown = error(404, body={"error": {"code": "model_not_found"}})
    assert classify(unknown, may_be_missing=True).cooldown_s == 12 * 3600


def test_an_upstream_hint_is_believed_for_a_day_at_most_and_a_negative_one_not_at_all():
    assert classify(error(429, retry_after_ms=10**12)).cooldown_s == 24 * 3600
    assert classify(error(429, retry_after_ms=-1)).backoff


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        (error(429, headers={"retry-after": ["7"]}), 7),
        (error(429, headers={"x-ratelimit-remaining-requests": ["0"], "x-ratelimit-reset-requests": ["1m30s"]}), 90),
        (error(429, body={"error": {"details": [GOOGLE_RETRY]}}), 31),
        (error(429, retry_after_ms=2_000, headers={"retry-after": ["7"]}), 2),
        (error(429, headers={"retry-after": ["never"]}), 0),
    ],
)
def test_F6_the_upstreams_own_reset_time_counts_wherever_it_stands(failure, seconds):
    assert hint_of(failure) == pytest.approx(seconds)
    assert classify(failure).exact is (seconds > 0)


@pytest.mark.parametrize(
    ("failure", "rests"),
    [
        (error(502, code="upstream_unreachable", scope="connection", details={"phase": "connect"}), False),
        (error(504, code="upstream_timeout", scope="connection", details={"phase": "connect"}), True),
        (error(504, code="upstream_timeout", scope="connection", details={"phase": "head"}), False),
        (error(502, code="upstream_disconnected", scope="connection", details={"phase": "body"}), False),
    ],
)
def test_a_host_that_does_not_answer_is_left_alone_and_a_cut_or_refused_connection_says_nothing(failure, rests):
    verdict = classify(failure)
    assert (verdict.rotate, verdict.fault, verdict.rests) == (True, "connection", rests)


RULES = (
    ErrorRule(status=418, action="stop", texts=("short and stout",)),
    ErrorRule(status=418, action="continue-and-cooldown", patterns=(re.compile("tea?pot"),)),
    ErrorRule(status=400, action="continue"),
    ErrorRule(status=429, action="stop-and-cooldown"),
)


@pytest.mark.parametrize(
    ("failure", "rotate", "cooldown_s", "forced"),
    [
        (error(418, message="I am Short and Stout"), False, 0, False),
        (error(418, body={"error": {"message": "a teapot"}}), True, 60, True),
        (error(418, message="else"), True, 60, False),
        (error(400), True, 0, False),
        (error(429, retry_after_ms=9_000), False, 9, True),
        (error(500), True, 60, False),
    ],
)
def test_an_operators_rule_decides_before_anything_else(failure, rotate, cooldown_s, forced):
    verdict = classify(failure, rules=RULES)
    assert (verdict.rotate, verdict.cooldown_s, verdict.forced) == (rotate, cooldown_s, forced)


def test_an_operators_rule_for_a_status_that_never_rests_brings_the_passing_rest():
    rule = ErrorRule(status=409, action="continue-and-cooldown")
    assert classify(error(409), rules=(rule,), transient_s=5.0).cooldown_s == 5
    assert classify(error(409), rules=(rule,), transient_s=0.0).cooldown_s == 60
