"""Real SDK clients over sixty credentials of which most fail: who could be served is, and every hop has its reason."""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.pool.conftest import RESET_S, Fault, Pool, Seat
from tests.support.families import TEXT
from tests.support.proxy import run_command

REQUESTS = 40
"""Of each SDK."""
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
SEEDS = range(1, 1 + int(os.environ.get("JACKFIELD_POOL_SEEDS", "1")))


async def served(seat: Seat, seed: int) -> list[tuple[str, bool, list[tuple[str, Fault | None]]]]:
    """One request after the other: id, whether it was streamed, and what each upstream key did to it."""
    luck = random.Random(f"{seed}:{seat.family.name}")
    done = []
    for number in range(REQUESTS):
        stream, before = luck.random() < 0.5, len(seat.chosen)
        async with asyncio.timeout(20):
            text, request_id = await seat.ask(stream)
        assert text == TEXT, f"request {number} of {seat.family.name}"
        hops: list[tuple[str, Fault | None]] = []
        for key, behaviour in seat.chosen[before:]:
            fault = seat.known.get(id(behaviour))
            hops.append((key, None if fault is not None and fault.only_stream and not stream else fault))
        done.append((request_id, stream, hops))
    return done


async def explained(pool: Pool, request_id: str) -> list[dict[str, Any]]:
    """The decisions that `jackfield explain` prints."""
    printed = await run_command(pool.proxy.config_file, "explain", request_id, "--json")
    assert printed.exit_code == 0, printed.output
    decisions: list[dict[str, Any]] = json.loads(printed.stdout)["decisions"]
    return decisions


def check_hops(decisions: list[dict[str, Any]], hops: list[tuple[str, Fault | None]]) -> None:
    """Explained is every upstream that was asked, in order: what it answered, and why and how long it rests."""
    told = [(it["kind"], it["fields"]) for it in decisions if it["kind"] in ("attempt", "cooldown")]
    for _, fault in hops:
        kind, attempt = told.pop(0)
        assert (kind, attempt["status"]) == ("attempt", 200 if fault is None else fault.status)
        if fault is None:
            continue
        assert attempt["code"], fault.name
        if fault.reason:
            kind, rest = told.pop(0)
            assert (kind, rest["reason"]) == ("cooldown", fault.reason)
            allowed = (1, 2, 4) if fault.doubles else ()
            assert rest["seconds"] in allowed or fault.seconds - 5 <= rest["seconds"] <= fault.seconds
    assert told == []


def check_keys(pool: Pool, request_id: str, hops: list[tuple[str, Fault | None]]) -> None:
    """The credentials in the trace are those that were asked."""
    trace = pool.proxy.proxy.trace.get(request_id)
    assert trace is not None
    ids = [it.fields["credential"] for it in trace.decisions if it.kind == "attempt"]
    assert [pool.key_of(it) for it in ids] == [key for key, _ in hops]


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_request_that_can_succeed_does_and_every_hop_has_its_reason(
    started: Callable[[int], Any], seed: int
) -> None:
    async with started(seed) as pool:
        rows = await asyncio.gather(*(served(seat, seed) for seat in pool.seats))
        met = Counter(fault.name for done in rows for _, _, hops in done for _, fault in hops if fault is not None)
        for done in rows:
            for request_id, _, hops in done:
                if len(hops) > 1:
                    check_hops(await explained(pool, request_id), hops)
                    check_keys(pool, request_id, hops)
            check_rests(done)
    # The plan is no good when hardly anything went wrong.
    assert sum(met.values()) >= 3 * 17
    assert {"key refused", "limit", "silent"} <= met.keys()


def check_rests(done: list[tuple[str, bool, list[tuple[str, Fault | None]]]]) -> None:
    """Nobody is asked again while it rests: the whole run is shorter than the rests that count here."""
    resting: dict[str, str] = {}
    for _, _, hops in done:
        for key, fault in hops:
            assert key not in resting, f"{key} was asked although it rests: {resting[key]}"
            if fault is not None and fault.seconds >= RESET_S:
                resting[key] = fault.name
