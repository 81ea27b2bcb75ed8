"""Credentials that a coordinator hands out over a real Redis, and how its three answers reach the client."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog
from redis.asyncio import Redis

from tests.support.coordinator import SILENT, Coordinator, coordinator
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy
from tests.support.redis_server import RedisServer

CHAT: dict[str, Any] = {"model": "remote-1", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def asked(server: RedisServer) -> AsyncIterator[Coordinator]:
    async with coordinator(server.url, lambda question: None) as running:
        yield running


@pytest.fixture
async def proxy(server: RedisServer, upstream: FakeUpstream) -> AsyncIterator[RunningProxy]:
    async with running_proxy(config_of(server, upstream)) as running:
        yield running


def config_of(server: RedisServer, upstream: FakeUpstream, **section: Any) -> str:
    """A provider of the node's own, and the plugin."""
    local = {
        "name": "acme",
        "base-url": f"{upstream.url}/v1",
        "api-key-entries": [{"api-key": "local"}],
        "models": [{"name": "m1"}],
    }
    section = {"enabled": True, "url": server.url, "timeout-ms": 30_000} | section
    return json.dumps({"openai-compatibility": [local], "plugins": {"configs": {"redis-source": section}}})


def credential(upstream: FakeUpstream, key: str) -> dict[str, Any]:
    auth = {"api_key": key, "base_url": f"{upstream.url}/v1"}
    return {"provider": "openai-compatible-acme", "id": key, "auth": auth}


async def ask(client: aiohttp.ClientSession, proxy: RunningProxy, **changes: Any) -> tuple[int, Any, Any]:
    """Status, body and headers of one chat."""
    headers = {"X-Session-ID": "s1", "Authorization": "Bearer of the client"}
    async with client.post(f"{proxy.url}/v1/chat/completions", json={**CHAT, **changes}, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


def keys_used(upstream: FakeUpstream) -> list[str]:
    return [sent.headers["Authorization"].removeprefix("Bearer ") for sent in upstream.requests]


async def test_K14_a_credential_is_handed_out_per_attempt_and_the_count_begins_at_one(
    proxy: RunningProxy, asked: Coordinator, upstream: FakeUpstream, client: aiohttp.ClientSession
):
    upstream.behave_for_key("r1", Behaviour(status=429))
    asked.decide = lambda question: {"credential": credential(upstream, f"r{question['count']}"), "model": "real-name"}
    status, body, _ = await ask(client, proxy)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello from upstream")
    assert keys_used(upstream) == ["r1", "r2"]
    assert [sent.model for sent in upstream.requests] == ["real-name", "real-name"]
    assert [question["count"] for question in asked.questions] == [1, 2]
    first, second = asked.questions
    assert (first["type"], first["model"]) == ("auth", "remote-1")
    assert first["session_id"] and first["session_id"] == second["session_id"]
    assert "authorization" not in first["headers"] and first["headers"]["x-session-id"] == "s1"

    # A stream is served the same way, and what a credential of ours serves is nobody else's business.
    asked.questions.clear()
    async with client.post(f"{proxy.url}/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert answer.status == 200 and b"[DONE]" in await answer.read()
    assert (await ask(client, proxy, model="m1"))[0] == 200
    assert len(asked.questions) == 2 and keys_used(upstream)[-1] == "local"


async def test_K13_the_same_credential_again_ends_the_loop_with_what_the_upstream_said(
    proxy: RunningProxy, asked: Coordinator, upstream: FakeUpstream, client: aiohttp.ClientSession
):
    upstream.behave_for_key("r1", Behaviour(status=429, error={"error": {"message": "slow down", "type": "limit"}}))
    asked.decide = lambda question: {"credential": credential(upstream, "r1")}
    status, body, _ = await ask(client, proxy)
    assert (status, body["error"]["message"]) == (429, "slow down")
    assert keys_used(upstream) == ["r1"]
    assert [question["count"] for question in asked.questions] == [1, 2]


@pytest.mark.parametrize("after_a_failure", [False, True])
async def test_nothing_available_is_an_answer_unless_an_upstream_said_something(
    proxy: RunningProxy,
    asked: Coordinator,
    upstream: FakeUpstream,
    client: aiohttp.ClientSession,
    after_a_failure: bool,
):
    upstream.behave_for_key("r1", Behaviour(status=502, error={"error": {"message": "broken", "type": "x"}}))
    some = {"credential": credential(upstream, "r1")} if after_a_failure else None
    asked.decide = lambda question: some if question["count"] == 1 else None
    with structlog.testing.capture_logs() as logs:
        status, body, headers = await ask(client, proxy)
    assert (status, body["error"].get("code")) == ((502, None) if after_a_failure else (503, "auth_not_found"))
    assert "Retry-After" not in headers
    assert [entry for entry in logs if entry["event"] == "credential_source.unavailable"] == []


async def test_a_coordinator_that_cannot_be_asked_is_an_infrastructure_failure_of_its_own(
    proxy: RunningProxy, asked: Coordinator, server: RedisServer, client: aiohttp.ClientSession, upstream: FakeUpstream
):
    asked.decide = lambda question: SILENT
    patient = proxy.config_file.read_text()
    proxy.config_file.write_text(config_of(server, upstream, **{"timeout-ms": 1000}))
    await proxy.reload()
    with structlog.testing.capture_logs() as logs:
        status, body, _ = await ask(client, proxy)
        assert (status, body["error"]["code"]) == (503, "credential_source_unavailable")
        await server.stop()
        status, body, _ = await ask(client, proxy)
        assert str(server.port) not in body["error"]["message"]
    assert (status, body["error"]["code"]) == (503, "credential_source_unavailable")
    failures = [entry for entry in logs if entry["event"] == "credential_source.unavailable"]
    assert [(entry["log_level"], entry["plugin_id"]) for entry in failures] == [("error", "redis-source")] * 2
    # What needs no coordinator is served all the time, and nothing needs a restart afterwards.
    assert (await ask(client, proxy, model="m1"))[0] == 200
    proxy.config_file.write_text(patient)
    await proxy.reload()
    await server.start()
    async with coordinator(server.url, lambda question: {"credential": credential(upstream, "r1")}):
        assert (await ask(client, proxy))[0] == 200


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ({"error": {"type": "model_not_found", "message": "no such model"}}, 404, "model_not_found"),
        ({"error": {"type": "unauthorized", "message": "not you"}}, 401, "unauthorized"),
        ({"error": {"type": "odd", "message": "something"}}, 502, "odd"),
        (b"no json", 502, "invalid_auth"),
        ({"credential": {"provider": "nobody", "id": "x", "auth": {"api_key": "k"}}}, 502, "invalid_auth"),
        ({"credential": {"id": "x", "auth": {"api_key": "k"}}}, 502, "invalid_auth"),
    ],
)
async def test_errors_of_the_coordinator_keep_their_meaning(
    proxy: RunningProxy, asked: Coordinator, client: aiohttp.ClientSession, answer: Any, status: int, code: str
):
    asked.decide = lambda question: answer
    found, body, _ = await ask(client, proxy)
    assert (found, body["error"]["code"]) == (status, code)


