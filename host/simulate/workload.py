"""The requests of a scenario: the same ones for every policy."""

from dataclasses import dataclass
from random import Random

from host.config.values import seconds
from host.simulate.scenario import Scenario
from host.simulate.spread import count, parse_spread


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a client."""

    number: int
    at_s: float
    model: str
    tokens: int
    session: str


def arrivals(scenario: Scenario, seed: int) -> tuple[Arrival, ...]:
    """All requests in the order in which they come, numbered from 0."""
    found: list[tuple[float, int, str, int, str]] = []
    for index, work in enumerate(scenario.workload):
        random = Random(f"{seed}:workload:{index}")
        tokens = parse_spread(work.tokens, count)
        gap_s = 60.0 / work.per_minute
        start_s = seconds(work.start)
        end_s = min(scenario.duration_s, seconds(work.end) if work.end is not None else scenario.duration_s)
        at_s, number = start_s if work.arrivals == "even" else start_s + random.expovariate(1 / gap_s), 0
        while at_s < end_s:
            session = f"{index}-{random.randrange(work.sessions)}" if work.sessions else ""
            found.append((at_s, index, work.model, round(tokens.draw(random)), session))
            number += 1
            at_s = start_s + number * gap_s if work.arrivals == "even" else at_s + random.expovariate(1 / gap_s)
    found.sort(key=lambda row: row[:2])
    return tuple(Arrival(number, row[0], *row[2:]) for number, row in enumerate(found))
