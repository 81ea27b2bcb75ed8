"""Prometheus metrics in a registry of their own.

Counting happens in plain Python numbers on the event loop and costs well under a microsecond; the library's own
counters take a lock for every step. `prometheus_client` renders them when `/metrics` is read.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder, generate_latest
from prometheus_client.registry import Collector

DURATION_BUCKETS_S: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PLUGIN_BUCKETS_S: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MAX_SERIES: Final = 5000
"""Label sets of one metric; further ones are counted under `other`, so that a client cannot fill the memory."""
_OTHER: Final = "other"


class _Histogram:
    __slots__ = ("buckets", "count", "sum")

    def __init__(self, size: int) -> None:
        self.buckets = [0] * (size + 1)
        self.count = 0
        self.sum = 0.0


class _Histograms:
    """One histogram per label set."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], _Histogram] = {}

    def observe(self, labels: tuple[str, ...], seconds: float) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._new(labels)
        series.buckets[bisect_left(self._bounds, seconds)] += 1
        series.count += 1
        series.sum += seconds

    def series(self) -> Iterator[tuple[tuple[str, ...], _Histogram]]:
        """Every label set and its histogram."""
        yield from self._series.items()

    def _new(self, labels: tuple[str, ...]) -> _Histogram:
        if len(self._series) >= _MAX_SERIES:
            labels = (_OTHER,) * len(self._labels)
            if labels in self._series:
                return self._series[labels]
        return self._series.setdefault(labels, _Histogram(len(self._bounds)))

    def collect(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in self._series.items():
            below = 0
            rows: list[tuple[str, float]] = []
            for bound, count in zip((*self._bounds, float("inf")), series.buckets, strict=True):
                below += count
                rows.append(("+Inf" if bound == float("inf") else repr(bound), below))
            family.add_metric(labels, rows, sum_value=series.sum)
        return family


class HookStats(Struct, frozen=True, kw_only=True):
    """Calls of one plugin's hook since the proxy started; percentiles are estimated from the histogram's buckets."""

    calls: int
    errors: int
    """Every outcome but `ok` and `cancelled`."""
    outcomes: Mapping[str, int]
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class PluginMetrics:
    """Calls to plugins: `observe` is called once per call by the door to plugin code."""

    def __init__(self) -> None:
        self._calls = _Histograms(
            "jackfield_plugin_call_seconds",
            "Time of calls to plugins.",
            ("plugin", "method", "outcome"),
            PLUGIN_BUCKETS_S,
        )
        self.refused: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        """Counts by plugin and by what it tried and was refused."""

    def observe(self, plugin_id: str, method: str, outcome: str, seconds: float) -> None:
        """One call; the outcomes are those of `host.runtime.invoke.CallObserver`."""
        self._calls.observe((plugin_id, method, outcome), seconds)

    def hooks(self) -> dict[str, dict[str, HookStats]]:
        """Plugin -> hook -> its calls; `<method>:items` is the time from a stream's result to its end."""
        found: dict[str, dict[str, dict[str, _Histogram]]] = {}
        for (plugin_id, method, outcome), series in self._calls.series():
            found.setdefault(plugin_id, {}).setdefault(method, {})[outcome] = series
        return {
            plugin_id: {method: _hook_stats(outcomes) for method, outcomes in sorted(methods.items())}
            for plugin_id, methods in found.items()
        }

    def collect(self) -> Iterable[Metric]:
        yield self._calls.collect()
        refused = CounterMetricFamily(
            "jackfield_plugin_refused", "What plugins tried and were refused.", labels=("plugin", "what")
        )
        for plugin_id, counts in self.refused().items():
            for what, count in counts.items():
                refused.add_metric((plugin_id, what), count)
        yield refused


PeerMetrics = tuple[int, str]
"""Number of a worker, and its metrics as text."""


class Gatherer(Protocol):
    """Asks the other workers."""

    @property
    def number(self) -> int:
        """This worker's."""

    async def __call__(self) -> Sequence[PeerMetrics]: ...


def joined_texts(texts: Sequence[PeerMetrics]) -> str:
    """One exposition of several: each family once, every sample with the label `worker`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
                continue
            name, brace, rest = line.partition("{")
            if brace:
                labelled = f'{name}{{worker="{number}",{rest}'
            else:
                name, _, value = line.partition(" ")
                labelled = f'{name}{{worker="{number}"}} {value}'
            samples.setdefault(family, []).append(labelled)
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return "\n".join(lines) + "\n"


class Metrics(Collector):
    """All metrics of one host process. Not thread-safe: call it on the event loop."""

    def __init__(self) -> None:
        self.plugins = PluginMetrics()
        self.registry = CollectorRegistry(auto_describe=False)
        self.gather: Gatherer | None = None
        self._in_flight = 0
        self._requests: dict[tuple[str, int, str], int] = {}
        self._durations = _Histograms(
            "jackfield_request_seconds", "Time from request to last byte.", ("endpoint",), DURATION_BUCKETS_S
        )
        self._first_bytes = _Histograms(
            "jackfield_first_byte_seconds", "Time from request to the first byte.", ("endpoint",), DURATION_BUCKETS_S
        )
        self.registry.register(self)

    @property
    def in_flight(self) -> int:
        """Requests being served now."""
        return self._in_flight

    def request_started(self) -> None:
        """A request came in."""
        self._in_flight += 1

    def request_finished(
        self, endpoint: str, status: int, caller: str, seconds: float, first_byte_seconds: float | None
    ) -> None:
        """A request has ended; `caller` is the name of its key, never the key."""
        self._in_flight -= 1
        key = (endpoint, status, caller)
        requests = self._requests
        if key not in requests and len(requests) >= _MAX_SERIES:
            key = (endpoint, status, _OTHER)
        requests[key] = requests.get(key, 0) + 1
        self._durations.observe((endpoint,), seconds)
        if first_byte_seconds is not None:
            self._first_bytes.observe((endpoint,), first_byte_seconds)

    def collect(self) -> Iterable[Metric]:
        """Everything as metric families, for the registry."""
        requests = CounterMetricFamily(
            "jackfield_requests", "Requests by endpoint, status and caller.", labels=("endpoint", "status", "caller")
        )
        for (endpoint, status, caller), count in self._requests.items():
            requests.add_metric((endpoint, str(status), caller), count)
        yield requests
        yield GaugeMetricFamily("jackfield_requests_in_flight", "Requests being served now.", value=self._in_flight)
        yield self._durations.collect()
        yield self._first_bytes.collect()
        yield from self.plugins.collect()

    async def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body of `/metrics`, in the format that `accept` asks for.

        With several workers it is the classic text format, and every sample says whose it is (`worker`).
        """
        if self.gather is None:
            encode, content_type = choose_encoder(accept)
            return content_type, encode(self.registry)
        texts = [(self.gather.number, self.text()), *await self.gather()]
        return CONTENT_TYPE_LATEST, joined_texts(sorted(texts)).encode()

    def text(self) -> str:
        """This process's metrics in the classic text format."""
        return generate_latest(self.registry).decode()


def _hook_stats(outcomes: Mapping[str, _Histogram]) -> HookStats:
    counts = {outcome: series.count for outcome, series in sorted(outcomes.items())}
    calls = sum(counts.values())
    buckets = [sum(column) for column in zip(*(series.buckets for series in outcomes.values()), strict=True)]
    return HookStats(
        calls=calls,
        errors=sum(count for outcome, count in counts.items() if outcome not in ("ok", "cancelled")),
        outcomes=counts,
        mean_ms=round(sum(series.sum for series in outcomes.values()) * 1000 / calls, 3),
        p50_ms=_quantile_ms(buckets, 0.5),
        p95_ms=_quantile_ms(buckets, 0.95),
        p99_ms=_quantile_ms(buckets, 0.99),
    )


def _quantile_ms(buckets: Sequence[int], quantile: float) -> float:
    """As Prometheus estimates it: evenly spread within a bucket; beyond the last bound, that bound."""
    wanted = sum(buckets) * quantile
    below = 0
    lower_s = 0.0
    for bound_s, count in zip(PLUGIN_BUCKETS_S, buckets, strict=False):
        if count and below + count >= wanted:
            return round((lower_s + (bound_s - lower_s) * (wanted - below) / count) * 1000, 3)
        below += count
        lower_s = bound_s
    return round(PLUGIN_BUCKETS_S[-1] * 1000, 3)
