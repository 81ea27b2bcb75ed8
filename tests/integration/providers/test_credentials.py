"""Which credential a request gets, how it is attached, and that secrets of clients and upstreams stay apart."""

import json
from pathlib import Path

import aiohttp
import pytest

from tests.support.fake_upstream import FakeUpstream
from tests.support.families import CLAUDE, GEMINI, MODEL, OPENAI, Family
from tests.support.proxy import running_proxy
from tests.support.upstream_servers import ScriptedServer, answer, repeating

CLIENT_KEY = "client-secret-1"
SPY = """\
from pluginapi import Body, Plugin, RequestInterceptResponse, Termination, serve


class Spy(Plugin):
    async def request_intercept_before(self, request):
        seen = {"headers": list(request.headers.items()), "query": list(request.query.items())}
        return RequestInterceptResponse(terminate=Termination(status=200, body=Body.from_value(seen)))
"""
SECRET_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")


def header(headers: object, name: str) -> str | None:
    assert isinstance(headers, dict)
    return next((value for key, value in headers.items() if key.lower() == name), None)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_the_upstream_key_is_attached_where_the_api_wants_it_and_nowhere_else(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, stream: bool
) -> None:
    async with running_proxy(family.config(upstream.url, "up-key")) as proxy:
        path, body = family.request(stream=stream)
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 200
            await response.read()
    sent = await upstream.request()
    name, value = family.secret("up-key")
    assert {each: header(sent.headers, each) for each in SECRET_HEADERS} == {
        **dict.fromkeys(SECRET_HEADERS),
        name: value,
    }
    assert "up-key" not in sent.query


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Authorization": f"Bearer {CLIENT_KEY}"}, ""),
        ({"x-api-key": CLIENT_KEY}, ""),
        ({"x-goog-api-key": CLIENT_KEY}, ""),
        ({}, f"key={CLIENT_KEY}"),
        ({}, f"auth_token={CLIENT_KEY}"),
    ],
    ids=["bearer", "x-api-key", "x-goog-api-key", "query key", "query auth_token"],
)
async def test_a_clients_key_opens_the_proxy_and_goes_no_further(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, headers: dict[str, str], query: str
) -> None:
    async with running_proxy(family.config(upstream.url, "up-key", top={"api-keys": [CLIENT_KEY]})) as proxy:
        path, body = family.request()
        async with client.post(f"{proxy.url}{path}?{query}", data=body, headers=headers) as response:
            assert response.status == 200
        async with client.post(proxy.url + path, data=body, headers={"x-api-key": "wrong"}) as response:
            assert response.status == 401
            assert "wrong" not in await response.text()
    (sent,) = upstream.requests
    assert CLIENT_KEY not in json.dumps([dict(sent.headers), sent.query, sent.path, sent.body.decode()])
    name, value = family.secret("up-key")
    assert header(sent.headers, name) == value


