"""What an upstream's error answer becomes: status, body, scope and retry delay survive (spec providers 3.1.3)."""

import json

import pytest

from pluginabi.body import Body
from pluginapi.upstream import request_headers, retry_after_ms, upstream_error


def google(*details: object, message: str = "quota") -> bytes:
    return json.dumps({"error": {"code": 429, "message": message, "details": details}}).encode()


RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"retry-after": ["7"]}, b"", 7000),
        ({"retry-after": ["0.25"]}, b"", 250),
        ({"retry-after-ms": ["1500"], "retry-after": ["99"]}, b"", 1500),
        ({"retry-after": ["soon"]}, b"", None),
        ({"retry-after": ["Wed, 21 Oct 2015 07:28:00 GMT"]}, b"", 0),
        ({"x-ratelimit-remaining-requests": ["0"], "x-ratelimit-reset-requests": ["6m0s"]}, b"", 360_000),
        ({"x-ratelimit-remaining-tokens": ["10"], "x-ratelimit-reset-tokens": ["6m0s"]}, b"", None),
        ({}, google({"@type": RETRY_INFO, "retryDelay": "0.479417207s"}), 480),
        ({}, google({"@type": RETRY_INFO, "retryDelay": "soonish"}), None),
        ({}, google({"@type": ERROR_INFO, "metadata": {"quotaResetDelay": "479.417207ms"}}), 480),
        ({}, b"google.rpc but no JSON", None),
        ({}, b"", None),
        # One that says "now", or nothing that can be read, leaves the word to the next.
        (
            {"retry-after": ["0"], "x-ratelimit-remaining-requests": ["0"], "x-ratelimit-reset-requests": ["1h"]},
            b"",
            3_600_000,
        ),
        ({"retry-after-ms": ["0"]}, google({"@type": RETRY_INFO, "retryDelay": "2s"}), 2000),
        ({"retry-after": ["0"], "x-ratelimit-remaining-tokens": ["0"], "x-ratelimit-reset-tokens": ["0s"]}, b"", 0),
        ({"retry-after": ["Wed, 99 Oct 2099 99:00:00 GMT"], "retry-after-ms": ["x"]}, b"", None),
        ({"retry-after": ["Wed, 21 Oct 99999 10:00:00 GMT"]}, b"", None),
        ({"retry-after": ["Wed, 21 Oct 2099 10:00:00 +99999999999"]}, b"", None),
        ({"x-ratelimit-remaining-tokens": ["0"], "x-ratelimit-reset-tokens": ["9" * 400 + "h"]}, b"", None),
        ({}, b'{"error": {"details": [{"@type": "google.rpc.RetryInfo", "retryDelay": "\xff"}]}}', None),
        ({}, b"[" * 100_000 + b"google.rpc", None),
    ],
)
def test_the_retry_delay_is_read_from_where_providers_put_it(headers, body, expected):
    assert retry_after_ms(headers, body) == expected


@pytest.mark.parametrize(
    ("status", "scope"),
    [
        (400, "request"),
        (401, "credential"),
        (403, "credential"),
        (404, "model"),
        (422, "request"),
        (429, "model"),
        (503, None),
    ],
)
def test_the_status_says_whose_fault_it_is(status, scope):
    error = upstream_error(status, {}, b"{}", protocol="openai").body
    assert (error.http_status, error.scope, error.origin) == (status, scope, "upstream")


def test_message_code_headers_and_exact_body_survive():
    raw = b'{ "error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit"} }'
    error = upstream_error(429, {"x-quota": ["0"]}, raw, protocol="openai").body
    assert (error.message, error.code, error.headers) == ("slow down", "rate_limit", {"x-quota": ["0"]})
    assert isinstance(error.body, Body) and error.body.to_bytes() == raw
    assert error.body_protocol == "openai"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "<html>"),
        (b"", "upstream answered 500"),
        (b"[1]", "upstream answered 500"),
        (b'{"error": {"message": "\xff"}}', '{"error": {"message": "\N{REPLACEMENT CHARACTER}"}}'),
        (b"[" * 100_000, "[" * 2048),
    ],
    ids=["html", "nothing", "list", "no text", "deep"],
)
def test_an_error_that_is_no_error_document_still_has_a_message(body, message):
    assert upstream_error(500, {}, body, protocol="claude").body.message == message


def test_an_upstream_that_answers_a_redirect_is_a_bad_gateway():
    error = upstream_error(302, {}, b"", protocol="openai").body
    assert (error.http_status, error.details) == (502, {"http_status": 302})


def test_a_body_that_is_no_text_travels_as_bytes():
    error = upstream_error(500, {}, b"\xff\xfe", protocol="openai").body
    assert isinstance(error.body, Body) and error.body.to_bytes() == b"\xff\xfe"


def test_hop_by_hop_and_address_headers_stay_here_and_the_rest_goes_on():
    given = {
        "connection": ["x"],
        "x-forwarded-for": ["1.2.3.4"],
        "openai-beta": ["a"],
        "accept": ["*/*"],
        "host": ["h"],
    }
    headers = request_headers(given, stream=True)
    assert headers == {"openai-beta": ["a"], "content-type": ("application/json",), "accept": ("text/event-stream",)}
    assert "accept-encoding" in request_headers(given, stream=False)