async def test_models_of_a_coordinator_are_in_every_list_and_follow_it(
    server: RedisServer, upstream: FakeUpstream, client: aiohttp.ClientSession
):
    listed: list[dict[str, Any]] = [{"id": "remote-1", "display_name": "Remote", "context_length": 7, "odd": 1}]

    def decide(question: dict[str, Any]) -> Any:
        return {"models": listed} if question["type"] == "models" else {"credential": credential(upstream, "r1")}

    config = config_of(server, upstream, **{"list-models": True})
    async with coordinator(server.url, decide), running_proxy(config) as proxy:

        async def shown(path: str, **headers: str) -> Any:
            async with client.get(f"{proxy.url}{path}", headers=headers) as answer:
                return await answer.json()

        assert [it["id"] for it in (await shown("/v1/models"))["data"]] == ["m1", "remote-1"]
        claude, _ = (await shown("/v1/models", **{"anthropic-version": "2023-06-01"}))["data"]
        assert (claude["display_name"], claude["max_input_tokens"]) == ("Remote", 7)
        assert (await shown("/v1beta/models/remote-1"))["inputTokenLimit"] == 7
        assert (await ask(client, proxy))[0] == 200
        listed[0]["id"] = "remote-2"
        await proxy.proxy.pool_parts.refresh_models()
        assert [it["id"] for it in (await shown("/v1/models"))["data"]] == ["m1", "remote-2"]
        await server.stop()
        await proxy.proxy.pool_parts.refresh_models()
        assert [it["id"] for it in (await shown("/v1/models"))["data"]] == ["m1", "remote-2"]


async def test_the_question_of_a_client_that_has_gone_is_withdrawn(
    server: RedisServer, proxy: RunningProxy, upstream: FakeUpstream
):
    questions = "jackfield:credential-questions"
    redis = Redis.from_url(server.url, protocol=2)
    try:
        async with asyncio.timeout(30):
            async with aiohttp.ClientSession() as client:
                asking = asyncio.create_task(ask(client, proxy))
                # Looked at and put back, as one that waits for somebody to answer it.
                found = await redis.blpop([questions], timeout=0)
                await redis.rpush(questions, found[1])
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await gone(redis, questions)
    finally:
        await redis.aclose()
    assert upstream.requests == []


async def gone(redis: Redis, key: str) -> None:
    """Wait until nothing is left in a list; the plugin would wait for an answer far longer."""
    for _ in itertools.count():
        if not await redis.exists(key):
            return


async def test_an_answer_that_is_on_its_way_arrives_although_the_settings_change(
    server: RedisServer, upstream: FakeUpstream, client: aiohttp.ClientSession
):
    questions = "jackfield:credential-questions"
    redis = Redis.from_url(server.url, protocol=2)
    async with running_proxy(config_of(server, upstream)) as proxy, asyncio.timeout(30):
        asking = asyncio.create_task(ask(client, proxy))
        question = json.loads((await redis.blpop([questions], timeout=0))[1])
        proxy.config_file.write_text(config_of(server, upstream, prefix="other"))
        await proxy.reload()
        await redis.rpush(question["reply_to"], json.dumps({"credential": credential(upstream, "r1")}))
        assert (await asking)[0] == 200
    assert keys_used(upstream) == ["r1"]
    await redis.aclose()
