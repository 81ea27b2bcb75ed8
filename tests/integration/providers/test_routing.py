"""Choosing, resting and trying again through a whole proxy: what clients and upstreams see of it."""

import json
from pathlib import Path
from typing import Any

import aiohttp

from host.observe.explain import traced
from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.families import OPENAI, Family
from tests.support.proxy import RunningProxy, running_proxy

LIMIT = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}


def config(upstream: FakeUpstream, *keys: str, **top: Any) -> str:
    return OPENAI.config(upstream.url, *keys, top=top)


async def ask(
    client: aiohttp.ClientSession, proxy: RunningProxy, family: Family = OPENAI, **headers: str
) -> tuple[int, Any, Any]:
    path, body = family.request(stream=False)
    async with client.post(proxy.url + path, data=body, headers=headers) as response:
        return response.status, json.loads(await response.read()), response.headers


async def test_D8_while_everybody_rests_the_client_is_told_when_to_come_back(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(status=429, error=LIMIT, headers={"Retry-After": "60"}))
    async with running_proxy(config(upstream, "k1")) as proxy:
        status, body, headers = await ask(client, proxy)
        assert (status, body, headers["Retry-After"]) == (429, LIMIT, "60")
        status, body, headers = await ask(client, proxy)
    left_s = int(headers["Retry-After"])
    assert (status, body["error"]["code"], body["error"]["reset_seconds"]) == (429, "model_cooldown", left_s)
    assert 30 < left_s <= 60
    assert body["error"]["reset_time"] == ("1m0s" if left_s == 60 else f"{left_s}s")
    assert len(upstream.requests) == 1


async def test_a_short_limit_is_waited_out_and_the_client_notices_nothing(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    limited = Behaviour(status=429, error=LIMIT, headers={"retry-after-ms": "40"})
    upstream.behave("m1", limited, Behaviour())
    rounds = {"request-retry": 1, "max-retry-interval": "5s"}
    async with running_proxy(config(upstream, "k1", **rounds)) as proxy:
        status, _, headers = await ask(client, proxy)
        trace = proxy.proxy.trace.get(headers["X-Request-Id"])
        assert trace is not None
        shown = traced(proxy.proxy.trace, trace)
    assert status == 200
    assert len(upstream.requests) == 2
    kinds = [decision.kind for decision in shown.decisions]
    assert kinds.index("cooldown") < kinds.index("round") < len(kinds) - kinds[::-1].index("picked") - 1


async def test_a_session_stays_on_one_key_and_the_trace_says_why(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    routing = {"routing": {"session-affinity": True}}
    async with running_proxy(config(upstream, "k1", "k2", "k3", **routing)) as proxy:
        for _ in range(4):
            status, _, headers = await ask(client, proxy, **{"X-Session-ID": "s1"})
            assert status == 200
        trace = proxy.proxy.trace.get(headers["X-Request-Id"])
        assert trace is not None
        [picked] = [it.fields for it in traced(proxy.proxy.trace, trace).decisions if it.kind == "picked"]
    assert len({sent.headers["Authorization"] for sent in upstream.requests}) == 1
    assert (picked["by"], picked["source"]) == ("session", "x-session-id")


async def test_cooldowns_outlive_a_restart_when_they_are_saved(
    client: aiohttp.ClientSession, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.behave("m1", Behaviour(status=429, error=LIMIT, headers={"Retry-After": "600"}))
    text = config(upstream, "k1", **{"save-cooldown-status": True})
    async with running_proxy(text, directory=tmp_path) as proxy:
        assert (await ask(client, proxy))[0] == 429
    [file] = (tmp_path / "auths").rglob("*.cds")
    assert json.loads(file.read_text())["records"][0]["model"] == "m1"
    async with running_proxy(text, directory=tmp_path) as proxy:
        status, body, headers = await ask(client, proxy)
        assert (status, body["error"]["code"]) == (429, "model_cooldown")
        assert 500 <= int(headers["Retry-After"]) <= 600
        assert proxy.proxy.gateway.state.reset_quota(proxy.proxy.credentials.credentials[0].auth_index) == ("m1",)
        upstream.behave("m1", Behaviour())
        assert (await ask(client, proxy))[0] == 200
    assert list((tmp_path / "auths").rglob("*.cds")) == []


async def test_a_model_whose_only_key_is_refused_is_not_listed(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(status=401, error={"error": {"message": "no"}}))
    async with running_proxy(config(upstream, "k1")) as proxy:

        async def listed() -> list[str]:
            async with client.get(f"{proxy.url}/v1/models") as response:
                return [model["id"] for model in (await response.json())["data"]]

        before = await listed()
        assert (await ask(client, proxy))[0] == 401
        assert "m1" in before
        assert "m1" not in await listed()
