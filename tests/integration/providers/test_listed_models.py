"""`list-models: true`: providers' own lists of models, asked for with each credential, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.fake_upstream import FakeUpstream, running_upstream
from tests.support.proxy import RunningProxy, running_proxy


class ListingUpstream(FakeUpstream):
    """Also serves lists of models: by path and query, each a document or a status."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: dict[str, Any] = {}
        self.asked: list[tuple[str, str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            return await super().handle(request)
        headers = request.headers
        secret = headers.get("authorization") or headers.get("x-api-key") or headers.get("x-goog-api-key") or ""
        self.asked.append((request.raw_path, secret))
        found = self.lists.get(request.raw_path, 404)
        return web.Response(status=found) if isinstance(found, int) else web.json_response(found)


@pytest.fixture
async def upstream() -> AsyncIterator[ListingUpstream]:
    running = ListingUpstream()
    async with running_upstream(running):
        yield running


def config_of(upstream: FakeUpstream, **listing: bool) -> str:
    plugins = {name.replace("_", "-"): {"list-models": wanted} for name, wanted in listing.items()}
    entries = [{"api-key": "o"}]
    return json.dumps(
        {
            "openai-compatibility": [{"name": "acme", "base-url": f"{upstream.url}/v1", "api-key-entries": entries}],
            "claude-api-key": [{"api-key": "c", "base-url": upstream.url, "excluded-models": ["*-old"]}],
            "gemini-api-key": [{"api-key": "g", "base-url": upstream.url}],
            "plugins": {"configs": plugins},
        }
    )


async def listed(client: aiohttp.ClientSession, proxy: RunningProxy, *, least: int, **headers: str) -> list[Any]:
    """The list once it has that many models; they come after the start."""
    async with asyncio.timeout(60):
        while True:
            async with client.get(f"{proxy.url}/v1/models", headers=headers) as answer:
                if len(found := (await answer.json())["data"]) >= least:
                    return list(found)


async def test_every_provider_is_asked_with_each_credential_and_its_models_are_listed_and_served(
    upstream: ListingUpstream,
):
    upstream.lists = {
        "/v1/models": {"data": [{"id": "acme-1", "created": 5}, {"id": " "}, {"id": 7}, "odd"]},
        "/v1/models?limit=1000": {
            "data": [{"id": "c-2", "display_name": "C 2", "created_at": "2026-02-18T00:00:00Z"}],
            "has_more": True,
            "last_id": "c/2",
        },
        "/v1/models?limit=1000&after_id=c%2F2": {"data": [{"id": "c-1"}, {"id": "c-0-old"}], "has_more": False},
        "/v1beta/models?pageSize=1000": {
            "models": [{"name": "models/g-2", "displayName": "G 2", "inputTokenLimit": 9}],
            "nextPageToken": "t=",
        },
        "/v1beta/models?pageSize=1000&pageToken=t%3D": {"models": [{"name": "models/g-1"}]},
    }
    config = config_of(upstream, claude=True, gemini=True, openai_compat=True)
    async with running_proxy(config) as proxy, aiohttp.ClientSession() as client:
        found = await listed(client, proxy, least=5, **{"anthropic-version": "2023-06-01"})
        shown = {it["id"]: (it["display_name"], it.get("created_at"), it["max_input_tokens"]) for it in found}
        assert shown == {
            "acme-1": ("acme-1", "1970-01-01T00:00:05Z", 200_000),
            "c-1": ("c-1", None, 200_000),
            "c-2": ("C 2", "2026-02-18T00:00:00Z", 200_000),
            "g-1": ("g-1", None, 200_000),
            "g-2": ("G 2", None, 9),
        }
        assert sorted(upstream.asked)[0] == ("/v1/models", "Bearer o")
        assert {secret for _, secret in upstream.asked} == {"Bearer o", "c", "g"}
        body = {"model": "acme-1", "messages": []}
        async with client.post(f"{proxy.url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
        assert upstream.requests[-1].model == "acme-1"


async def test_a_list_that_cannot_be_had_leaves_the_usual_names_and_the_default_asks_nobody(upstream: ListingUpstream):
    upstream.lists = {"/v1/models?limit=1000": 500, "/v1beta/models?pageSize=1000": {"models": [{"name": "models/g"}]}}
    config = config_of(upstream, claude=True, gemini=True)
    async with running_proxy(config) as proxy, aiohttp.ClientSession() as client:
        assert [it["id"] for it in await listed(client, proxy, least=1)] == ["g"]
        plan = proxy.proxy.gateway.state.plan("claude-9", method="executor.execute", source="claude", wanted="claude")
        assert plan.total == 1
    assert {path for path, _ in upstream.asked} == set(upstream.lists)
    upstream.asked.clear()
    async with running_proxy(config_of(upstream)) as proxy:
        assert "model.for_auth" not in proxy.proxy.gateway.state.plugins.bindings
    assert upstream.asked == []


async def test_a_list_without_an_end_is_read_so_far_and_no_further(upstream: ListingUpstream):
    endless = {"data": [{"id": "c-1"}], "has_more": True, "last_id": "x"}
    upstream.lists = {"/v1/models?limit=1000": endless, "/v1/models?limit=1000&after_id=x": endless}
    async with running_proxy(config_of(upstream, claude=True)) as proxy, aiohttp.ClientSession() as client:
        assert [it["id"] for it in await listed(client, proxy, least=1)] == ["c-1"]
    assert len(upstream.asked) == 50
