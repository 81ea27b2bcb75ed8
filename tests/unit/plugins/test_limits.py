"""Client limits, rule by rule: what is granted, what a refusal says, and what is given back."""

import asyncio
from typing import Any

import pytest

from pluginabi.errors import ErrorBody, PluginError
from pluginabi.frames import Usage
from pluginapi.testing import FakeHost, PluginHarness
from plugins.limits import epoch
from plugins.limits.plugin import ClientLimits
from plugins.limits.rules import Price, period_end_s
from tests.support.limits import AWAY, NOON_S, Client, limits


async def test_requests_above_the_limit_of_a_minute_are_refused_until_it_is_over():
    async with limits({"requests-per-minute": 2}) as client:
        await client.ask()
        assert client.headers == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "45s",
        }
        await client.ask()
        error = await client.refused()
        assert (error.http_status, error.code, error.retry_after_ms) == (429, "rate_limit_exceeded", 45_000)
        assert list(error.headers["x-ratelimit-remaining-requests"]) == ["0"]
        client.clock.now_s += 45
        await client.ask()


async def test_each_caller_has_a_count_of_its_own_and_a_rule_may_say_otherwise():
    async with limits({"requests-per-minute": 1}) as client:
        await client.ask(caller="ann")
        await client.ask(caller="bob")
        await client.refused(caller="ann", model="other")
    async with limits({"requests-per-minute": 1, "each": ["caller", "model"]}) as client:
        await client.ask(model="one")
        await client.ask(model="two")
        await client.refused(model="ONE")
    async with limits({"requests-per-minute": 1, "each": []}) as client:
        await client.ask(caller="ann")
        await client.refused(caller="bob")


async def test_only_rules_that_match_caller_and_model_apply():
    async with limits({"caller": "team-*", "model": "GPT-*", "requests-per-minute": 0}) as client:
        await client.ask(caller="ann", model="gpt-9")
        await client.ask(caller="team-a", model="claude")
        await client.refused(caller="Team-a", model="gpt-9")


async def test_a_refusal_by_one_rule_takes_nothing_from_the_others():
    async with limits({"requests-per-minute": 2, "each": []}, {"caller": "bob", "requests-per-minute": 0}) as client:
        for _ in range(3):
            await client.refused(caller="bob")
        await client.ask(caller="ann")
        await client.ask(caller="ann")
        await client.refused(caller="ann")


async def test_tokens_are_reserved_by_size_and_settled_by_usage():
    async with limits({"tokens-per-minute": 100}) as client:
        first = await client.ask(size=40)
        assert client.headers["x-ratelimit-remaining-tokens"] == "90"
        await client.end(first, Usage(input_tokens=20, output_tokens=40))
        await client.ask(size=4)
        assert client.headers["x-ratelimit-remaining-tokens"] == "39"
        await client.ask(size=4000)
        error = await client.refused(size=4)
        assert error.retry_after_ms == 45_000


async def test_a_request_that_failed_without_usage_gives_its_tokens_back():
    async with limits({"tokens-per-minute": 100}) as client:
        await client.end(await client.ask(size=4000))
        await client.ask(size=40)
        assert client.headers["x-ratelimit-remaining-tokens"] == "90"


async def test_tokens_of_an_answer_that_took_minutes_count_in_the_minute_it_ends():
    async with limits({"tokens-per-minute": 100}) as client:
        request_id = await client.ask(size=40)
        client.clock.now_s += 60
        await client.end(request_id, Usage(total_tokens=80))
        await client.ask(size=4)
        assert client.headers["x-ratelimit-remaining-tokens"] == "29"


async def test_as_many_requests_run_at_once_as_there_are_slots():
    async with limits({"concurrency": 2}) as client:
        first = await client.ask()
        await client.ask()
        assert (await client.refused()).retry_after_ms == 1000
        await client.end(first)
        await client.ask()


async def test_a_request_made_by_a_plugin_counts_its_tokens_only():
    async with limits({"concurrency": 1, "requests-per-minute": 1, "tokens-per-minute": 20}) as client:
        outer = await client.ask(size=4)
        await client.ask(size=400, parent=outer)
        assert (await client.refused(size=4, parent=outer)).message == "the limit of 20 tokens per minute is used up"


async def test_a_budget_is_spent_by_price_and_lasts_until_its_period_ends():
    prices = {"m": {"input": 2.0, "output": 10.0, "cached": 0.5}}
    async with limits({"budget": 0.5, "period": "day"}, prices=prices) as client:
        await client.end(await client.ask(), Usage(input_tokens=100_000, output_tokens=30_000))
        error = await client.refused()
        assert (error.http_status, error.code) == (429, "budget_exceeded")
        assert error.retry_after_ms == (12 * 3600 - 15) * 1000
        client.clock.now_s += 12 * 3600
        await client.ask()


async def test_a_model_without_a_price_is_refused_where_a_budget_applies():
    async with limits({"budget": 1.0}, prices={"other": {"input": 1.0}}) as client:
        error = await client.refused(model="m")
        assert (error.http_status, error.code) == (403, "no_price")


