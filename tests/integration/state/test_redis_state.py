"""Shared state on a real server: the contract of every store, what happens when the server goes away and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from host.runtime.callback_kv import KvCallbacks
from host.runtime.scope import CallScope
from host.state import redis as redis_state
from host.state.redis import RedisState
from host.state.store import NotAnInteger, StateUnavailable
from pluginabi.errors import PluginError
from pluginabi.payloads.callbacks import KvIncrementRequest
from tests.support.redis_server import RedisServer
from tests.support.relay import relay_to


@pytest.fixture
async def state(server: RedisServer) -> AsyncIterator[RedisState]:
    made = server.state()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    made = Redis.from_url(server.url, protocol=2)
    yield made
    await made.aclose()


@asynccontextmanager
async def running(state: RedisState) -> AsyncIterator[None]:
    await state.start()
    try:
        yield
    finally:
        await state.stop()


async def probed(state: RedisState, *, nodes: int) -> None:
    async with asyncio.timeout(30):
        while state.nodes != nodes:
            await state.probe()


async def unavailable(state: RedisState) -> None:
    async with asyncio.timeout(30):
        while state.available:
            await state.probe()


async def available(state: RedisState) -> None:
    """Wait until the server can be reached."""
    came = asyncio.Event()
    state.on_available(came.set)
    async with asyncio.timeout(30):
        await came.wait()


async def test_K5_a_missing_key_is_an_answer_and_values_are_kept_apart_by_namespace(state: RedisState):
    store = state.store
    assert await store.get("a", "k") is None
    assert await store.set("a", "k", b"\x00v") is True
    assert await store.get("a", "k") == b"\x00v"
    assert await store.get("b", "k") is None
    assert await store.delete("a", "k") is True
    assert await store.delete("a", "k") is False


async def test_K6_only_if_absent_keeps_what_is_there_and_is_no_error(state: RedisState):
    assert await state.store.set("a", "k", b"1", only_if_absent=True) is True
    assert await state.store.set("a", "k", b"2", only_if_absent=True) is False
    assert await state.store.get("a", "k") == b"1"


async def test_K1_a_value_for_a_while_and_only_if_absent_is_one_command(state: RedisState, client: Redis):
    assert await state.store.set("a", "k", b"1", ttl_s=1000, only_if_absent=True) is True
    assert await client.pttl("jackfield:a:k") > 990_000
    assert await state.store.set("a", "k", b"2", ttl_s=5, only_if_absent=True) is False
    assert await client.pttl("jackfield:a:k") > 990_000


async def test_K4_a_life_time_is_rounded_up_and_never_ends_early(state: RedisState, client: Redis):
    await state.store.set("a", "k", b"1", ttl_s=1000.0001)
    left_ms = await client.pttl("jackfield:a:k")
    assert 990_000 < left_ms <= 1_000_001
    assert await state.store.expire("a", "k", None) is True
    assert await client.pttl("jackfield:a:k") == -1
    assert await state.store.expire("a", "k", None) is True
    assert await state.store.expire("a", "none", None) is False
    assert await state.store.expire("a", "none", 5.0) is False


async def test_an_increment_sets_its_life_time_only_when_it_creates_the_key(state: RedisState, client: Redis):
    assert await state.store.increment("a", "n", 5, ttl_s=1000) == 5
    assert await state.store.increment("a", "n", -7, ttl_s=5) == -2
    assert await client.pttl("jackfield:a:n") > 900_000


async def test_an_increment_of_something_else_than_an_integer_is_its_own_error(state: RedisState):
    await state.store.set("a", "k", b"text")
    for text in (b"text", b"1_000", b" 5", b"+5", b"", b"007", b"-0", b"9223372036854775808"):
        await state.store.set("a", "k", text)
        with pytest.raises(NotAnInteger):
            await state.store.increment("a", "k")
        assert await state.store.get("a", "k") == text


async def test_a_namespace_is_listed_whatever_its_name_looks_like(state: RedisState):
    await state.store.set("a*[", "k:1", b"1")
    await state.store.set("ab[", "k:2", b"2")
    assert await state.store.items("a*[") == {"k:1": b"1"}
    assert await state.store.items("none") == {}


async def test_a_message_reaches_other_nodes_and_not_its_sender(server: RedisServer):
    one, two = server.state(), server.state()
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    one.subscribe("t", lambda message: heard.put_nowait(("one", message)))
    two.subscribe("t", lambda message: heard.put_nowait(("two", message)))
    await one.start()
    await two.start()
    async with asyncio.timeout(30):
        # Subscriptions are made in the background: until then a message is lost, as documented.
        while await server.subscribers("jackfield:topic:t") < 2:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)
        assert await one.publish("t", b"hi:there")
        assert await heard.get() == ("two", b"hi:there")
        assert await two.publish("t", b"back")
        assert await heard.get() == ("one", b"back"), "its own message came before this one"
    await one.stop()
    await two.stop()


async def test_a_subscription_that_leads_nowhere_is_made_anew_though_all_else_is_well(server: RedisServer):
    heard = asyncio.Event()
    async with relay_to(server.port) as relay:
        deaf, other = RedisState(relay.url, timeout_s=2.0), server.state()
        deaf.subscribe("t", lambda message: heard.set())
        async with running(deaf), running(other), asyncio.timeout(30):
            await relay.subscribing.wait()
            for link in relay.links:
                if link.subscribes:
                    link.carries.clear()
            while not heard.is_set():
                assert await other.publish("t", b"hello")
                assert await deaf.store.get("a", "k") is None


async def test_what_was_missed_is_read_when_the_server_has_subscribed_this_node_and_not_before(server: RedisServer):
    is_subscribed: list[bool] = []
    async with relay_to(server.port) as relay:
        relay.holds_subscriptions = True
        state = RedisState(relay.url, timeout_s=5.0)
        state.subscribe("t", lambda message: None)
        state.on_available(lambda: is_subscribed.append(not relay.holds_subscriptions))
        async with running(state), asyncio.timeout(30):
            await relay.subscribing.wait()
            for _ in range(10):
                await state.store.get("a", "k")
            relay.holds_subscriptions = False
            for link in relay.links:
                link.carries.set()
            while len(is_subscribed) < 2:
                await state.store.get("a", "k")
        assert is_subscribed == [False, True]


async def test_each_node_knows_how_many_there_are(server: RedisServer):
    one, two = server.state(), server.state()
    await one.start()
    assert one.nodes == 1
    await two.start()
    assert two.nodes == 2
    await two.stop()
    third = server.state()
    await third.start()
    assert third.nodes == 2
    await one.stop()
    await third.stop()


async def test_a_server_that_comes_back_empty_has_not_lost_the_nodes_it_does_not_know_yet(
    server: RedisServer, state: RedisState, client: Redis, monkeypatch: pytest.MonkeyPatch
):
    await client.zadd("jackfield:nodes", {"other": time.time() * 1000})
    await probed(state, nodes=2)
    await server.stop()
    await unavailable(state)
    await server.start()
    await available(state)
    await state.probe()
    assert state.nodes == 2
    monkeypatch.setattr(redis_state, "MEMBER_TTL_S", 0.001)
    await probed(state, nodes=1)


async def test_K10_without_a_server_every_command_fails_at_once_and_is_no_miss():
    state = RedisState("redis://127.0.0.1:1/0")
    await state.start()
    assert state.available is False
    for command in (state.store.get("a", "k"), state.store.set("a", "k", b"1"), state.store.items("a")):
        with pytest.raises(StateUnavailable):
            await command
    assert await state.publish("t", b"x") is False
    await state.stop()


async def test_a_server_that_went_away_and_came_back_is_used_again_without_a_restart(
    server: RedisServer, state: RedisState
):
    await state.store.set("a", "k", b"1")
    await server.stop()
    with pytest.raises(StateUnavailable):
        await state.store.get("a", "k")
    assert state.available is False
    await server.start()
    await available(state)
    assert await state.store.get("a", "k") is None
    assert await state.store.set("a", "k", b"2") is True


async def test_an_absence_of_the_server_is_one_line_in_the_log_and_not_one_per_try(monkeypatch: pytest.MonkeyPatch):
    tries: asyncio.Queue[None] = asyncio.Queue()
    state = RedisState("redis://127.0.0.1:1/0")
    state.subscribe("t", lambda message: None)
    subscription = state._subscription
    monkeypatch.setattr(state, "_subscription", lambda: (tries.put_nowait(None), subscription())[1])
    with capture_logs() as lines:
        await state.start()
        async with asyncio.timeout(30):
            for _ in range(4):
                await tries.get()
        await state.stop()
    assert [line["event"] for line in lines].count("state.subscription_lost") == 1


async def test_a_server_that_hangs_holds_a_command_for_the_time_limit_only():
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    state = RedisState(f"redis://127.0.0.1:{port}/0", timeout_s=0.05)
    async with asyncio.timeout(30):
        await state.start()
    assert state.available is False
    await state.stop()
    silent.close()
    for writer in writers:
        writer.close()


async def test_a_plugin_is_told_by_how_many_hosts_it_counts_while_the_server_is_away(
    server: RedisServer, state: RedisState
):
    kv = KvCallbacks(state.store, nodes=lambda: 3)
    scope = CallScope(plugin_id="p", method="model.route", permissions=frozenset({"kv"}))
    assert (await kv.increment(scope, KvIncrementRequest(key="n", by=2))).value == 2
    await server.stop()
    with pytest.raises(PluginError) as refused:
        await kv.increment(scope, KvIncrementRequest(key="n"))
    assert (refused.value.body.http_status, refused.value.body.code) == (503, "kv_unavailable")
    assert refused.value.body.details == {"nodes": 3}


async def test_a_lost_cancellation_does_not_keep_a_node_from_stopping(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    state = server.state()
    await state.start()
    probing, stopping = asyncio.Event(), asyncio.Event()

    async def deaf() -> None:
        probing.set()
        try:
            await stopping.wait()
        except asyncio.CancelledError:
            return

    monkeypatch.setattr(state, "probe", deaf)
    async with asyncio.timeout(30):
        await probing.wait()
        await state.stop()
