"""Amounts that vary, as one writes them in a scenario."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["constant", "uniform", "exponential", "lognormal"]
_Z99: Final = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""
SHAPES: Final = "`X`, `X..Y` (uniform), `exponential MEAN` or `lognormal MEDIAN P99`"


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of non-negative numbers. `a` and `b` are what stands in its text."""

    kind: Kind
    a: float
    b: float = 0.0

    def draw(self, random: Random) -> float:
        """One value."""
        if self.kind == "constant":
            return self.a
        if self.kind == "uniform":
            return random.uniform(self.a, self.b)
        if self.kind == "exponential":
            return random.expovariate(1.0 / self.a) if self.a else 0.0
        return random.lognormvariate(math.log(self.a), math.log(self.b / self.a) / _Z99)


def parse_spread(text: str | int | float, number: Callable[[str], float]) -> Spread:
    """A distribution from its text; `number` reads one amount. Raises ValueError with what would be right."""
    words = str(text).split()
    if len(words) == 1 and ".." in words[0]:
        low, _, high = words[0].partition("..")
        found = Spread("uniform", number(low), number(high))
    elif len(words) == 1:
        found = Spread("constant", number(words[0]))
    elif len(words) == 2 and words[0] == "exponential":
        found = Spread("exponential", number(words[1]))
    elif len(words) == 3 and words[0] == "lognormal":
        found = Spread("lognormal", number(words[1]), number(words[2]))
        if not 0 < found.a <= found.b:
            raise ValueError(f"{text!r}: the median must be above 0 and at most the 99th percentile")
    else:
        raise ValueError(f"{text!r} is no distribution; write {SHAPES}")
    if found.kind == "uniform" and found.a > found.b:
        raise ValueError(f"{text!r}: the lower end comes first")
    return found


def count(text: str) -> float:
    """A number of tokens. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not 0 <= value < 1e12:
        raise ValueError(f"{text!r} must be between 0 and 10^12")
    return value
