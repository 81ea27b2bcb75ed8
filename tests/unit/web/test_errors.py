"""One table from error objects to the error of each client family, and the header filter."""

from typing import Any

import msgspec
import pytest

from host.config.model import Config
from host.errors import RequestError
from host.observe.logs import redact
from host.pipeline.request import ClientResponse
from host.web.headers import safe_headers
from host.web.render_errors import Family, render_http, render_in_band, responses_error
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, PluginTimeout
from tests.support.web import Proxy


def http(error: ErrorBody, family: Family = Family.OPENAI, protocol: str | None = None, **options: Any) -> Any:
    rendered = render_http(error, family, protocol or family.value, **options)
    return rendered.status, msgspec.json.decode(rendered.body)


def error(message: str = "m", **fields: Any) -> ErrorBody:
    if "body" in fields:
        fields["body"] = Body.from_value(fields["body"])
    return ErrorBody(message=message, **fields)


OPENAI_TABLE = [
    (400, "invalid_request_error", None),
    (401, "authentication_error", "invalid_api_key"),
    (402, "invalid_request_error", None),
    (403, "permission_error", "insufficient_quota"),
    (404, "invalid_request_error", "model_not_found"),
    (429, "rate_limit_error", "rate_limit_exceeded"),
    (500, "server_error", "internal_server_error"),
    (503, "server_error", "internal_server_error"),
]


@pytest.mark.parametrize(("status", "kind", "code"), OPENAI_TABLE, ids=[f"ER-06-{row[0]}" for row in OPENAI_TABLE])
def test_openai_types_and_codes_follow_the_status(status: int, kind: str, code: str | None) -> None:
    expected = {"message": "m", "type": kind} | ({"code": code} if code else {})
    assert http(error(http_status=status)) == (status, {"error": expected})


CLAUDE_TABLE = [
    (400, "invalid_request_error"),
    (401, "authentication_error"),
    (402, "billing_error"),
    (403, "permission_error"),
    (404, "not_found_error"),
    (413, "request_too_large"),
    (422, "invalid_request_error"),
    (429, "rate_limit_error"),
    (500, "api_error"),
    (503, "api_error"),
    (504, "timeout_error"),
    (529, "overloaded_error"),
]


@pytest.mark.parametrize(("status", "kind"), CLAUDE_TABLE, ids=[f"ER-12-{row[0]}" for row in CLAUDE_TABLE])
def test_anthropic_types_follow_the_status(status: int, kind: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": "m"}}
    assert http(error(http_status=status), Family.CLAUDE) == (status, expected)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"),
        (404, "NOT_FOUND"),
        (429, "RESOURCE_EXHAUSTED"),
        (418, "INVALID_ARGUMENT"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
        (599, "INTERNAL"),
    ],
)
def test_gemini_errors_are_geminis_own(status: int, name: str) -> None:
    expected = {"error": {"code": status, "message": "m", "status": name}}
    assert http(error(http_status=status), Family.GEMINI) == (status, expected)
    assert msgspec.json.decode(render_in_band(error(http_status=status), Family.GEMINI)) == expected


@pytest.mark.parametrize("status", [0, 200, 302, 700], ids=["ER-07", "LS-10", "302", "700"])
def test_an_error_never_carries_a_status_that_is_none(status: int) -> None:
    assert http(error("", http_status=status)) == (
        500,
        {"error": {"message": "Internal Server Error", "type": "server_error", "code": "internal_server_error"}},
    )


def test_a_code_that_says_more_than_the_table_stays() -> None:
    timeout = PluginTimeout("p", "model.route", timeout_ms=500).to_error_body()
    status, body = http(timeout)
    assert (status, body["error"]["code"]) == (504, "plugin_timeout")
    unknown = RequestError(400, "model_not_found", "no 'x'", details={"param": "model"})
    assert http(unknown.body)[1]["error"] == {
        "message": "no 'x'",
        "type": "invalid_request_error",
        "code": "model_not_found",
        "param": "model",
    }


@pytest.mark.parametrize("value", ["oops", 42, None, [1]])
def test_ER09_a_body_that_is_no_object_is_wrapped(value: Any) -> None:
    given = error(http_status=400, body=value, body_protocol="openai")
    assert http(given) == (400, {"error": {"message": "m", "type": "invalid_request_error"}})


