"""A pool of 10,000 credentials and 2,000 models, in a process of its own: start, reload, picks while credentials fail.

    python tests/bench/pool_driver.py [--blocked]

With `--blocked` only picks while a tenth, most, or all of the credentials rest: a matter of seconds. Prints one JSON
object. Start and reload are processor time: neighbours must not count. Times of picks are those of the whole step
`pick` of the pipeline, decision trace included.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from msgspec.structs import replace

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.credentials.retry import Search
from host.observe.trace import DecisionTrace
from host.pipeline.execute import Gateway
from host.pipeline.pick import NoCredential, pick
from host.pipeline.state import EXECUTE, GatewayState, build_state
from host.runtime.invoke import Invoker
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody
from tests.support.pipeline import answering, client_request, executor, snapshot

SHAPES = {"wide": (20, 500, 100), "deep": (1, 10_000, 2_000)}
"""Providers, keys of each, models of each."""
PICKS = 40_000
RELOADS = 7
FAILING = 0.1
"""Part of the attempts that fail."""
BLOCKED = {"tenth": 0.1, "most": 0.9, "all": 1.0}
"""Parts of the credentials that rest as a whole."""
BLOCKED_PICKS = 4_000
REST_MS = 1_500
"""Of a failed credential and model: thousands rest at any moment, and thousands come back while picks are timed."""


def config(providers: int, keys: int, models: int) -> Config:
    """A configuration of this size."""
    return Config(
        openai_compatibility=[
            CompatProvider(
                name=f"p{number}",
                base_url=f"https://p{number}.test/v1",
                responses=True,
                api_key_entries=[CompatKey(api_key=f"key-{number}-{key}") for key in range(keys)],
                models=[ModelEntry(name=f"model-{number}-{model}") for model in range(models)],
            )
            for number in range(providers)
        ]
    )


def with_another_key(before: Config, number: int) -> Config:
    """The same with one key replaced; everything is a new object, as after reading the file again."""
    fresh = config_like(before)
    first = fresh.openai_compatibility[0]
    keys = [*first.api_key_entries]
    keys[len(keys) // 2] = CompatKey(api_key=f"another-{number}")
    return replace(fresh, openai_compatibility=[replace(first, api_key_entries=keys), *fresh.openai_compatibility[1:]])


def config_like(before: Config) -> Config:
    """Equal, and made of other objects."""
    return replace(
        before,
        openai_compatibility=[
            replace(
                provider,
                api_key_entries=[replace(key) for key in provider.api_key_entries],
                models=[replace(model) for model in provider.models],
            )
            for provider in before.openai_compatibility
        ],
    )


class Site:
    """The states of one pool."""

    def __init__(self, start: Config) -> None:
        self.config = start
        self.manager = CredentialManager()
        self.plugins = snapshot(executor(answering()))
        self.state: GatewayState | None = None

    def apply(self, wanted: Config) -> float:
        """Seconds of processor time until the next state is there."""
        began_s = time.process_time()
        self.manager.apply_config(wanted)
        self.state = build_state(wanted, self.plugins, previous=self.state, manager=self.manager)
        self.config = wanted
        return time.process_time() - began_s


async def pick_times_us(state: GatewayState, models: list[str], *, failing: float) -> Iterator[float]:
    """The times of single picks for random models, of which some fail."""
    dice = random.Random(7)
    gateway = Gateway(invoker=Invoker(), state=state, tasks=TaskGroup("bench"), trace=DecisionTrace())
    limited = classify(ErrorBody(http_status=429, retry_after_ms=REST_MS))
    plans = {model: state.plan(model, method=EXECUTE, source="openai", wanted="openai") for model in models}
    invoker, times = Invoker(), []
    for number in range(PICKS):
        model = dice.choice(models)
        ex = gateway.begin(client_request(b"{}", model=model, request_id=str(number)), EXECUTE)
        plan, search = plans[model], Search(state.policy)
        began_ns = time.perf_counter_ns()
        try:
            lane = await pick(invoker, ex, plan, search)
        except NoCredential:
            lane = None
        times.append((time.perf_counter_ns() - began_ns) / 1000)
        if lane is not None and dice.random() < failing:
            state.pool.failed(lane.credential, lane.keys[0], limited, cause=NO_CAUSE)
        elif lane is not None:
            state.pool.disprove(lane.credential.id, lane.keys[0], age_s=0.0, seen_ago_s=0.0, headers={})
    return iter(times)


async def blocked_times_us(site: Site, part: float, *, models: int = 20) -> list[float]:
    """The times of single picks while `part` of all credentials rest as a whole. After each pick one of them comes back
    and another one begins to rest, or, when all do, one is told to rest longer: no picture is ever up to date."""
    dice, plugins = random.Random(8), site.plugins
    state = build_state(site.config, plugins, manager=site.manager)
    names = [entry.name for entry in site.config.openai_compatibility[0].models][:models]
    plans = [state.plan(name, method=EXECUTE, source="openai", wanted="openai") for name in names]
    gateway = Gateway(invoker=Invoker(), state=state, tasks=TaskGroup("bench"), trace=DecisionTrace())
    resting = list(state.pool.credentials)
    dice.shuffle(resting)
    number_resting = int(len(resting) * part)
    resting, free = resting[:number_resting], resting[number_resting:]
    invoker, times, longer_ms = Invoker(), [], 3_600_000
    for credential in resting:
        _rest(state, credential, longer_ms)
    for number in range(BLOCKED_PICKS + 100):
        ex = gateway.begin(client_request(b"{}", model="m", request_id=str(number)), EXECUTE)
        plan, search = plans[number % len(plans)], Search(state.policy)
        began_ns = time.perf_counter_ns()
        with contextlib.suppress(NoCredential):
            await pick(invoker, ex, plan, search)
        times.append((time.perf_counter_ns() - began_ns) / 1000)
        longer_ms += 1
        index = dice.randrange(len(resting))
        if free:
            other = dice.randrange(len(free))
            resting[index], free[other] = free[other], resting[index]
            state.pool.book.reset(free[other].id)
        _rest(state, resting[index], longer_ms)
    return times[100:]


def _rest(state: GatewayState, credential: Credential, rest_ms: int) -> None:
    verdict = classify(ErrorBody(http_status=429, retry_after_ms=rest_ms, scope="credential"))
    state.pool.failed(credential, "m", verdict, cause=NO_CAUSE)


def percentile(times: list[float], part: float) -> float:
    """The time that so many picks needed at most."""
    return sorted(times)[min(len(times) - 1, int(len(times) * part))]


async def measure(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Everything about one shape."""
    site = Site(config(*shape))
    start_s = site.apply(site.config)
    reload_s = median(site.apply(with_another_key(site.config, number)) for number in range(RELOADS))
    assert site.state is not None
    models = [entry.name for provider in site.config.openai_compatibility for entry in provider.models]
    began_s = time.perf_counter()
    calm = list(await pick_times_us(site.state, models, failing=0.0))
    stormy = list(await pick_times_us(site.state, models, failing=FAILING))
    began_listing_s = time.perf_counter()
    listed = len(site.state.listing())
    listing_s = time.perf_counter() - began_listing_s
    blocked = await _blocked(site)
    return {
        **blocked,
        "start_s": start_s,
        "reload_ms": reload_s * 1000,
        "pick_us": median(calm),
        "pick_p99_us": percentile(calm, 0.99),
        "pick_failing_us": median(stormy),
        "pick_failing_p99_us": percentile(stormy, 0.99),
        "listing_ms": listing_s * 1000,
        "resting": sum(len(states) for _, states in site.state.pool.book.all_states()),
        "credentials": len(site.state.pool.credentials),
        "models": listed,
        "took_s": time.perf_counter() - began_s,
    }


async def measure_blocked(shape: tuple[int, int, int]) -> dict[str, float]:
    """Only picks while credentials rest."""
    site = Site(config(*shape))
    site.apply(site.config)
    return await _blocked(site)


async def _blocked(site: Site) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, part in BLOCKED.items():
        times = await blocked_times_us(site, part)
        found |= {f"pick_{name}_us": median(times), f"pick_{name}_p99_us": percentile(times, 0.99)}
    return found


def main() -> None:
    """Measure all shapes, print one JSON object."""
    wanted = measure_blocked if "--blocked" in sys.argv[1:] else measure
    print(json.dumps({name: asyncio.run(wanted(shape)) for name, shape in SHAPES.items()}))


if __name__ == "__main__":
    main()
