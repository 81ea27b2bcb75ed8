"""Client limits when things go wrong: no place is lost, nothing is granted twice, and nobody pays for another."""

import asyncio
from typing import Any

import pytest

from pluginabi.errors import ErrorBody, PluginError
from pluginabi.frames import Usage
from pluginabi.payloads.intercept import RequestCompleteRequest
from pluginapi.testing import FakeHost, PluginHarness
from plugins.limits.epoch import Epoch
from plugins.limits.plugin import ClientLimits
from plugins.limits.slots import Slot, Slots
from tests.support.limits import AWAY, limits

FULL = PluginError(ErrorBody(message="full", code="kv_full", http_status=507))
PRICED = {"m": {"input": 1_000_000.0}}
"""One per token."""


async def test_a_budget_is_spent_while_the_store_is_away_too():
    host = FakeHost()
    host.on("host.kv.increment", AWAY)
    async with limits({"budget": 30.0}, prices=PRICED, host=host) as client:
        granted = 0
        for _ in range(5):
            try:
                request_id = await client.ask()
            except PluginError as error:
                assert error.body.code == "budget_exceeded"
                break
            granted += 1
            await client.end(request_id, Usage(input_tokens=5))
        assert granted == 2, "a third of 30 is this host's, and each request costs 5"


async def test_tokens_beyond_what_was_reserved_come_out_of_the_share():
    host = FakeHost()
    host.on("host.kv.increment", AWAY)
    async with limits({"tokens-per-minute": 300}, host=host) as client:
        await client.end(await client.ask(size=40), Usage(input_tokens=100))
        await client.refused(size=4)


async def test_a_rule_keeps_its_counts_when_another_comes_before_it():
    budget = {"caller": "ann", "budget": 10.0}
    async with limits(budget, prices=PRICED) as client:
        await client.end(await client.ask(), Usage(input_tokens=10))
        await client.refused()
        rules = [{"caller": "bob", "budget": 1.0}, {**budget, "budget": 11.0}]
        await client.plugin.reconfigure({"rules": rules, "prices": PRICED}, permissions=("kv",))
        await client.end(await client.ask(), Usage(input_tokens=1))
        assert (await client.refused()).code == "budget_exceeded"


async def test_two_rules_about_the_same_requests_have_counts_of_their_own():
    async with limits({"requests-per-minute": 3}, {"requests-per-minute": 2}) as client:
        await client.ask()
        await client.ask()
        assert list((await client.refused()).headers["x-ratelimit-limit-requests"]) == ["2"]


async def test_of_those_who_ask_at_once_without_the_store_only_the_share_gets_in():
    host = FakeHost()

    async def away(params: Any) -> Any:
        await asyncio.sleep(0)
        raise AWAY

    host.on("host.kv.set", away)
    async with limits({"concurrency": 6}, host=host) as client:
        answers = await asyncio.gather(*(client.ask() for _ in range(6)), return_exceptions=True)
        assert sum(isinstance(it, str) for it in answers) == 2


async def test_a_slot_that_could_not_be_freed_holds_up_neither_the_next_nor_what_else_is_settled():
    host = FakeHost()
    async with limits(
        {"concurrency": 1}, {"concurrency": 1, "model": "m*"}, {"tokens-per-minute": 100}, host=host
    ) as client:
        request_id = await client.ask(size=40)
        host.on("host.kv.delete", FULL)
        with pytest.raises(PluginError, match="full"):
            await client.end(request_id, Usage(input_tokens=60))
        del host._scripts["host.kv.delete"]
        await client.ask(size=4)
        assert client.headers["x-ratelimit-remaining-tokens"] == "39"


async def test_who_goes_away_while_being_let_in_leaves_no_slot_behind():
    host = FakeHost()
    reached, never = asyncio.Event(), asyncio.Event()

    async def hang(params: Any) -> Any:
        reached.set()
        await never.wait()

    async with limits({"concurrency": 1}, {"requests-per-minute": 5}, host=host) as client:
        host.on("host.kv.increment", hang)
        asking = asyncio.create_task(client.ask())
        async with asyncio.timeout(5):
            await reached.wait()
        host.on("host.kv.delete", FULL)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        host._scripts.clear()
        async with asyncio.timeout(5):
            while True:
                try:
                    await client.ask()
                    break
                except PluginError:
                    await asyncio.sleep(0)


