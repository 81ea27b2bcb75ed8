"""What a failure means for its credential and for the request."""

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import CooldownBook
from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from tests.support.pipeline import Clock


def error(status: int, **fields) -> ErrorBody:
    if "body" in fields:
        fields["body"] = Body.from_value(fields["body"])
    return ErrorBody(http_status=status, **fields)


@pytest.mark.parametrize(
    ("vector", "failure", "rotate", "cooldown_s", "reason"),
    [
        ("F1", error(401), True, 1800, "unauthorized"),
        ("F2", error(402), True, 1800, "payment_required"),
        ("F2", error(403), True, 1800, "payment_required"),
        ("P126", error(404), True, 12 * 3600, "not_found"),
        ("P126", error(503), True, 60, "transient"),
        ("P126", error(408), True, 60, "transient"),
        ("P126", error(418), True, 0, "failed"),
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


def test_a_missing_count_endpoint_says_nothing_about_the_credential():
    assert classify(error(404), counting=True).cooldown_s == 0


def test_an_upstream_hint_is_believed_for_a_day_at_most_and_a_negative_one_not_at_all():
    assert classify(error(429, retry_after_ms=10**12)).cooldown_s == 24 * 3600
    assert classify(error(429, retry_after_ms=-1)).backoff


def test_F4_429_without_a_hint_doubles_after_each_expiry_and_F5_stops_at_half_an_hour():
    clock = Clock()
    book = CooldownBook(clock=clock)
    rests = []
    for _ in range(13):
        rests.append(book.failed("c", "m", classify(error(429))))
        clock.now_s += rests[-1]
    assert rests == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1800, 1800]


def test_failures_inside_an_open_window_count_once():
    book = CooldownBook(clock=Clock())
    assert [book.failed("c", "m", classify(error(429))) for _ in range(3)] == [1, 1, 1]


def test_F6_a_hint_does_not_raise_the_level():
    clock = Clock()
    book = CooldownBook(clock=clock)
    for _ in range(3):
        clock.now_s += book.failed("c", "m", classify(error(429)))
    clock.now_s += book.failed("c", "m", classify(error(429, retry_after_ms=90_000)))
    assert book.failed("c", "m", classify(error(429))) == 8


def test_a_success_forgets_the_model_but_not_a_block_on_the_whole_credential():
    book = CooldownBook(clock=Clock())
    book.failed("c", "m", classify(error(429)))
    book.succeeded("c", "m")
    assert book.empty
    book.failed("c", "m", classify(error(401, scope="credential")))
    book.succeeded("c", "m")
    assert book.block("c", "other", 1000.0) is not None


def test_D19_a_block_ends_by_itself():
    clock = Clock()
    book = CooldownBook(clock=clock)
    book.failed("c", "m", classify(error(429, retry_after_ms=60_000)))
    assert book.block("c", "m", clock()) is not None
    assert book.block("c", "m", clock() + 60) is None


def test_the_later_end_of_two_blocks_wins():
    clock = Clock()
    book = CooldownBook(clock=clock)
    book.failed("c", "m", classify(error(429, retry_after_ms=60_000)))
    book.failed("c", "m", classify(error(429, retry_after_ms=5_000)))
    block = book.block("c", "m", clock())
    assert block is not None
    assert block.until_s == clock() + 60


def test_F31_a_reset_forgets_one_credential_and_names_its_models():
    book = CooldownBook(clock=Clock())
    for credential in ("a", "b"):
        book.failed(credential, "m", classify(error(429)))
    assert book.reset("a") == ("m",)
    assert (book.block("a", "m", 1000.0), book.block("b", "m", 1000.0) is None) == (None, False)


def test_credentials_that_are_gone_are_forgotten():
    book = CooldownBook(clock=Clock())
    book.failed("gone", "m", classify(error(429)))
    book.keep_only({"other"})
    assert book.empty
