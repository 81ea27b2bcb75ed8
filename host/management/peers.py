"""One answer for all workers: whichever of them is asked also asks the others, and puts the answers together."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from host.management.calls import Call, ManagementError, reply
from host.management.table import Endpoint, Handler
from host.observe.metrics import Metrics, PeerMetrics
from host.worker import ASKED_BY_A_WORKER

_ROW: Final = ("state", "reason", "pid", "restarts", "rss_bytes", "generation")
"""What a row says of each worker."""

_STATES: Final = ("applied", "applying", "failed")
"""The worst last."""
_LINE_TIME: Final = re.compile(r'"time":"([^"]+)"')

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What another worker answered."""

    worker: int
    status: int
    document: Mapping[str, Any]


PeerAnswers = Sequence[Answer]
Merge = Callable[[int, Document, PeerAnswers], Document]
"""`merge(own number, own document, the others)`: the document for all."""


class Peers(Protocol):
    """The other workers."""

    @property
    def number(self) -> int:
        """This worker's."""

    async def ask(self, method: str, path: str, body: Any = None) -> PeerAnswers:
        """Ask all of them. Those that are not there are left out; one that takes too long is status 504."""


def for_all_workers(endpoints: Iterator[Endpoint], peers: Peers | None) -> Iterator[Endpoint]:
    """The endpoints, answering for all workers where that makes a difference."""
    for endpoint in endpoints:
        merge = _MERGES.get((endpoint.method, endpoint.path))
        if peers is None or merge is None:
            yield endpoint
        else:
            handler = _fanned(endpoint.handler, peers, merge)
            yield replace(endpoint, handler=handler)


def _fanned(handler: Handler, peers: Peers, merge: Merge) -> Handler:
    async def handle(call: Call) -> web.StreamResponse:
        if call.local and call.headers.get(ASKED_BY_A_WORKER):
            return await handler(call)
        own: Document = {}
        failure: ManagementError | None = None
        try:
            answer = await handler(call)
            assert isinstance(answer, web.Response) and isinstance(answer.body, bytes)
            own = msgspec.json.decode(answer.body)
        except ManagementError as error:
            # What this worker does not know, another may: a request is remembered where it was served.
            failure = error
        target = call.request.raw_path.removeprefix("/v0/management") or "/"
        body = msgspec.json.decode(raw) if (raw := await call.body()) else None
        others = await peers.ask(call.method, target, body)
        good = [other for other in others if 200 <= other.status < 300]
        if failure is not None:
            silent = [other for other in others if other.status >= 500]
            if silent and not good:
                # Not to know is not the same as not to have been told.
                return reply({**silent[0].document, "worker": silent[0].worker}, status=silent[0].status)
            if not good or call.method != "GET":
                raise failure
            return reply(merge(good[0].worker, dict(good[0].document), good[1:]))
        bad = [other for other in others if other.status >= 400]
        if bad and call.method != "GET":
            return reply({**bad[0].document, "worker": bad[0].worker}, status=bad[0].status)
        return reply(merge(peers.number, own, good))

    return handle


def _all_plugins(number: int, own: Document, others: PeerAnswers) -> Document:
    elsewhere: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for other in others:
        for row in other.document["plugins"]:
            elsewhere.setdefault(row["id"], []).append((other.worker, row))
    rows = [_joined(number, row, elsewhere.get(row["id"], ())) for row in own["plugins"]]
    config = _config_of_all([own["config"], *(other.document["config"] for other in others)])
    return {**own, "config": config, "plugins": rows}


def _config_of_all(statuses: Sequence[Mapping[str, Any]]) -> Document:
    """How the newest configuration fared everywhere. What all have applied is as new as the newest of them says: who
    read the same text a moment earlier has the same."""
    worst = max(statuses, key=lambda it: (_STATES.index(it["state"]), it["generation"]))
    applied = [it["applied_generation"] for it in statuses]
    are_same = len({it.get("content") for it in statuses}) == 1
    return {
        **{name: value for name, value in worst.items() if name != "content"},
        "generation": max(it["generation"] for it in statuses),
        "applied_generation": max(applied) if are_same else min(applied),
        "applied_at": max(it["applied_at"] for it in statuses),
        "problems": list(dict.fromkeys(problem for it in statuses for problem in it["problems"])),
    }


def _one_plugin(number: int, own: Document, others: PeerAnswers) -> Document:
    return _joined(number, own, [(other.worker, other.document) for other in others])


def _joined(number: int, own: Mapping[str, Any], others: Sequence[tuple[int, Mapping[str, Any]]]) -> Document:
    """One row: counts are sums; the first worker that is not ready decides what the row says."""
    rows = sorted([(number, own), *others], key=lambda item: item[0])
    shown = next((row for _, row in rows if row.get("state") != "ready"), own)
    joined = {**own, "state": shown.get("state"), "reason": shown.get("reason")}
    for name in ("calls", "errors", "restarts"):
        if isinstance(own.get(name), int):
            joined[name] = sum(row.get(name) or 0 for _, row in rows)
    joined["workers"] = [
        {"worker": worker, **{name: row.get(name) for name in _ROW if name in row}} for worker, row in rows
    ]
    if shadows := [row["shadow"] for _, row in rows if row.get("shadow")]:
        joined["shadow"] = _all_of_shadow(shadows)
    return joined