async def test_while_the_store_is_away_each_host_grants_its_share_of_what_was_left():
    host = FakeHost()
    async with limits({"requests-per-minute": 10}, host=host) as client:
        await client.ask()
        host.on("host.kv.increment", AWAY)
        granted = 0
        while True:
            try:
                await client.ask()
            except PluginError:
                break
            granted += 1
        assert granted == 3, "9 were left, and three hosts count"


async def test_what_was_granted_without_the_store_is_counted_once_it_is_back():
    host = FakeHost()
    async with limits({"requests-per-minute": 10}, host=host) as client:
        await client.ask()
        key = next(name for name in host.kv if name.startswith("requests:"))
        host.on("host.kv.increment", AWAY)
        await client.ask()
        await client.ask()
        del host._scripts["host.kv.increment"]
        await client.ask()
        assert host.kv[key] == 4
        # The other hosts may not have told yet what they granted: this minute goes on with the share.
        assert await client.refused()
        client.clock.now_s += 60
        await client.ask()
        assert client.headers["x-ratelimit-remaining-requests"] == "9"


async def granted_of(client: Client, asked: int) -> int:
    granted = 0
    for _ in range(asked):
        try:
            await client.ask()
        except PluginError:
            continue
        granted += 1
    return granted


@pytest.mark.parametrize("before", [4, 9, 10])
async def test_a_store_that_was_emptied_unnoticed_grants_nothing_twice(before: int):
    host = FakeHost()
    async with limits({"requests-per-minute": 10}, host=host) as client:
        assert await granted_of(client, before) == before
        host.kv.clear()
        assert await granted_of(client, 20) == 10 - before


@pytest.mark.parametrize("kept", [0, 1, 4, 8])
async def test_a_store_that_came_back_with_old_data_grants_nothing_twice(kept: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(epoch, "CHECK_EVERY_S", 0.0)
    host = FakeHost()
    rule = {"requests-per-minute": 10}
    async with limits(rule, host=host) as one, limits(rule, host=host) as other:
        assert await granted_of(one, kept) == kept
        old = dict(host.kv)
        assert await granted_of(other, 1) == 1
        assert await granted_of(one, 8 - kept) == 8 - kept
        for left in (1, 0):
            host.kv.clear()
            host.kv.update(old)
            assert await granted_of(other, 1) == left
            assert await granted_of(one, 5) == 0
            assert await granted_of(other, 5) == 0


async def test_questions_at_the_same_moment_are_no_sign_of_a_store_that_went_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(epoch, "CHECK_EVERY_S", 0.0)
    host = FakeHost()
    async with limits({"requests-per-minute": 50}, host=host) as client:
        await client.ask()
        mark = host.kv["epoch"]
        await asyncio.gather(*(client.ask() for _ in range(20)))
        assert host.kv["epoch"] == mark


async def test_a_store_whose_loss_could_not_be_looked_into_grants_nothing_twice():
    host = FakeHost()
    async with limits({"requests-per-minute": 10}, host=host) as client:
        assert await granted_of(client, 10) == 10
        host.kv.clear()
        host.on("host.kv.get", AWAY)
        assert await granted_of(client, 5) == 0
        del host._scripts["host.kv.get"]
        assert await granted_of(client, 20) == 0


async def test_slots_without_the_store_are_this_hosts_share():
    host = FakeHost()
    host.on("host.kv.set", AWAY)
    async with limits({"concurrency": 6}, host=host) as client:
        first = await client.ask()
        await client.ask()
        await client.refused()
        await client.end(first)
        await client.ask()


async def test_another_failure_of_the_store_ends_the_request_with_its_status():
    host = FakeHost()
    host.on("host.kv.increment", PluginError(ErrorBody(message="full", code="kv_full", http_status=507)))
    async with limits({"requests-per-minute": 10}, host=host) as client:
        assert (await client.refused()).http_status == 507


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rules": [{"request-per-minute": 1}]}, "request-per-minute"),
        ({"rules": [{"concurrency": -1}]}, "concurrency is below 0"),
        ({"rules": [{"period": "year"}]}, "rules[0].period"),
        ({"prices": {"m": {"inputs": 1}}}, "inputs"),
    ],
)
async def test_a_configuration_that_cannot_be_meant_is_refused_by_name(config: dict[str, Any], named: str):
    with pytest.raises(PluginError) as refusal:
        async with PluginHarness(ClientLimits, config=config, permissions=("kv",)):
            pass
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    ("period", "seconds"),
    [("hour", 3600), ("day", 12 * 3600), ("week", 6.5 * 86_400), ("month", 29.5 * 86_400)],
)
def test_a_period_ends_where_the_calendar_says(period: Any, seconds: float):
    assert period_end_s(period, NOON_S) - NOON_S == seconds


def test_cached_input_has_a_price_of_its_own():
    price = Price(input=2.0, output=10.0, cached=0.5)
    assert price.micros(Usage(input_tokens=100, cached_tokens=60, output_tokens=10)) == 80 + 30 + 100
