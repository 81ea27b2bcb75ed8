"""Routes, CORS, health and what the proxy says about itself."""

import asyncio

import pytest

from host.config.model import ApiKey, Config
from host.pipeline.request import ClientResponse, Principal
from tests.support.web import Proxy

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*",
}


async def test_RT01_healthz_says_ok(proxy: Proxy) -> None:
    answer = await proxy.get("/healthz")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


async def test_RT02_HEAD_healthz_has_no_body_and_the_connection_goes_on(proxy: Proxy) -> None:
    reader, writer = await proxy.socket()
    writer.write(
        b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    async with asyncio.timeout(20):
        received = await reader.read()
    writer.close()
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b'{"status":"ok"}') == 1


@pytest.mark.parametrize("path", ["/no/such/path", "/v1/chat/completions", "/"])
async def test_RT03_OPTIONS_is_answered_before_authentication(proxy: Proxy, path: str) -> None:
    answer = await proxy.send("OPTIONS", path)
    assert (answer.status, answer.body) == (204, b"")
    assert CORS.items() <= dict(answer.headers).items()
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"X-Request-Id", "X-Upstream-Request-Id", "Retry-After", "X-Jackfield-Version"} <= set(exposed)
    limits = {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}
    assert limits | {"retry-after-ms", "x-should-retry", "request-id", "*"} <= {name.lower() for name in exposed}
    assert proxy.access.shown == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/no/such/path"),
        ("HEAD", "/v1/models"),
        ("GET", "/v0/management/messages"),
        ("GET", "/management.html"),
        ("GET", "/claude/callback"),
    ],
    ids=["RT-04", "head", "managed", "panel", "landing"],
)
async def test_what_is_no_route_is_an_empty_404_with_CORS(proxy: Proxy, method: str, path: str) -> None:
    answer = await proxy.send(method, path)
    assert (answer.status, answer.body) == (404, b"")
    assert CORS.items() <= dict(answer.headers).items()


BASE_URLS = {"openai": "followed by /v1, once", "claude": "alone, without /v1", "gemini": "alone, without a version"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "family", "says"),
    [
        ("GET", "/v1/chat/completions", {}, "openai", "use POST"),
        ("POST", "/v1/models", {}, "openai", "use GET"),
        ("DELETE", "/v1/responses", {}, "openai", "use GET or POST"),
        ("POST", "/v1beta/models/", {}, "gemini", "use GET"),
        ("GET", "/v1/v1beta/models", {}, "gemini", "GET /v1beta/models."),
        ("GET", "/v1/audio/speech", {}, "openai", "no such endpoint"),
        ("POST", "/chat/completions", {}, "openai", "the endpoint is POST /v1/chat/completions."),
        ("POST", "/v1/v1/responses", {}, "openai", "the endpoint is POST /v1/responses."),
        ("POST", "//v1/embeddings", {}, "openai", "the endpoint is POST /v1/embeddings."),
        ("POST", "/v1beta/openai/chat/completions", {}, "openai", "POST /v1/chat/completions."),
        ("GET", "/models", {"Authorization": "Bearer k"}, "openai", "the endpoint is GET /v1/models."),
        ("GET", "/v1/v1/models", {"anthropic-version": "2023-06-01"}, "claude", "GET /v1/models."),
        ("POST", "/v1/v1/messages", {}, "claude", "the endpoint is POST /v1/messages."),
        ("POST", "/messages/count_tokens", {}, "claude", "POST /v1/messages/count_tokens."),
        ("GET", "/v1/messages/batches", {}, "claude", "no such endpoint"),
        ("GET", "/v1/messages", {}, "claude", "use POST"),
        ("POST", "/v1/v1beta/models/g:streamGenerateContent", {}, "gemini", "/v1beta/models/g:streamGenerateContent."),
        (
            "POST",
            "/v1beta1/projects/p/locations/l/publishers/google/models/g:generateContent",
            {},
            "gemini",
            "vertexai",
        ),
        ("GET", "/v1/files", {"x-goog-api-key": "k"}, "gemini", "no such endpoint"),
        ("GET", "/no/such/path", {"X-Api-Key": "k"}, "openai", "no such endpoint"),
    ],
)
async def test_an_SDK_with_a_wrong_base_url_is_told_the_right_one_in_its_own_shape(
    proxy: Proxy, method: str, path: str, headers: dict[str, str], family: str, says: str
) -> None:
    answer = await proxy.send(method, path, headers=headers)
    error = answer.json()["error"]
    assert answer.status == 404
    assert CORS.items() <= dict(answer.headers).items()
    assert says in error["message"]
    assert BASE_URLS[family] in error["message"] or "use " in says
    shape = {"openai": "code" in error, "claude": "not_found_error" in error["type"] if "type" in error else False}
    assert shape.get(family, error.get("status") == "NOT_FOUND"), error
    assert proxy.access.shown == []


