"""What the operator wrote: rules, periods and prices, checked when the plugin registers."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

from pluginapi import ErrorBody, PluginError, Usage

Period = Literal["hour", "day", "week", "month"]
Subject = Literal["caller", "model"]
MICRO: Final = 1_000_000
MAX_LEASE_S: Final = 86_400


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per million tokens, in whatever currency the budgets are in."""

    input: float = 0.0
    output: float = 0.0
    cached: float | None = None
    """Of cached input; absent: as input."""

    def __post_init__(self) -> None:
        if any(not 0 <= value < math.inf for value in (self.input, self.output, self.cached or 0.0)):
            raise ValueError("a price is below 0 or no finite number")

    def micros(self, usage: Usage) -> int:
        """What this usage costs, in millionths of the currency."""
        cached = usage.cached_tokens or usage.cache_read_tokens or 0
        fresh = max(0, (usage.input_tokens or 0) - cached)
        of_cached = self.input if self.cached is None else self.cached
        return round(fresh * self.input + cached * of_cached + (usage.output_tokens or 0) * self.output)


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One limit, or several, on the requests that match."""

    caller: str = "*"
    """Pattern for the name of the client key, or the principal of a frontend-auth plugin."""
    model: str = "*"
    """Pattern for the model as the client writes it."""
    each: tuple[Subject, ...] = ("caller",)
    """What has a count of its own; empty: one count for all that match."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget: float | None = None
    """In the currency of `prices`."""
    period: Period = "month"

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name.replace('_', '-')} is below 0 or no finite number")

    def matches(self, caller: str, model: str) -> bool:
        return fnmatchcase(caller.lower(), self.caller.lower()) and fnmatchcase(model.lower(), self.model.lower())

    def subject(self, caller: str, model: str) -> str:
        """Whose count this request belongs to."""
        named = {"caller": caller, "model": model.lower()}
        return "|".join(named[word] for word in self.each)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The plugin's section."""

    rules: tuple[Rule, ...] = ()
    prices: Mapping[str, Price] = {}
    concurrency_lease: int = 300

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency_lease <= MAX_LEASE_S:
            raise ValueError(f"concurrency-lease is from 1 to {MAX_LEASE_S} seconds")

    def price_of(self, model: str) -> Price | None:
        """The price of the first pattern that names the model."""
        folded = model.lower()
        return next((price for name, price in self.prices.items() if fnmatchcase(folded, name.lower())), None)


def named(rules: Sequence[Rule]) -> tuple[tuple[str, Rule], ...]:
    """Rules with the names of their counts: a rule keeps its counts when others come before it or go, and when its
    limits change. Rules that say the same about whom they count are told apart by their order."""
    seen: Counter[str] = Counter()
    found = []
    for rule in rules:
        scope = repr((rule.caller.lower(), rule.model.lower(), rule.each, rule.period))
        found.append((hashlib.sha256(f"{scope}:{seen[scope]}".encode()).hexdigest()[:12], rule))
        seen[scope] += 1
    return tuple(found)


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The section, checked. Raises PluginError that says where it is wrong."""
    try:
        return msgspec.convert(msgspec.to_builtins(config), Settings)
    except msgspec.ValidationError as error:
        message = f"plugins.configs.limits: {error}"
        raise PluginError(ErrorBody(message=message, code="invalid_config", http_status=400)) from None


def minute_end_s(now_s: float) -> float:
    """Unix seconds when the minute of `now_s` is over."""
    return (now_s // 60 + 1) * 60


def period_end_s(period: Period, now_s: float) -> float:
    """Unix seconds when the period of `now_s` is over; periods are of UTC, a week begins on Monday."""
    now = datetime.fromtimestamp(now_s, UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    midnight = hour.replace(hour=0)
    match period:
        case "hour":
            end = hour + timedelta(hours=1)
        case "day":
            end = midnight + timedelta(days=1)
        case "week":
            end = midnight + timedelta(days=7 - now.weekday())
        case "month":
            end = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    return end.timestamp()
