"""The scenario file: providers with limits and faults, and who asks them. Every mistake is told with file and line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from msgspec import field

from host.config.load import ConfigError, Problem, parse_sections
from host.config.model import Routing, Section
from host.config.values import seconds
from host.simulate.spread import count, parse_spread

Duration: TypeAlias = str | int | float
MAX_REQUESTS: Final = 200_000
MAX_CREDENTIALS: Final = 10_000
SHIPPED: Final = Path(__file__).parent / "scenarios"


class QuotaEntry(Section, frozen=True, kw_only=True):
    """At most so many requests and tokens in each window. Windows follow each other without a gap."""

    requests: int | None = None
    tokens: int | None = None
    per: Duration = "1m"
    start: Duration = 0
    """When a window begins; the ones before and after it follow from that."""


class OutageEntry(Section, frozen=True, kw_only=True):
    """Between two moments every request fails."""

    start: Duration = field(name="from", default=0)
    end: Duration | None = field(name="to", default=None)
    """Absent: it lasts until the end."""
    status: int = 503
    """0: connections are refused."""
    after: Duration | None = None
    """How long the failure takes; absent: the provider's `error-latency`."""
    retry_after: Duration | None = None


class CredentialEntry(Section, frozen=True, kw_only=True):
    """One credential, or `count` of them with the same limits each."""

    name: str
    count: int = 1
    priority: int = 0
    weight: int = 1
    quotas: Sequence[QuotaEntry] = ()
    outages: Sequence[OutageEntry] = ()
    error_rates: Mapping[str, float] | None = None
    """Absent: the provider's."""
    latency: Duration | None = None


class ProviderEntry(Section, frozen=True, kw_only=True):
    """One upstream. Its quotas, outages and rates hold for each of its credentials by itself."""

    name: str
    models: Sequence[str] = ()
    """Absent: every model of the workload."""
    latency: Duration = "1s"
    error_latency: Duration = "100ms"
    error_rates: Mapping[str, float] = field(default_factory=dict)
    """Which share of the requests fails by chance, by status."""
    quotas: Sequence[QuotaEntry] = ()
    outages: Sequence[OutageEntry] = ()
    reset_hint: Literal["retry-after", "retry-after-ms", "none"] = "retry-after"
    """How a 429 says when the limit is over."""
    credentials: Sequence[CredentialEntry]


class WorkloadEntry(Section, frozen=True, kw_only=True):
    """Requests for one model."""

    model: str = "m"
    per_minute: float
    arrivals: Literal["poisson", "even"] = "poisson"
    start: Duration = field(name="from", default=0)
    end: Duration | None = field(name="to", default=None)
    tokens: Duration = 1000
    sessions: int = 0
    """How many conversations they belong to; 0: to none."""


class GatewayEntry(Section, frozen=True, kw_only=True):
    """Keys of the gateway's configuration, with the same meaning and defaults."""

    routing: Routing = field(default_factory=Routing)
    request_retry: int = 0
    max_retry_credentials: int = 0
    max_retry_interval: Duration = 0
    disable_cooling: bool = False
    transient_error_cooldown_seconds: int = 0


class Scenario(Section, frozen=True, kw_only=True):
    """The whole file."""

    description: str = ""
    seed: int = 1
    duration: Duration = "10m"
    gateway: GatewayEntry = field(default_factory=GatewayEntry)
    providers: Sequence[ProviderEntry]
    workload: Sequence[WorkloadEntry]

    @property
    def duration_s(self) -> float:
        return seconds(self.duration)

    def models_of(self, provider: ProviderEntry) -> tuple[str, ...]:
        """The models that the provider's credentials serve."""
        return tuple(provider.models) or tuple(dict.fromkeys(work.model for work in self.workload))


def shipped() -> dict[str, Path]:
    """The scenarios that come with the program, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_scenario(path: Path) -> Scenario:
    """Read and check the file. Raises ConfigError with every mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), 1, f"cannot be read: {error}")]) from None
    return parse_scenario(text, file=str(path))


def parse_scenario(text: str, *, file: str) -> Scenario:
    """Check a scenario given as text. Raises ConfigError with every mistake."""
    scenario, line_of = parse_sections(text, Scenario, file=file)
    check = _Check(file, line_of, [])
    check.scenario(scenario)
    if check.problems:
        raise ConfigError(sorted(check.problems, key=lambda problem: problem.line))
    return scenario