async def test_RT06_a_GET_on_responses_without_upgrade_is_a_400(proxy: Proxy) -> None:
    assert (await proxy.get("/v1/responses")).status == 400


async def test_RT14_an_idle_connection_does_not_hold_up_another(proxy: Proxy) -> None:
    _, idle = await proxy.socket()
    assert (await proxy.get("/healthz")).status == 200
    idle.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "location"),
    [
        ("GET", "/v1/models/", 301, "/v1/models"),
        ("POST", "/v1/messages/?beta=true", 307, "/v1/messages?beta=true"),
    ],
)
async def test_a_trailing_slash_is_redirected(proxy: Proxy, method: str, path: str, status: int, location: str) -> None:
    answer = await proxy.send(method, path)
    assert (answer.status, answer.headers["Location"]) == (status, location)


async def test_a_percent_encoded_path_is_the_same_route(proxy: Proxy) -> None:
    answer = await proxy.post("/v1/chat%2Fcompletions", {"model": "m"})
    assert answer.status == 200


async def test_the_root_lists_the_endpoints(proxy: Proxy) -> None:
    document = (await proxy.get("/")).json()
    assert "Jackfield" in document["message"]
    assert {"POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models"} <= set(document["endpoints"])


async def test_readyz_is_503_until_the_host_is_ready(proxy: Proxy) -> None:
    assert (await proxy.get("/readyz")).status == 200
    proxy.health.is_ready = False
    answer = await proxy.get("/readyz")
    assert (answer.status, answer.json()["status"]) == (503, "not ready")


async def test_a_key_of_the_sample_configuration_closes_the_proxy_and_the_root_warns(proxy: Proxy) -> None:
    proxy.config = Config(api_keys=(ApiKey(key="your-api-key-1"),))
    answer = await proxy.post(
        "/v1/chat/completions", {"model": "m"}, headers={"Authorization": "Bearer your-api-key-1"}
    )
    assert (answer.status, answer.json()["error"]) == (403, "unsafe_example_api_key")
    assert "sample" in (await proxy.get("/")).json()["warning"]
    assert proxy.gateway.requests == []


async def test_metrics_are_for_this_machine_or_an_authenticated_client(proxy: Proxy) -> None:
    await proxy.post("/v1/chat/completions", {"model": "m"})
    answer = await proxy.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert (
        'jackfield_requests_total{caller="tester",endpoint="POST /v1/chat/completions",status="200"} 1.0' in answer.text
    )
    foreign = {"Origin": "https://evil.example"}
    assert (await proxy.get("/metrics", headers=foreign)).status == 200
    proxy.access.principal = Principal(name="anonymous", provider="anonymous")
    assert (await proxy.get("/metrics", headers=foreign)).status == 403
    assert (await proxy.get("/metrics", headers={"Host": "rebound.example"})).status == 403


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_a_client_that_closes_gets_the_answer_and_the_end_of_the_connection(proxy: Proxy, version: bytes) -> None:
    proxy.gateway.answer = ClientResponse(status=200, body=b"x" * 200_000)
    reader, writer = await proxy.socket()
    body = b'{"model":"m"}'
    writer.write(
        b"POST /v1/chat/completions %b\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (version, len(body), body)
    )
    async with asyncio.timeout(20):
        received = await reader.read()
    writer.close()
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert rest == b"x" * 200_000


async def test_a_long_header_is_accepted_and_a_huge_one_refused(proxy: Proxy) -> None:
    ok = await proxy.post("/v1/chat/completions", {"model": "m"}, headers={"X-Turn-Metadata": "a" * 40_000})
    assert ok.status == 200
    refused = await proxy.post("/v1/chat/completions", {"model": "m"}, headers={"X-Turn-Metadata": "a" * 100_000})
    assert refused.status == 400


async def test_every_request_has_an_id_of_its_own(proxy: Proxy) -> None:
    ids = {(await proxy.get("/v1/models")).headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20


@pytest.mark.parametrize("path", [b"/v1/%ff%0d%0aX:y", b"/v1/" + b"a" * 5000])
async def test_a_path_that_is_no_text_or_very_long_is_a_404_like_any_other(proxy: Proxy, path: bytes) -> None:
    reader, writer = await proxy.socket()
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}" % path)
    async with asyncio.timeout(20):
        received = await reader.read()
    writer.close()
    assert received.startswith(b"HTTP/1.1 404")
    assert b"\nX:" not in received
    assert len(received) < 2000
