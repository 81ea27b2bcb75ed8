"""What clients of every protocol are told when no credential can be picked (spec credentials 4.8)."""

import json
from typing import Any

import aiohttp
import pytest

from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.families import FAMILIES, GEMINI, OPENAI, Family
from tests.support.proxy import RunningProxy, running_proxy

LIMITED = Behaviour(status=429, error={"error": {"message": "slow"}}, headers={"Retry-After": "60"})
REFUSED = Behaviour(status=401, error={"error": {"message": "no"}})
COOLING = "All credentials for model m1 are cooling down via provider "


async def ask(
    client: aiohttp.ClientSession, proxy: RunningProxy, family: Family, *, stream: bool
) -> tuple[int, Any, Any]:
    path, body = family.request(stream=stream)
    async with client.post(proxy.url + path, data=body) as response:
        return response.status, json.loads(await response.read()), response.headers


def code_and_text(family: Family, body: Any) -> tuple[str, str]:
    """Whatever of the code a family's errors show, and the message."""
    error = body["error"]
    if family is GEMINI:
        return error["status"], error["message"]
    return error["code"] if "code" in error else error["type"], error["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
async def test_D8_all_rest_because_of_limits_is_429_with_the_time_in_the_clients_own_words(
    family: Family, stream: bool, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", LIMITED)
    async with running_proxy(family.config(upstream.url, "k1")) as proxy:
        await ask(client, proxy, family, stream=stream)
        status, body, headers = await ask(client, proxy, family, stream=stream)
    code, text = code_and_text(family, body)
    assert (status, headers["Retry-After"]) == (429, "60")
    assert headers["Content-Type"].startswith("application/json")
    assert text.startswith(COOLING)
    assert code == {"claude": "rate_limit_error", "gemini": "RESOURCE_EXHAUSTED"}.get(family.name, "model_cooldown")
    if family.name in ("openai", "responses"):
        facts = {name: body["error"][name] for name in ("model", "reset_time", "reset_seconds")}
        assert facts == {"model": "m1", "reset_time": "1m0s", "reset_seconds": 60}
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
async def test_D10_all_rest_for_another_reason_is_503_with_provider_and_model(
    family: Family, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", REFUSED)
    async with running_proxy(family.config(upstream.url, "k1")) as proxy:
        await ask(client, proxy, family, stream=False)
        status, body, headers = await ask(client, proxy, family, stream=False)
    code, text = code_and_text(family, body)
    assert (status, headers["Retry-After"]) == (503, "1800")
    assert text.endswith("model=m1)")
    assert "(providers=" in text
    assert code == {"claude": "api_error", "gemini": "UNAVAILABLE"}.get(family.name, "auth_unavailable")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
async def test_without_any_candidate_it_is_503_without_a_time(
    family: Family, client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    top = {"routing": {"strategy": "weighted-round-robin"}}
    config = json.loads(family.config(upstream.url, "k1", top=top))
    for entry in config[family.section]:
        (entry["api-key-entries"][0] if "api-key-entries" in entry else entry)["weight"] = 0
    async with running_proxy(json.dumps(config)) as proxy:
        status, body, headers = await ask(client, proxy, family, stream=False)
    code, text = code_and_text(family, body)
    assert (status, headers.get("Retry-After")) == (503, None)
    assert text.startswith("no auth available (providers=")
    assert code == {"claude": "api_error", "gemini": "UNAVAILABLE"}.get(family.name, "auth_not_found")
    assert upstream.requests == []


async def test_D19_after_the_time_in_the_answer_the_request_is_served(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(status=429, error={"error": {"message": "slow"}}, headers={"Retry-After": "60"}),
                    Behaviour())  # fmt: skip
    async with running_proxy(OPENAI.config(upstream.url, "k1")) as proxy:
        for expected in (429, 429):
            assert (await ask(client, proxy, OPENAI, stream=False))[0] == expected
        book = proxy.proxy.gateway.state.pool.book
        present_s = book.clock()
        book.clock = lambda: present_s + 60
        assert (await ask(client, proxy, OPENAI, stream=False))[0] == 200
