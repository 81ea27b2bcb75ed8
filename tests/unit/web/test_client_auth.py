"""Who may come in: what is shown to the access chain, and how a refusal looks to each client family."""

from typing import Any

import pytest

from host.config.model import ClientAuth, Config
from pluginabi.errors import ErrorBody, PluginTransportError
from tests.support.web import AccessDenied, Proxy

MISSING = ErrorBody(message="no API key was given", code="missing_api_key", http_status=401, origin="host")

OPENAI = {"error": {"message": "no API key was given", "type": "authentication_error", "code": "missing_api_key"}}
CLAUDE = {"type": "error", "error": {"type": "authentication_error", "message": "no API key was given"}}
GEMINI = {"error": {"code": 401, "message": "no API key was given", "status": "UNAUTHENTICATED"}}

REQUESTS = [
    ("POST", "/v1/chat/completions", {}, OPENAI),
    ("POST", "/v1/embeddings", {}, OPENAI),
    ("POST", "/v1/responses", {}, OPENAI),
    ("POST", "/v1/messages", {}, CLAUDE),
    ("POST", "/v1/messages/count_tokens", {}, CLAUDE),
    ("POST", "/v1beta/models/g:generateContent", {}, GEMINI),
    ("GET", "/v1/models", {}, OPENAI),
    ("GET", "/v1/models", {"Anthropic-Version": "2023-06-01"}, CLAUDE),
    ("GET", "/v1beta/models", {}, GEMINI),
]


@pytest.mark.parametrize(("method", "path", "headers", "expected"), REQUESTS)
async def test_AU09_a_refusal_has_the_error_shape_of_the_clients_family(
    proxy: Proxy, method: str, path: str, headers: dict[str, str], expected: Any
) -> None:
    proxy.access.denies = AccessDenied(MISSING)
    answer = await proxy.send(method, path, headers=headers)
    assert (answer.status, answer.json()) == (401, expected)
    assert answer.headers["X-Request-Id"]
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert proxy.gateway.requests == []


@pytest.mark.parametrize(("method", "path", "headers", "expected"), REQUESTS)
async def test_a_refusal_is_a_bare_string_when_the_operator_wants_that(
    proxy: Proxy, method: str, path: str, headers: dict[str, str], expected: Any
) -> None:
    proxy.config = Config(client_auth=ClientAuth(error_envelope="legacy"))
    proxy.access.denies = AccessDenied(MISSING)
    answer = await proxy.send(method, path, headers=headers)
    assert (answer.status, answer.json()) == (401, {"error": "no API key was given"})


async def test_an_upstream_401_is_no_refusal_of_the_client(proxy: Proxy) -> None:
    proxy.config = Config(client_auth=ClientAuth(error_envelope="legacy"))
    proxy.gateway.answer = AccessDenied(MISSING)
    answer = await proxy.post("/v1/chat/completions", {"model": "m"})
    assert isinstance(answer.json()["error"], dict)


async def test_an_auth_plugin_that_is_down_is_a_502_not_an_open_door(proxy: Proxy) -> None:
    proxy.access.denies = PluginTransportError("sso", "frontend_auth.authenticate", phase="unavailable", cause="down")
    answer = await proxy.post("/v1/chat/completions", {"model": "m"})
    assert (answer.status, answer.json()["error"]["code"]) == (502, "plugin_unavailable")


@pytest.mark.parametrize(
    ("headers", "query", "shown"),
    [
        ({"Authorization": "bearer    k1"}, "", ("headers", "authorization", ("bearer    k1",))),
        ({"X-Goog-Api-Key": "k1"}, "", ("headers", "x-goog-api-key", ("k1",))),
        ({"X-Api-Key": "k1"}, "", ("headers", "x-api-key", ("k1",))),
        ({}, "?key=k%201", ("query", "key", ("k 1",))),
        ({}, "?auth_token=k1&auth_token=k2", ("query", "auth_token", ("k1", "k2"))),
    ],
    ids=["AU-03", "AU-08", "x-api-key", "AU-07-key", "AU-07-auth-token"],
)
async def test_the_access_chain_sees_every_source_of_keys_on_every_route(
    proxy: Proxy, headers: dict[str, str], query: str, shown: tuple[str, str, tuple[str, ...]]
) -> None:
    where, name, values = shown
    for path in ("/v1/messages", "/v1beta/models/g:generateContent", "/v1/chat/completions"):
        await proxy.post(path + query, {"model": "m"}, headers=headers)
        seen = proxy.access.shown[-1]
        assert seen[where][name] == values
        assert seen["path"] == path
        assert seen["client_address"] == "127.0.0.1"
        assert seen["request_id"] == proxy.gateway.requests[-1].request_id


async def test_AU13_an_upgrade_without_a_key_is_a_401_without_upgrade(proxy: Proxy) -> None:
    proxy.access.denies = AccessDenied(MISSING)
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    answer = await proxy.get("/v1/responses", headers=headers)
    assert (answer.status, answer.json()) == (401, OPENAI)


async def test_the_body_is_read_once_when_the_access_chain_asks_for_it(proxy: Proxy) -> None:
    proxy.access.reads_body = True
    await proxy.post("/v1/chat/completions", b'{"model":"m"}')
    assert proxy.access.shown[0]["body"] == proxy.gateway.request.body == b'{"model":"m"}'


@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        ((), "9.9.9.9", "127.0.0.1"),
        (("127.0.0.1",), "9.9.9.9", "9.9.9.9"),
        (("127.0.0.0/8", "10.0.0.0/8"), "1.1.1.1, 9.9.9.9, 10.0.0.7", "9.9.9.9"),
        (("127.0.0.1",), "no address, 9.9.9.9", "9.9.9.9"),
        (("127.0.0.1",), "9.9.9.9, no address", "127.0.0.1"),
        (("127.0.0.1",), "", "127.0.0.1"),
        (("127.0.0.1",), "[2001:db8::1]", "2001:db8::1"),
    ],
)
async def test_a_forwarded_address_is_believed_from_trusted_proxies_only(
    proxy: Proxy, trusted: tuple[str, ...], forwarded: str, expected: str
) -> None:
    proxy.config = Config(trusted_proxies=trusted)
    await proxy.post("/v1/chat/completions", {"model": "m"}, headers={"X-Forwarded-For": forwarded})
    assert proxy.gateway.request.client_address == expected
