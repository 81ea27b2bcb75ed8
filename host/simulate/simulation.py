"""`jackfield simulate`: a scenario under one policy or several."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from host.config.load import ConfigError
from host.observe.trouble import logs_of_trouble
from host.simulate.oracle import Progress, oracle
from host.simulate.policies import BUILT_IN, Policy, PolicyError, built_in, plugin
from host.simulate.report import SimulationReport, policy_report, table
from host.simulate.run import play
from host.simulate.scenario import Scenario, load_scenario, shipped
from host.simulate.workload import arrivals

PROGRESS_S: Final = 5.0
"""Between two lines about how far it is."""


class _Progress:
    """Says on standard error how far it is, when it takes long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock: Final = clock
        self._said_s = clock()

    def __call__(self, what: str, done: int, of_all: int) -> None:
        now_s = self._clock()
        if now_s - self._said_s >= PROGRESS_S:
            self._said_s = now_s
            click.echo(f"{what}: {done} of {of_all} requests", err=True)


async def simulate(
    scenario: Scenario,
    policies: Sequence[Policy],
    *,
    name: str = "scenario",
    seed: int | None = None,
    progress: Progress | None = None,
) -> SimulationReport:
    """Every policy over the same requests and the same luck. `seed` None: the scenario's. Raises PolicyError."""
    chosen = scenario.seed if seed is None else seed
    requests = arrivals(scenario, chosen)
    best = oracle(scenario, requests, chosen, progress=progress)
    found = []
    for policy in policies:
        played = await play(scenario, policy, requests, chosen, progress=progress)
        found.append(policy_report(policy.name, played, best, scenario.duration_s))
    return SimulationReport(
        scenario=name,
        seed=chosen,
        duration_s=scenario.duration_s,
        requests=len(requests),
        oracle_served=best.served,
        oracle_wait_mean_ms=round(best.waited_s * 1000 / best.served, 1) if best.served else 0.0,
        policies=found,
    )


def simulate_command(
    text: str,
    *,
    strategies: Sequence[str],
    plugins: Sequence[str],
    plugin_config: str | None,
    compare: bool,
    seed: int | None,
    as_json: bool,
) -> int:
    """Simulate and print; 0 when it was done, 2 when it cannot be."""
    try:
        path = shipped().get(text, Path(text))
        scenario = load_scenario(path)
        policies = _policies(scenario, strategies, plugins, plugin_config, compare=compare)
        with logs_of_trouble(logging.ERROR):  # a simulated outage is no event
            report = asyncio.run(simulate(scenario, policies, name=path.stem, seed=seed, progress=_Progress()))
    except (ConfigError, PolicyError) as error:
        click.echo(str(error), err=True)
        return 2
    click.echo(msgspec.json.format(msgspec.json.encode(report)).decode() if as_json else table(report))
    return 0


def list_command() -> int:
    """Print the scenarios that come with the program."""
    for name, path in shipped().items():
        click.echo(f"{name:<20} {load_scenario(path).description}")
    return 0


def _policies(
    scenario: Scenario, strategies: Sequence[str], plugins: Sequence[str], plugin_config: str | None, *, compare: bool
) -> list[Policy]:
    config: Mapping[str, Any] | None = None
    if plugin_config is not None:
        try:
            config = msgspec.json.decode(plugin_config, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise PolicyError(f"--plugin-config: {error}") from None
    wanted = [*(BUILT_IN if compare else ()), *strategies]
    if not wanted and not plugins:
        wanted = [scenario.gateway.routing.strategy or "round-robin"]
    named = {policy.name: policy for policy in map(built_in, wanted)}
    return [*named.values(), *(plugin(it, config) for it in plugins)]