def test_a_body_in_the_clients_protocol_is_sent_as_it_is_and_only_then() -> None:
    body = {"error": {"message": "quota", "type": "insufficient_quota", "code": "q", "extra": [1.0]}}
    given = error(http_status=429, body=body, body_protocol="openai")
    assert http(given, protocol="openai") == (429, body)
    assert http(given, protocol="openai-embedding") == (429, body)
    assert http(given, Family.RESPONSES)[1]["error"] == {"message": "quota", "type": "rate_limit_error", "code": "q"}
    assert http(given, Family.CLAUDE)[1]["error"] == {"type": "rate_limit_error", "message": "quota"}
    assert http(given, Family.GEMINI)[1]["error"] == {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}


def test_ER10_an_openai_body_becomes_an_anthropic_error() -> None:
    body = {"error": {"message": "upstream says", "type": "invalid_request_error", "code": "c"}}
    assert http(error(http_status=400, body=body, body_protocol="openai"), Family.CLAUDE) == (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "upstream says"}},
    )


def test_ER11_nothing_but_type_and_message_of_an_anthropic_body_goes_in_band() -> None:
    body = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}, "request_id": "req_1"}
    given = error(http_status=429, body=body, body_protocol="claude")
    expected = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
    assert msgspec.json.decode(render_in_band(given, Family.CLAUDE)) == expected


def test_ER14_a_responses_error_has_its_type_at_the_top() -> None:
    assert responses_error(error("unexpected EOF", http_status=500)) == {
        "type": "error",
        "code": "internal_server_error",
        "message": "unexpected EOF",
        "sequence_number": 0,
    }


def test_ER15_an_error_object_gives_message_and_code() -> None:
    given = error(http_status=500, body={"error": {"message": "oops", "code": "c1"}}, body_protocol="openai")
    payload = responses_error(given)
    assert (payload["message"], payload["code"]) == ("oops", "c1")


def test_ER17_a_responses_error_body_keeps_its_code_and_sequence() -> None:
    body = {"type": "error", "message": "m", "code": 7, "sequence_number": 3}
    payload = responses_error(error(http_status=500, body=body, body_protocol="openai-response"))
    assert (payload["code"], payload["sequence_number"]) == ("7", 3)
    assert responses_error(error(http_status=500, body=body), 9)["sequence_number"] == 9


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "invalid_api_key"),
        (403, "insufficient_quota"),
        (404, "model_not_found"),
        (408, "request_timeout"),
        (429, "rate_limit_exceeded"),
        (502, "internal_server_error"),
        (422, "invalid_request_error"),
    ],
)
def test_responses_codes_follow_the_status(status: int, code: str) -> None:
    assert responses_error(error(http_status=status))["code"] == code


LIMITED = {"Retry-After": ("30",), "X-Quota": ("0", "1"), "X-Request-Id": ("new-1", "new-2"), "Connection": ("close",)}


async def send(proxy: Proxy, **fields: Any) -> Any:
    proxy.gateway.answer = PluginError("slow down", http_status=429, **fields)
    return await proxy.post("/v1/chat/completions", {"model": "m"})


async def test_E41_ER01_retry_after_is_sent_without_passthrough(proxy: Proxy) -> None:
    answer = await send(proxy, origin="upstream", headers={k.lower(): v for k, v in LIMITED.items()})
    assert answer.status == 429
    assert answer.headers["Retry-After"] == "30"
    assert "X-Quota" not in answer.headers


async def test_E41_ER02_with_passthrough_the_errors_headers_come_along_but_the_request_id_is_ours(proxy: Proxy) -> None:
    proxy.config = Config(passthrough_headers=True)
    answer = await send(proxy, origin="upstream", headers={k.lower(): v for k, v in LIMITED.items()})
    assert answer.headers["Retry-After"] == "30"
    assert answer.headers.getall("X-Upstream-Request-Id") == ["new-1", "new-2"]
    assert answer.headers.getall("X-Request-Id") == [proxy.gateway.request.request_id]
    assert answer.headers.getall("X-Quota") == ["0", "1"]


async def test_headers_of_a_plugins_own_error_are_sent(proxy: Proxy) -> None:
    answer = await send(proxy, headers={"x-quota": ["0"], "set-cookie": ["a=b"], "access-control-allow-origin": ["x"]})
    assert answer.headers["X-Quota"] == "0"
    assert "Set-Cookie" not in answer.headers
    assert answer.headers.getall("Access-Control-Allow-Origin") == ["*"]


