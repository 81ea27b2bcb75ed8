"""Two proxies and one Redis: a session is on one credential, whichever proxy its requests reach."""

import asyncio
import json
from contextlib import AsyncExitStack

import aiohttp

from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from pluginabi.errors import ErrorBody
from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import RunningProxy, running_proxy
from tests.support.redis_server import RedisServer

CHAT = {"model": "m1", "messages": [{"role": "user", "content": "Hi"}]}


def config_of(server: RedisServer, upstream: FakeUpstream) -> str:
    provider = {
        "name": "acme",
        "base-url": f"{upstream.url}/v1",
        "api-key-entries": [{"api-key": f"k{number}"} for number in range(8)],
        "models": [{"name": "m1"}],
    }
    routing = {"session-affinity": True}
    return json.dumps({"openai-compatibility": [provider], "routing": routing, "state": server.section})


async def key_used(node: RunningProxy, upstream: FakeUpstream, session: str) -> str:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
        headers = {"X-Session-ID": session}
        async with client.post(f"{node.url}/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert response.status == 200
    await written(node)
    return upstream.requests[-1].headers["Authorization"]


async def written(node: RunningProxy) -> None:
    """Wait until the node has told the server what it has bound."""
    bindings = node.proxy.gateway.state.pool.health.sessions
    async with asyncio.timeout(30):
        while bindings._writing:  # noqa: ASYNC110 - the tasks are not only its own
            await asyncio.sleep(0)


async def test_a_session_stays_on_one_credential_over_all_nodes_also_when_one_moves_it(
    server: RedisServer, upstream: FakeUpstream
) -> None:
    config = config_of(server, upstream)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running_proxy(config)) for _ in range(2)]
        for number in range(3):
            await key_used(nodes[1], upstream, f"other-{number}")  # whose turn it is differs between the two
        first = {await key_used(node, upstream, "s") for node in (*nodes, *nodes)}
        assert len(first) == 1
        for node in nodes:
            pool = node.proxy.gateway.state.pool
            [bound] = [it for it in pool.credentials if f"Bearer {it.secret.reveal()}" in first]
            pool.failed(bound, "m1", classify(ErrorBody(http_status=429, retry_after_ms=60_000)), cause=NO_CAUSE)
        second = {await key_used(node, upstream, "s") for node in (nodes[1], nodes[0], nodes[1])}
        assert len(second) == 1
        assert second != first
        await server.stop()
        assert {await key_used(node, upstream, "s") for node in nodes} == second
