"""Usage records of several nodes in one queue on a real server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from redis.asyncio import Redis

from host.config.model import Config
from host.credentials.pool import CredentialPool
from host.credentials.records import Credential
from host.management.error_events import ErrorEvents
from host.management.records import Records
from host.management.shared_usage import SharedUsage
from host.state.store import StateError, StateUnavailable
from host.tasks import TaskGroup
from pluginabi.payloads.usage import UsageHandleRequest
from tests.support.client_request import REQUEST
from tests.support.fake_upstream import Behaviour, running_upstream
from tests.support.proxy import running_proxy
from tests.support.redis_server import RedisServer

ACCOUNT = Credential(id="a", provider="claude", label="a", auth_index="0" * 16)
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
QUEUE = "jackfield:usage"


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    made = Redis.from_url(server.url, decode_responses=True)
    yield made
    await made.aclose()


class Node:
    """What one process does with its records."""

    def __init__(self, server: RedisServer, *, retention_s: int = 60, ahead_s: float = 0.0) -> None:
        self.records = Records(
            lambda: Config(usage_statistics_enabled=True, redis_usage_queue_retention_seconds=retention_s)
        )
        self.records.is_shared = True
        self.state = server.state(clock=lambda: time.time() + ahead_s)
        self.tasks = TaskGroup("node")
        self.pool = CredentialPool([ACCOUNT])
        self.usage = SharedUsage(
            self.records, self.state, self.state.usage, self.tasks, events=ErrorEvents(lambda: self.pool)
        )

    def used(self, name: str, *, age_s: float = 0.0) -> None:
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        stamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.records.used(UsageHandleRequest(model=name, requested_at=stamp), ACCOUNT, request=REQUEST)

    async def taken(self, count: int = 100) -> list[str]:
        return [record["model"] for record in await self.usage.take(count)]

    async def __aenter__(self) -> "Node":
        await self.state.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.usage.stop()
        await self.tasks.stop()
        await self.state.stop()


async def filled(client: Redis, count: int) -> list[str]:
    """The models in the queue, once there are so many."""
    async with asyncio.timeout(30):
        while len(found := await client.lrange(QUEUE, 0, -1)) < count:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)
    return [json.loads(record)["model"] for record in found]


async def test_J7_any_node_takes_the_records_of_all_oldest_first_and_each_once(server: RedisServer, client: Redis):
    async with Node(server) as one, Node(server) as two:
        one.used("first")
        assert await filled(client, 1) == ["first"]
        two.used("second")
        assert await two.taken(2) == ["first", "second"]
        assert await one.taken() == []


async def test_J23_a_program_takes_records_from_the_list_with_the_servers_own_authentication(
    server: RedisServer, client: Redis
):
    async with Node(server) as node:
        node.used("m1")
        await filled(client, 1)
        record = json.loads(await client.lpop(QUEUE))
        assert (record["model"], record["auth_index"], record["fail"]["status_code"]) == ("m1", "0" * 16, 200)
        assert await node.taken() == []


async def test_J25_who_listens_on_the_channel_gets_records_instead_of_the_list(server: RedisServer, client: Redis):
    async with Node(server) as node, client.pubsub(ignore_subscribe_messages=True) as listener, asyncio.timeout(30):
        await listener.subscribe(QUEUE)
        assert await listener.get_message(timeout=5) is None
        node.used("m1")
        message = None
        while message is None:
            message = await listener.get_message(timeout=5)
        assert json.loads(message["data"])["model"] == "m1"
        assert await node.taken() == []


async def test_records_wait_in_the_process_while_the_server_is_away_and_are_sent_once_it_is_back(
    server: RedisServer, client: Redis
):
    async with Node(server) as node:
        await server.stop()
        node.used("a")
        with pytest.raises(StateUnavailable):
            await node.taken()
        node.used("b")
        await server.start()
        assert await filled(client, 2) == ["a", "b"]
        assert await node.taken() == ["a", "b"]


async def test_a_batch_whose_answer_was_lost_counts_once(server: RedisServer, client: Redis):
    async with Node(server) as node:
        push = node.state.usage.push

        async def lost(*items: object, **fields: object) -> None:
            await push(*items, **fields)  # type: ignore[arg-type]
            raise StateUnavailable("no answer")

        node.state.usage.push = lost  # type: ignore[method-assign]
        node.used("a")
        with pytest.raises(StateError):
            await node.usage.send()
        node.state.usage.push = push  # type: ignore[method-assign]
        node.used("b")
        assert await node.taken() == ["a", "b"]


async def test_the_queue_on_the_server_is_bounded_by_number_and_by_age(server: RedisServer, client: Redis):
    async with Node(server) as node:
        old = [json.dumps({"timestamp": "2020-01-01T00:00:00Z", "model": "old"}).encode(), b"not a record"]
        await node.state.usage.push(old, batch="1", oldest="2019", keep=10, ttl_s=60)
        new = [json.dumps({"timestamp": "2030-01-01T00:00:00Z", "model": str(number)}).encode() for number in range(5)]
        await node.state.usage.push(new, batch="2", oldest="2021", keep=3, ttl_s=60)
        assert await filled(client, 3) == ["2", "3", "4"]
        assert 0 < await client.pttl(QUEUE) <= 60_000
        assert await node.state.usage.take(5, oldest="2031") == []


async def test_a_record_waits_its_time_from_when_it_came_however_long_its_request_took(
    server: RedisServer, client: Redis
):
    async with Node(server) as node:
        node.used("long", age_s=3600)
        node.used("short")
        assert await filled(client, 2) == ["long", "short"]
        assert "queued_at" in json.loads((await client.lrange(QUEUE, 0, 0))[0])
        taken = await node.usage.take(2)
        assert [record["model"] for record in taken] == ["long", "short"]
        assert not any("queued_at" in record for record in taken)


async def test_a_node_whose_clock_is_wrong_keeps_the_records_of_the_others(server: RedisServer, client: Redis):
    async with Node(server) as right, Node(server, ahead_s=3600) as ahead, Node(server, ahead_s=-3600) as behind:
        right.used("right")
        await filled(client, 1)
        ahead.used("ahead")
        await filled(client, 2)
        behind.used("behind")
        assert await filled(client, 3) == ["right", "ahead", "behind"]
        assert await ahead.taken() == ["right", "ahead", "behind"]


async def test_from_a_server_that_is_full_what_it_has_is_taken_and_what_it_refused_comes_later(
    server: RedisServer, client: Redis
):
    async with Node(server) as node:
        node.used("a")
        await filled(client, 1)
        await client.config_set("maxmemory", "1")
        node.used("b")
        with pytest.raises(StateError):
            await node.usage.send()
        assert await node.taken() == ["a"]
        await client.config_set("maxmemory", "0")
        assert await node.taken() == ["b"]


async def test_the_management_api_of_any_node_gives_out_the_usage_of_all(server: RedisServer, tmp_path: Path):
    config = json.dumps(
        {
            "state": server.section,
            "usage-statistics-enabled": True,
            "remote-management": {"secret-key": "manage-all"},
        }
    )
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    async with (
        running_proxy(config, directory=one, demo=True) as first,
        running_proxy(config, directory=two, demo=True) as second,
        aiohttp.ClientSession(headers={"X-Management-Key": "manage-all"}) as client,
        asyncio.timeout(60),
    ):
        async with client.post(f"{first.url}/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 200
            request_id = answer.headers["x-request-id"]
        found: list[dict[str, object]] = []
        while not found:
            async with client.get(f"{second.url}/v0/management/usage-queue?count=5") as answer:
                assert answer.status == 200
                found = await answer.json()
        assert [record["request_id"] for record in found] == [request_id]
        async with client.get(f"{first.url}/v0/management/usage-queue?count=5") as answer:
            assert await answer.json() == []


async def test_J25_failed_attempts_are_published_with_how_their_credential_does_since(
    server: RedisServer, client: Redis, tmp_path: Path
):
    async with running_upstream() as upstream, client.pubsub(ignore_subscribe_messages=True) as listener:
        limited = {"error": {"message": "slow down, api_key=sk-very-secret-1"}}
        upstream.behave("m-bad", Behaviour(status=429, error=limited, headers={"Retry-After": "90"}))
        provider = {"name": "acme", "base-url": f"{upstream.url}/v1", "models": [{"name": "m-bad"}, {"name": "m-good"}]}
        provider["api-key-entries"] = [{"api-key": "sk-upstream-secret"}]
        config = json.dumps(
            {"state": server.section, "usage-statistics-enabled": True, "openai-compatibility": [provider]}
        )
        await listener.subscribe("jackfield:errors")
        async with (
            running_proxy(config, directory=tmp_path) as proxy,
            aiohttp.ClientSession() as session,
            asyncio.timeout(60),
        ):
            for model, status in (("m-good", 200), ("m-bad", 429)):
                async with session.post(f"{proxy.url}/v1/chat/completions", json={**CHAT, "model": model}) as answer:
                    assert answer.status == status
            message = None
            while message is None:
                message = await listener.get_message(timeout=5)
            event = json.loads(message["data"])
            assert (event["model"], event["status_code"], len(event["auth_index"])) == ("m-bad", 429, 16)
            assert event["request_id"] == answer.headers["x-request-id"] and "secret" not in str(event)
            status = event["auth_status"]
            assert (status["status"], status["disabled"], status["unavailable"]) == ("error", False, False)
            (blocked,) = status["models"]
            assert blocked["name"] == "m-bad" and blocked["quota"]["exceeded"] is True
            assert blocked["next_retry_after"] > event["timestamp"] and status["next_retry_after"] is None
            assert await listener.get_message(timeout=0) is None