async def test_configured_headers_are_added_and_win_over_the_clients_and_the_plugins(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    headers = {"X-Team": "blue", "anthropic-version": "2098-01-01", "X-Client": "configured"}
    async with running_proxy(family.config(upstream.url, headers=headers)) as proxy:
        path, body = family.request()
        async with client.post(proxy.url + path, data=body, headers={"X-Client": "from the client"}) as response:
            assert response.status == 200
    sent = await upstream.request()
    assert {name: header(sent.headers, name.lower()) for name in headers} == headers


async def test_an_alias_is_what_clients_say_and_only_the_models_name_changes_in_the_body(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    config = family.config(upstream.url, models=[{"name": "up/model-7", "alias": MODEL}])
    odd = b'{"zz":1.50, "model" :  "m1" ,"messages":[{"model":"m1"}],"input":"\\u00e9"}'
    async with running_proxy(config) as proxy:
        path, _ = family.request()
        async with client.post(proxy.url + path, data=odd) as response:
            assert response.status == 200
    sent = await upstream.request()
    if family is GEMINI:
        assert sent.path == "/v1beta/models/up/model-7:generateContent"
        assert sent.body == odd
    else:
        assert sent.body == odd.replace(b'"model" :  "m1"', b'"model" :  "up/model-7"')


async def test_a_prefix_picks_the_credential_and_is_not_told_to_the_upstream(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    section = [*family.entries(upstream.url, ["blue-key"], prefix="blue"), *family.entries(upstream.url, ["red-key"])]
    section[-1]["prefix"] = "red"
    if family.section == "openai-compatibility":
        section[-1]["name"] = "other"
    async with running_proxy(json.dumps({family.section: section})) as proxy:
        for prefix in ("red", "blue", "red"):
            path, body = family.request(model=f"{prefix}/{MODEL}")
            async with client.post(proxy.url + path, data=body) as response:
                assert response.status == 200
    name, _ = family.secret("")
    assert [header(sent.headers, name) for sent in upstream.requests] == [
        family.secret(key)[1] for key in ("red-key", "blue-key", "red-key")
    ]
    assert {sent.model for sent in upstream.requests} == {MODEL}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("round-robin", ["k1", "k2", "k3", "k1", "k2", "k3"]), ("fill-first", ["same"] * 6)],
)
async def test_several_keys_are_used_as_the_strategy_says(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, strategy: str, expected: list[str]
) -> None:
    config = family.config(upstream.url, "k1", "k2", "k3", top={"routing": {"strategy": strategy}})
    async with running_proxy(config) as proxy:
        path, body = family.request()
        for _ in expected:
            async with client.post(proxy.url + path, data=body) as response:
                assert response.status == 200
    name, _ = family.secret("")
    used = [header(sent.headers, name) for sent in upstream.requests]
    if strategy == "fill-first":
        assert len(set(used)) == 1
    else:
        assert len(set(used[:3])) == 3
        assert used[3:] == used[:3]


async def test_a_better_priority_is_used_alone_while_it_is_healthy(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    section = [*CLAUDE.entries(upstream.url, ["low"]), *CLAUDE.entries(upstream.url, ["high"], priority=5)]
    async with running_proxy(json.dumps({"claude-api-key": section})) as proxy:
        path, body = CLAUDE.request()
        for _ in range(3):
            async with client.post(proxy.url + path, data=body) as response:
                assert response.status == 200
    assert [header(sent.headers, "x-api-key") for sent in upstream.requests] == ["high"] * 3


async def test_a_provider_without_keys_is_called_without_authorization(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    provider = {"name": "local", "base-url": f"{upstream.url}/v1", "models": [{"name": MODEL}]}
    async with running_proxy(json.dumps({"openai-compatibility": [provider]})) as proxy:
        path, body = OPENAI.request()
        async with client.post(proxy.url + path, data=body, headers={"Authorization": "Bearer any"}) as response:
            assert response.status == 200
    assert header((await upstream.request()).headers, "authorization") is None


async def test_a_redirect_of_the_upstream_is_not_followed_with_the_key(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    redirect = answer(status="307 Temporary Redirect", headers=f"Location: {upstream.url}/v1/chat/completions\r\n")
    async with ScriptedServer(repeating(redirect)) as server, running_proxy(OPENAI.config(server.url)) as proxy:
        path, body = OPENAI.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 502
            assert "error" in await response.json()
    assert upstream.requests == []


async def test_a_vendors_new_model_names_need_no_configuration(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    sections = {
        "claude-api-key": [{"api-key": "c", "base-url": upstream.url}],
        "gemini-api-key": [{"api-key": "g", "base-url": upstream.url}],
    }
    async with running_proxy(json.dumps(sections)) as proxy:
        for family, model in ((CLAUDE, "claude-next-9"), (GEMINI, "gemini-9-flash")):
            path, body = family.request(model=model)
            async with client.post(proxy.url + path, data=body) as response:
                assert response.status == 200
    assert [sent.model for sent in upstream.requests] == ["claude-next-9", "gemini-9-flash"]


async def test_a_plugin_sees_the_clients_headers_and_query_without_its_secrets(
    client: aiohttp.ClientSession, upstream: FakeUpstream, tmp_path: Path
) -> None:
    folder = tmp_path / "plugins" / "spy"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text('id = "spy"\nversion = "1.0.0"\nentry = "spy:Spy"\n')
    (folder / "spy.py").write_text(SPY)
    plugins = {"enabled": True, "configs": {"spy": {"enabled": True}}}
    config = OPENAI.config(upstream.url, top={"api-keys": [CLIENT_KEY], "plugins": plugins})
    async with running_proxy(config, directory=tmp_path) as proxy:
        path, body = OPENAI.request()
        headers = {"Authorization": f"Bearer {CLIENT_KEY}", "Cookie": "session=1", "X-Team": "blue"}
        query = f"key={CLIENT_KEY}&auth_token=x&page=2"
        async with client.post(f"{proxy.url}{path}?{query}", data=body, headers=headers) as response:
            seen = await response.json()
    assert ["x-team", ["blue"]] in seen["headers"]
    assert seen["query"] == [["page", ["2"]]]
    assert {"authorization", "cookie"}.isdisjoint(name for name, _ in seen["headers"])
    assert CLIENT_KEY not in json.dumps(seen)
