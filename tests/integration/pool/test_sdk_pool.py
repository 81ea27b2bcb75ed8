"""Real SDK clients over sixty credentials of which most fail: who could be served is, and every hop has its reason."""

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.pool.conftest import RESET_S, Fault, Pool, Seat, Told
from tests.support.families import TEXT
from tests.support.proxy import run_command

REQUESTS = 40
"""Of each SDK."""
AT_ONCE = 8
PASSED_S = 120
"""What may have passed of a reset that was planned before the first request."""
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
SEEDS = range(1, 1 + int(os.environ.get("JACKFIELD_POOL_SEEDS", "1")))
Hop = tuple[str, Fault | None]
"""An upstream key, and what it did."""


@dataclass
class Done:
    """A request that is over."""

    told: Told
    hops: list[Hop]

    @property
    def late(self) -> Fault | None:
        """What broke off the answer."""
        fault = self.hops[-1][1]
        return fault if fault is not None and fault.is_late else None


async def served(seat: Seat, seed: int) -> list[Done]:
    """All requests of one SDK, some at a time."""
    luck = random.Random(f"{seed}:{seat.family.name}")
    streams = [luck.random() < 0.5 for _ in range(REQUESTS)]
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> Done:
        async with places, asyncio.timeout(60):
            said = f"Hello {number}"
            told = await seat.ask(said, streams[number], lambda: seat.upstream.arrived(said))
        hops: list[Hop] = []
        for key, behaviour in seat.upstream.chosen[str(number)]:
            fault = seat.known.get(id(behaviour))
            hops.append((key, None if fault is not None and fault.only_stream and not streams[number] else fault))
        return Done(told, hops)

    return await asyncio.gather(*(ask(number) for number in range(REQUESTS)))


async def explained(pool: Pool, request_id: str) -> list[dict[str, Any]]:
    """The decisions that `jackfield explain` prints."""
    printed = await run_command(pool.proxy.config_file, "explain", request_id, "--json")
    assert printed.exit_code == 0, printed.output
    decisions: list[dict[str, Any]] = json.loads(printed.stdout)["decisions"]
    return decisions


def check_answer(done: Done) -> None:
    """The whole answer; or, when it was broken off, a part of it and the error that the SDK finds in the stream."""
    if done.late is None:
        assert (done.told.text, done.told.error) == (TEXT, None)
    else:
        assert done.told.text
        assert TEXT.startswith(done.told.text)
        assert done.told.error is not None, done.late.name
        assert all(fault is not None and not fault.is_late for _, fault in done.hops[:-1])


def check_hops(decisions: list[dict[str, Any]], hops: list[Hop], met: dict[str, list[Fault]]) -> None:
    """Explained is every upstream that was asked, in order: what it answered, and why and how long it rests."""
    told = [(it["kind"], it["fields"]) for it in decisions if it["kind"] in ("attempt", "cooldown")]
    for key, fault in hops:
        kind, attempt = told.pop(0)
        assert (kind, attempt["status"]) == ("attempt", 200 if fault is None else fault.status)
        if fault is None:
            continue
        assert attempt["code"], fault.name
        if fault.reason:
            kind, rest = told.pop(0)
            assert kind == "cooldown"
            # Of several requests that failed with one key at the same moment the longest rest counts for all.
            assert any(explains(it, rest) for it in met[key] if it.seconds >= fault.seconds), (fault, rest)
    assert told == []


def explains(fault: Fault, rest: dict[str, Any]) -> bool:
    """Whether the rest is that of the fault."""
    allowed = (1, 2, 4) if fault.doubles else ()
    # A reset given as a moment is nearer the later it is met.
    passed_s = PASSED_S if fault.seconds == RESET_S else 5
    fits = rest["seconds"] in allowed or fault.seconds - passed_s <= rest["seconds"] <= fault.seconds
    return fits and rest["reason"] == fault.reason


def check_keys(pool: Pool, request_id: str, hops: list[Hop]) -> None:
    """The credentials in the trace are those that were asked."""
    trace = pool.proxy.proxy.trace.get(request_id)
    assert trace is not None
    ids = [it.fields["credential"] for it in trace.decisions if it.kind == "attempt"]
    assert [pool.key_of(it) for it in ids] == [key for key, _ in hops]


def check_rests(pool: Pool, rows: Iterable[Done]) -> None:
    """Nobody is picked while it rests: the whole run is shorter than the rests that count here.

    A request of the same moment that succeeds with the credential may end its rest.
    """
    happened: list[tuple[float, str, Mapping[str, Any]]] = []
    for done in rows:
        trace = pool.proxy.proxy.trace.get(done.told.request_id)
        assert trace is not None
        happened += [(trace._started_s + it.at_ms / 1000, it.kind, it.fields) for it in trace.decisions]
    resting: set[str] = set()
    rested = 0
    for _, kind, fields in sorted(happened, key=lambda it: it[0]):
        if kind == "picked":
            assert fields["credential"] not in resting
        elif kind == "cooldown" and fields["seconds"] >= RESET_S - PASSED_S:
            resting.add(fields["credential"])
            rested += 1
        elif kind == "attempt" and fields["status"] == 200:
            resting.discard(fields["credential"])
    assert rested >= len(pool.seats)


def check_counts(pool: Pool, rows: Iterable[Done]) -> None:
    """Each credential has as many successes and failures as its upstream gave it."""
    asked = Counter((key, fault is None) for done in rows for key, fault in done.hops)
    state = pool.proxy.proxy.gateway.state
    counted = {pool.key_of(it): state.pool.health.tallies.of(it) for it in state.pool.by_id}
    assert {key: (asked[key, True], asked[key, False]) for key in counted} == counted


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_request_that_can_succeed_does_and_every_hop_has_its_reason(
    started: Callable[[int], Any], seed: int
) -> None:
    async with started(seed) as pool:
        rows = [done for of_seat in await asyncio.gather(*(served(it, seed) for it in pool.seats)) for done in of_seat]
        met: dict[str, list[Fault]] = defaultdict(list)
        for key, fault in (hop for done in rows for hop in done.hops):
            if fault is not None:
                met[key].append(fault)
        for done in rows:
            check_answer(done)
            if len(done.hops) > 1 or done.late is not None:
                check_hops(await explained(pool, done.told.request_id), done.hops, met)
                check_keys(pool, done.told.request_id, done.hops)
        check_rests(pool, rows)
        check_counts(pool, rows)
    # The plan is no good when hardly anything went wrong.
    names = Counter(fault.name for faults in met.values() for fault in faults)
    assert names.total() >= 30
    assert len({"key refused", "forbidden", "limit", "broken", "silent"} & names.keys()) >= 4
    # These happen to streams only, so not to everybody whose first failure they would be.
    assert {"stream cut", "error first"} & names.keys()
    assert {"cut late", "ended late", "error late"} & names.keys()