async def test_a_slot_that_was_taken_in_a_store_whose_answer_got_lost_is_freed_with_the_next_request():
    host = FakeHost()
    async with limits({"concurrency": 3, "each": []}, host=host) as client:

        def lost(params: Any) -> Any:
            host._kv(params)
            raise AWAY

        await client.ask()
        host.on("host.kv.set", lost)
        await client.refused()
        del host._scripts["host.kv.set"]
        await client.ask()
        assert len([key for key in host.kv if key.startswith("slot:")]) == 2


async def test_whose_lease_ran_out_frees_and_renews_nobody_elses_slot():
    now_s, host = [0.0], FakeHost()
    held: list[Slot] = []

    class Holder(ClientLimits):
        async def request_complete(self, request: RequestCompleteRequest, ctx: Any) -> None:
            await steps[request.request_id](ctx)

    mine, theirs = (Slots(Epoch(), lambda: now_s[0]) for _ in range(2))

    async def take(slots: Slots, ctx: Any, *, expected: bool = True) -> None:
        slot = await slots.take(ctx, "s", limit=1, lease_s=30)
        assert (slot is not None) is expected
        if slot is not None:
            held.append(slot)

    steps: dict[str, Any] = {
        "mine": lambda ctx: take(mine, ctx),
        "theirs": lambda ctx: take(theirs, ctx),
        "not mine": lambda ctx: take(mine, ctx, expected=False),
        "free": lambda ctx: mine.release(ctx, held[0]),
    }
    async with PluginHarness(Holder, host=host, config={}, permissions=("kv",)) as plugin:

        async def step(name: str) -> None:
            await plugin.call("request.complete", RequestCompleteRequest(request_id=name))

        await step("mine")
        now_s[0] = 31
        host.kv.pop("slot:s:0")
        await step("theirs")
        await step("not mine")
        await step("free")
        await step("not mine")
        assert host.kv["slot:s:0"] == held[1].mark


async def test_the_slot_of_a_request_that_runs_is_renewed_though_nobody_else_comes():
    host, renewed = FakeHost(), asyncio.Event()

    def renew(params: Any) -> Any:
        renewed.set()
        return host._kv(params)

    host.on("host.kv.expire", renew)
    async with limits({"concurrency": 1}, host=host, **{"concurrency-lease": 3600}) as client:
        await client.plugin.reconfigure({"rules": [{"concurrency": 1}], "concurrency-lease": 1}, permissions=("kv",))
        await client.ask()
        async with asyncio.timeout(10):
            await renewed.wait()
        assert {call.parent for call in host.calls if call.method == "host.kv.expire"} == {None}
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "limits:slots"]


async def test_a_slot_whose_request_ends_while_it_is_renewed_is_free_again():
    host = FakeHost()
    renewing, ended, freed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def renew(params: Any) -> Any:
        renewing.set()
        await ended.wait()
        # As a store that does the one thing after the other: the key is gone, and so it is taken anew.
        return host._kv(params)

    async with limits({"concurrency": 1}, host=host, **{"concurrency-lease": 1}) as client:
        host.on("host.kv.expire", renew)
        request_id = await client.ask()
        async with asyncio.timeout(10):
            await renewing.wait()
            await client.end(request_id)

            def free(params: Any) -> Any:
                freed.set()
                return host._kv(params)

            host.on("host.kv.delete", free)
            ended.set()
            await freed.wait()
        assert not [key for key in host.kv if key.startswith("slot:")]


async def test_a_client_that_leaves_before_the_usage_is_known_has_used_its_input():
    async with limits({"tokens-per-minute": 100}, {"budget": 20.0}, prices=PRICED) as client:
        request_id = await client.ask(size=80)
        gone = RequestCompleteRequest(request_id=request_id, attempt=1, outcome="canceled")
        await client.plugin.call("request.complete", gone)
        error = await client.refused(size=4)
        assert error.code == "budget_exceeded"
    async with limits({"tokens-per-minute": 100}) as client:
        request_id = await client.ask(size=80)
        gone = RequestCompleteRequest(request_id=request_id, outcome="canceled")
        await client.plugin.call("request.complete", gone)
        await client.ask(size=4)
        assert client.headers["x-ratelimit-remaining-tokens"] == "99", "no upstream was asked"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rules": [{"budget": float("nan")}]}, "budget is below 0 or no finite number"),
        ({"rules": [{"budget": float("inf")}]}, "budget is below 0 or no finite number"),
        ({"prices": {"m": {"input": -1.0}}}, "a price is below 0"),
        ({"concurrency-lease": 0}, "concurrency-lease is from 1"),
    ],
)
def test_numbers_that_would_fail_every_request_are_refused_at_the_start(config: dict[str, Any], said: str):
    from plugins.limits.rules import settings_of

    with pytest.raises(PluginError, match=said):
        settings_of(config)