@pytest.mark.parametrize(("wait_ms", "header"), [(0, "0"), (1, "1"), (1500, "2"), (2000, "2")])
async def test_retry_after_is_in_whole_seconds_rounded_up(proxy: Proxy, wait_ms: int, header: str) -> None:
    assert (await send(proxy, retry_after_ms=wait_ms)).headers["Retry-After"] == header


@pytest.mark.parametrize("status", [429, 503], ids=["ER-04", "ER-05"])
async def test_the_status_and_code_of_an_error_survive(proxy: Proxy, status: int) -> None:
    proxy.gateway.answer = PluginError("none left", code="auth_unavailable", http_status=status)
    answer = await proxy.post("/v1/chat/completions", {"model": "m"})
    assert (answer.status, answer.json()["error"]["code"]) == (status, "auth_unavailable")


async def test_an_unknown_exception_is_a_500_that_shows_nothing(proxy: Proxy) -> None:
    proxy.gateway.answer = ZeroDivisionError("secret detail")
    answer = await proxy.post("/v1/chat/completions", {"model": "m"})
    assert answer.status == 500
    assert b"secret detail" not in answer.body


def test_HD01_hop_by_hop_headers_and_those_that_Connection_names_are_dropped() -> None:
    given = {
        "connection": ("keep-alive, x-hop-a, x-hop-b", "x-hop-c"),
        "x-hop-a": ("1",),
        "x-hop-b": ("1",),
        "x-hop-c": ("1",),
        "keep-alive": ("timeout=5",),
        "set-cookie": ("a=b",),
        "x-litellm-model": ("x",),
        "x-request-id": ("up",),
    }
    assert safe_headers(given) == [("X-Upstream-Request-Id", "up")]


def test_HD02_nothing_left_is_nothing() -> None:
    assert safe_headers({"connection": ("close",), "content-length": ("3",)}) == []


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "\x00", "a\x7f"])
def test_a_value_that_would_start_another_header_line_is_dropped(value: str) -> None:
    assert safe_headers({"x-a": (value, "fine"), "bad name": ("x",)}) == [("x-a", "fine")]


async def test_HD04_several_values_keep_their_order(proxy: Proxy) -> None:
    proxy.gateway.answer = ClientResponse(status=200, headers={"x-many": ("b", "a")}, body=b"{}")
    assert (await proxy.post("/v1/messages", {"model": "m"})).headers.getall("x-many") == ["b", "a"]


async def test_HD05_our_content_type_stays(proxy: Proxy) -> None:
    proxy.gateway.answer = ClientResponse(status=201, headers={"content-type": ("text/plain",)}, body=b"{}")
    answer = await proxy.post("/v1/messages", {"model": "m"})
    assert (answer.status, answer.headers.getall("Content-Type")) == (200, ["application/json"])


async def test_an_interceptors_own_response_is_written_as_it_is(proxy: Proxy) -> None:
    own = ClientResponse(
        status=451, headers={"content-type": ("text/html",), "x-why": ("law",)}, body=b"<p>no</p>", direct=True
    )
    proxy.gateway.answer = own
    answer = await proxy.post("/v1/messages", {"model": "m"})
    assert (answer.status, answer.body) == (451, b"<p>no</p>")
    assert (answer.headers["Content-Type"], answer.headers["X-Why"]) == ("text/html", "law")
    proxy.gateway.stream = own
    assert (await proxy.post("/v1/messages", {"model": "m", "stream": True})).body == b"<p>no</p>"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("bad key sk-abcdefghijkl1234", "bad key [redacted]"),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer [redacted]"),
        ("got AIzaSyA1234567890abcdefgh", "got [redacted]"),
        ('{"api_key": "hunter2222"}', '{"api_key": "[redacted]"}'),
        ("https://x/?key=abcd1234&alt=sse", "https://x/?key=[redacted]&alt=sse"),
        ("max_tokens=100000 is too many tokens: 128000", "max_tokens=100000 is too many tokens: 128000"),
        ("Input tokens exceed the limit", "Input tokens exceed the limit"),
    ],
)
def test_secrets_in_error_texts_are_redacted(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert http(error(text, http_status=400))[1]["error"]["message"] == clean