def _all_of_shadow(shadows: Sequence[Mapping[str, Any]]) -> Document:
    """The shadow of each worker as one: counts are sums; the first that is not ready decides what is said of it."""
    joined = dict(next((it for it in shadows if it["state"] != "ready"), shadows[0]))
    for name in ("equal", "different", "error", "timeout", "dropped"):
        joined[name] = sum(it[name] for it in shadows)
    joined["refused"] = _sums(it["refused"] for it in shadows)
    methods = {method for it in shadows for method in it["methods"]}
    joined["methods"] = {method: _sums(it["methods"].get(method, {}) for it in shadows) for method in sorted(methods)}
    examples = [example for it in shadows for example in it["examples"]]
    joined["examples"] = sorted(examples, key=lambda example: str(example["at"]))
    joined["last_error"] = next((it["last_error"] for it in shadows if it["last_error"]), "")
    return joined


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _latest(number: int, own: Document, others: PeerAnswers) -> Document:
    found = [*own["requests"], *(row for other in others for row in other.document["requests"])]
    return {"requests": sorted(found, key=lambda row: row.get("started_at") or "", reverse=True)}


def _own(number: int, own: Document, others: PeerAnswers) -> Document:
    return own


def _log_lines(number: int, own: Document, others: PeerAnswers) -> Document:
    """Every list of lines, those of the other workers after ours, each with its worker."""
    joined = dict(own)
    for name, value in own.items():
        if isinstance(value, list):
            lists = [(number, value), *((other.worker, other.document.get(name) or []) for other in others)]
            joined[name] = [
                {**item, "worker": worker} if isinstance(item, dict) else item
                for worker, items in sorted(lists, key=lambda pair: pair[0])
                for item in items
            ]
    return joined


def _auth_files(number: int, own: Document, others: PeerAnswers) -> Document:
    """The files as this worker sees them, with the results of all."""
    elsewhere: dict[str, list[Mapping[str, Any]]] = {}
    for other in others:
        for row in other.document["files"]:
            elsewhere.setdefault(row["id"], []).append(row)
    return {"files": [_with_results(row, elsewhere.get(row["id"], ())) for row in own["files"]]}


def _with_results(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Document:
    joined = {**row, **{name: row[name] + sum(it[name] for it in others) for name in ("success", "failed")}}
    joined["recent_requests"] = [
        {"time": found[0]["time"], **{name: sum(it[name] for it in found) for name in ("success", "failed")}}
        for found in zip(row["recent_requests"], *(it["recent_requests"] for it in others), strict=False)
    ]
    return joined


def _errors(number: int, own: Document, others: PeerAnswers) -> Document:
    found = [*own["errors"], *(row for other in others for row in other.document["errors"])]
    return {"errors": sorted(found, key=lambda row: str(row["time"]), reverse=True)}


def _log_of_all(number: int, own: Document, others: PeerAnswers) -> Document:
    """The lines of all workers by their time. A cursor is one worker's, so readers go on by `after`."""
    lines = [*own["lines"], *(line for other in others for line in other.document["lines"])]
    latest = max(own["latest-timestamp"], *(other.document["latest-timestamp"] for other in others), 0)
    joined = {"lines": sorted(lines, key=_time_of), "line-count": len(lines), "latest-timestamp": latest}
    return {**joined, "cursor-reset": True}


def _time_of(line: str) -> str:
    found = _LINE_TIME.search(line)
    return found[1] if found is not None else ""


def _counters(number: int, own: Document, others: PeerAnswers) -> Document:
    return {
        provider: {
            key: _with_results(row, [it for it in (o.document.get(provider, {}).get(key) for o in others) if it])
            for key, row in rows.items()
        }
        for provider, rows in own.items()
    }


_MERGES: Final[Mapping[tuple[str, str], Merge]] = {
    ("GET", "/plugins"): _all_plugins,
    ("GET", "/plugins/{id}"): _one_plugin,
    ("GET", "/plugins/{id}/logs"): _log_lines,
    ("POST", "/plugins/{id}/reload"): _own,
    ("POST", "/plugins/{id}/reset"): _own,
    ("GET", "/auth-files"): _auth_files,
    ("POST", "/reset-quota"): _own,
    ("GET", "/request-errors"): _errors,
    ("GET", "/api-key-usage"): _counters,
    ("GET", "/logs"): _log_of_all,
    ("DELETE", "/logs"): _own,
    ("GET", "/requests"): _latest,
    ("GET", "/requests/{id}"): _own,
}


class MetricsGatherer:
    """`/metrics` of all workers."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @property
    def number(self) -> int:
        return self._peers.number

    async def __call__(self) -> Sequence[PeerMetrics]:
        """The text of every other worker that answers."""
        answers = await self._peers.ask("GET", "/metrics-text")
        return [(it.worker, it.document["text"]) for it in answers if it.status == 200]


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """For the other workers."""

    async def handle(call: Call) -> web.StreamResponse:
        return reply({"text": metrics.text()})

    return Endpoint("GET", "/metrics-text", handle)