@dataclass(slots=True)
class _Check:
    """What types alone do not say."""

    file: str
    line_of: Callable[[str], int]
    problems: list[Problem]

    def scenario(self, scenario: Scenario) -> None:
        duration_s = self._duration("duration", scenario.duration)
        if duration_s is not None and not 0 < duration_s <= 31 * 86400:
            self._say("duration", "must be above 0 and at most 31d")
        if scenario.gateway.request_retry < 0 or scenario.gateway.max_retry_credentials < 0:
            self._say("gateway", "numbers of tries are 0 or more")
        if not scenario.providers:
            self._say("providers", "at least one is needed")
        if not scenario.workload:
            self._say("workload", "at least one is needed")
        self._unique(("providers", index, it.name) for index, it in enumerate(scenario.providers))
        for number, provider in enumerate(scenario.providers):
            self._provider(provider, f"providers[{number}]")
        if sum(it.count for provider in scenario.providers for it in provider.credentials) > MAX_CREDENTIALS:
            self._say("providers", f"at most {MAX_CREDENTIALS} credentials")
        expected = 0.0
        offered = {model for provider in scenario.providers for model in scenario.models_of(provider)}
        for number, work in enumerate(scenario.workload):
            expected += self._workload(work, f"workload[{number}]", duration_s or 0.0)
            if work.model not in offered:
                self._say(f"workload[{number}].model", f"no provider has the model {work.model!r}")
        if expected > MAX_REQUESTS:
            self._say("workload", f"about {expected:.0f} requests; at most {MAX_REQUESTS} are simulated")

    def _provider(self, provider: ProviderEntry, path: str) -> None:
        if not provider.credentials:
            self._say(f"{path}.credentials", "at least one is needed")
        self._name(provider.name, path)
        self._spread(f"{path}.latency", provider.latency, seconds)
        self._spread(f"{path}.error-latency", provider.error_latency, seconds)
        self._faults(provider, path)
        self._unique((f"{path}.credentials", index, it.name) for index, it in enumerate(provider.credentials))
        for number, credential in enumerate(provider.credentials):
            here = f"{path}.credentials[{number}]"
            self._name(credential.name, here)
            if credential.count < 1:
                self._say(f"{here}.count", "must be at least 1")
            if credential.latency is not None:
                self._spread(f"{here}.latency", credential.latency, seconds)
            self._faults(credential, here)

    def _faults(self, entry: ProviderEntry | CredentialEntry, path: str) -> None:
        for number, quota in enumerate(entry.quotas):
            here = f"{path}.quotas[{number}]"
            if quota.requests is None and quota.tokens is None:
                self._say(here, "says neither `requests` nor `tokens`")
            if any(limit is not None and limit < 0 for limit in (quota.requests, quota.tokens)):
                self._say(here, "limits are 0 or more")
            self._duration(f"{here}.start", quota.start)
            if self._duration(f"{here}.per", quota.per) == 0:
                self._say(f"{here}.per", "must be above 0")
        for number, outage in enumerate(entry.outages):
            here = f"{path}.outages[{number}]"
            self._span(here, outage.start, outage.end)
            self._status(f"{here}.status", str(outage.status))
            for name, value in (("after", outage.after), ("retry-after", outage.retry_after)):
                if value is not None:
                    self._duration(f"{here}.{name}", value)
        rates = entry.error_rates or {}
        for status, rate in rates.items():
            self._status(f"{path}.error-rates.{status}", status)
            if not 0 <= rate <= 1:
                self._say(f"{path}.error-rates.{status}", "is a share between 0 and 1")
        if sum(rates.values()) > 1:
            self._say(f"{path}.error-rates", "the shares add up to more than 1")

    def _workload(self, work: WorkloadEntry, path: str, duration_s: float) -> float:
        """How many requests are to be expected."""
        if not 0 < work.per_minute < 1e9:
            self._say(f"{path}.per-minute", "must be above 0")
            return 0.0
        if work.sessions < 0:
            self._say(f"{path}.sessions", "must be 0 or more")
        self._spread(f"{path}.tokens", work.tokens, count)
        start_s, end_s = self._span(path, work.start, work.end)
        return max(0.0, min(end_s, duration_s) - start_s) / 60 * work.per_minute

    def _span(self, path: str, start: Duration, end: Duration | None) -> tuple[float, float]:
        start_s = self._duration(f"{path}.from", start)
        end_s = None if end is None else self._duration(f"{path}.to", end)
        if start_s is not None and end_s is not None and end_s <= start_s:
            self._say(f"{path}.to", "must be later than `from`")
        return start_s or 0.0, float("inf") if end_s is None else end_s

    def _duration(self, path: str, value: Duration) -> float | None:
        try:
            return seconds(value)
        except ValueError as error:
            self._say(path, str(error))
            return None

    def _spread(self, path: str, value: Duration, number: Callable[[str], float]) -> None:
        try:
            parse_spread(value, number)
        except ValueError as error:
            self._say(path, str(error))

    def _status(self, path: str, status: str) -> None:
        if not (status.isascii() and status.isdigit() and (status == "0" or 400 <= int(status) <= 599)):
            self._say(path, "is a status from 400 to 599, or 0 for a refused connection")

    def _name(self, name: str, path: str) -> None:
        if not name or not name.isprintable() or "/" in name or len(name) > 64:
            self._say(f"{path}.name", "is a short printable name without a slash")

    def _unique(self, names: Iterator[tuple[str, int, str]]) -> None:
        seen: set[str] = set()
        for path, index, name in names:
            if name in seen:
                self._say(f"{path}[{index}].name", f"{name!r} is there already")
            seen.add(name)

    def _say(self, path: str, message: str) -> None:
        self.problems.append(Problem(self.file, self.line_of(path), f"`{path}`: {message}"))
