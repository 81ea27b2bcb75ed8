"""Client limits in a running proxy: what SDKs see, and what two nodes on one Redis server grant together."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anthropic
import openai
from aiohttp import ClientSession
from redis.asyncio import Redis

from host.state.redis import RedisState
from tests.support.fake_upstream import Behaviour, running_upstream
from tests.support.proxy import RunningProxy, running_proxy, serve_process
from tests.support.redis_server import RedisServer, redis_server

CONFIG = """
api-keys: [{{key: key-ann, name: ann}}, {{key: key-bob, name: bob}}]
state: {{url: "{state}", timeout: 30s}}
plugins:
  configs:
    limits:
      enabled: true
      rules: [{{requests-per-minute: {limit}}}]
"""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


async def in_one_minute(check: Callable[[], Awaitable[None]]) -> None:
    """Counts begin anew with each minute: what ran into the next one is run once more."""
    for _ in range(2):
        began = time.time() // 60
        try:
            await check()
        except AssertionError:
            if time.time() // 60 == began:
                raise
        else:
            return


async def test_an_sdk_sees_what_is_left_and_a_refusal_in_its_own_shape(tmp_path: Path):
    async def check() -> None:
        async with running_proxy(CONFIG.format(state="", limit=2), directory=tmp_path, demo=True) as proxy:
            (tmp_path / "state.bin").unlink(missing_ok=True)
            client = openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="key-ann", max_retries=0)
            messages = [{"role": "user", "content": "hi"}]
            async with client.chat.completions.with_streaming_response.create(
                model="echo", messages=messages, stream=True
            ) as streamed:
                assert streamed.headers["x-ratelimit-remaining-requests"] == "1"
                await streamed.read()
            answer = await client.chat.completions.with_raw_response.create(model="echo", messages=messages)
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            try:
                await client.chat.completions.create(model="echo", messages=messages)
                raise AssertionError("a third request was let in")
            except openai.RateLimitError as refused:
                assert refused.code == "rate_limit_exceeded"
                assert 1 <= int(refused.response.headers["retry-after"]) <= 60
                assert refused.response.headers["x-ratelimit-remaining-requests"] == "0"
            claude = anthropic.AsyncAnthropic(base_url=proxy.url, api_key="key-ann", max_retries=0)
            try:
                await claude.messages.create(model="echo", max_tokens=10, messages=messages)
                raise AssertionError("a fourth request was let in")
            except anthropic.RateLimitError as refused:
                assert refused.body["error"]["type"] == "rate_limit_error"
            await client.close()
            await claude.close()

    await in_one_minute(check)


async def granted(proxies: list[RunningProxy], key: str, *, asked: int) -> int:
    """How many of `asked` requests, spread over the nodes, were let in; the others were told to come later."""
    async with ClientSession(headers={"authorization": f"Bearer {key}"}) as client:

        async def ask(proxy: RunningProxy) -> int:
            async with asyncio.timeout(60), client.post(f"{proxy.url}/v1/chat/completions", json=CHAT) as answer:
                return answer.status

        statuses = await asyncio.gather(*(ask(proxies[turn % len(proxies)]) for turn in range(asked)))
    assert set(statuses) <= {200, 429}
    return statuses.count(200)


async def test_two_nodes_share_a_limit_and_never_exceed_it_while_the_server_is_away(tmp_path: Path):
    async with redis_server(tmp_path) as server:
        config = CONFIG.format(state=server.url, limit=20)
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        async with (
            running_proxy(config, directory=one, demo=True) as first,
            running_proxy(config, directory=two, demo=True) as second,
        ):
            nodes = [first, second]
            # The first node learns of the second with its next heartbeat.
            shared, second_shared = first.proxy.shared, second.proxy.shared
            assert isinstance(shared, RedisState) and isinstance(second_shared, RedisState)
            await shared.probe()
            assert shared.nodes == 2

            async def check() -> None:
                ann = await granted(nodes, "key-ann", asked=30)
                await server.stop()
                # Each node goes on with its half.
                bob = await granted(nodes, "key-bob", asked=40)
                away = first.proxy.ready()[1]["state"]
                # The server comes back empty while the minute goes on.
                await server.start()
                await shared.probe()
                await second_shared.probe()
                ann_again = await granted(nodes, "key-ann", asked=10)
                bob_again = await granted(nodes, "key-bob", asked=10)
                assert (ann, away) == (20, "unavailable")
                # What one node granted after the other had last looked is lost with the server, and no more than that.
                assert ann_again <= 2
                assert 18 <= bob + bob_again <= 22
                assert first.proxy.ready()[1]["state"] == "available"

            await in_one_minute(check)


ONE_AT_ONCE = """
port: 0
api-keys: [{{key: key-ann, name: ann}}]
state: {{url: "{state}"}}
openai-compatibility:
  - {{name: up, base-url: "{upstream}/v1", api-key-entries: [{{api-key: k}}], models: [{{name: slow}}]}}
plugins:
  configs:
    limits:
      enabled: true
      concurrency-lease: 3
      rules: [{{concurrency: 1}}]
"""


@contextlib.asynccontextmanager
async def slot_events(server: RedisServer) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Waits for what the server does to a slot next: `expire`, `expired`."""
    async with Redis.from_url(server.url) as client, client.pubsub() as events:
        await client.config_set("notify-keyspace-events", "Egx")
        await events.psubscribe("__keyevent@0__:*")

        async def until(name: str) -> None:
            async with asyncio.timeout(60):
                async for message in events.listen():
                    is_it = message["type"] == "pmessage" and message["channel"].endswith(f":{name}".encode())
                    if is_it and b"slot:" in message["data"]:
                        return

        yield until


async def test_a_stream_longer_than_its_lease_keeps_its_slot_on_an_idle_node_until_that_node_dies(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    async with redis_server(tmp_path) as server, running_upstream() as upstream, slot_events(server) as until:
        upstream.behave("slow", Behaviour(hang_after_events=1))
        config = ONE_AT_ONCE.format(state=server.url, upstream=upstream.url)
        (one / "config.yaml").write_text(config)
        async with (
            serve_process(one / "config.yaml") as first,
            running_proxy(config, directory=two, demo=True) as second,
            ClientSession(headers={"authorization": "Bearer key-ann"}) as client,
        ):
            url = f"{first.url}/v1/chat/completions"
            async with client.post(url, json={**CHAT, "model": "slow", "stream": True}) as running:
                assert running.status == 200
                # Taking it is the first; the third renewal after it comes when the lease it was taken with is over.
                for _ in range(4):
                    await until("expire")
                assert await granted([second], "key-ann", asked=1) == 0
                first.process.kill()
                while not await granted([second], "key-ann", asked=1):
                    await until("expired")
