"""Of several workers whoever is asked answers for all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

import host.peers
from host.config.model import Config, RemoteManagement
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.management.calls import Call, reply
from host.management.masks import Masks
from host.management.peers import Answer, MetricsGatherer, for_all_workers
from host.management.records import Records
from host.management.table import Endpoint, Handler
from host.management.usage import UsageEndpoints
from host.observe.logfile import LogFiles
from host.peers import ControlPeers
from host.worker import Worker
from pluginabi.immutable import freeze_headers
from pluginabi.payloads.usage import UsageHandleRequest
from tests.support.client_request import REQUEST


@dataclass
class Others:
    """Two other workers that answer as they were told."""

    documents: Sequence[Any]
    number: int = 1
    late: int = 0
    """The one that does not answer in time."""
    asked: list[str] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: Any = None) -> list[Answer]:
        self.asked.append(path)
        return [
            Answer(number, 504, {"error": "late"}) if number == self.late else Answer(number, 200, document)
            for number, document in enumerate(self.documents, 2)
        ]


def call(**query: str) -> Call:
    request: Any = type("Request", (), {"raw_path": "/v0/management/x", "transport": None})()
    made = Call(method="GET", path="/x", request=request, request_id="m1", caller="key")
    made.query = freeze_headers(query.items())
    made._body = b""
    return made


async def answered(endpoint: Endpoint, **query: str) -> Any:
    answer = await endpoint.handler(call(**query))
    assert isinstance(answer, web.Response) and isinstance(answer.body, bytes)
    return msgspec.json.decode(answer.body)


def status(state: str, generation: int, applied: int, content: str, *problems: str) -> dict[str, Any]:
    facts = {"state": state, "generation": generation, "applied_generation": applied, "content": content}
    return {**facts, "applied_at": str(applied), "problems": list(problems)}


def saying(document: Any) -> Handler:
    async def handle(call: Call) -> web.Response:
        return reply(document)

    return handle


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([("applied", 7, 7, "b"), ("applied", 6, 6, "b"), ("applied", 8, 8, "b")], ("applied", 8, 8)),
        ([("applied", 7, 7, "b"), ("applied", 5, 5, "a"), ("applied", 8, 8, "b")], ("applied", 8, 5)),
        ([("applied", 7, 7, "b"), ("applying", 8, 5, "a"), ("applied", 8, 8, "b")], ("applying", 8, 5)),
        ([("applied", 7, 7, "b"), ("applying", 8, 5, "a"), ("failed", 6, 4, "a", "why")], ("failed", 8, 4)),
    ],
)
async def test_a_configuration_is_in_force_when_it_is_with_all_workers(
    statuses: list[Any], expected: tuple[str, int, int]
) -> None:
    own, *others = ({"plugins": [], "config": status(*it)} for it in statuses)
    fanned = next(for_all_workers(iter([Endpoint("GET", "/plugins", saying(own))]), Others(others)))
    found = (await answered(fanned))["config"]
    assert (found["state"], found["generation"], found["applied_generation"]) == expected
    assert "content" not in found
    assert found["problems"] == (["why"] if expected[0] == "failed" else [])


async def test_usage_of_all_workers_comes_by_time_and_what_is_too_much_waits_for_the_next_call() -> None:
    config = Config(usage_statistics_enabled=True, remote_management=RemoteManagement(secret_key="k"))
    records = Records(lambda: config)
    account = Credential(id="a", provider="p", label="a")
    records.used(UsageHandleRequest(requested_at="3"), account, request=REQUEST)
    others = Others([{"records": [{"timestamp": "1"}, {"timestamp": "5"}]}, {"records": [{"timestamp": "2"}]}])
    usage: Any = UsageEndpoints(
        records,
        CredentialManager(),
        Masks(lambda: b"", plugin_secrets=lambda plugin_id, section: frozenset()),
        state=lambda: None,  # type: ignore[arg-type, return-value]
        files=LogFiles(),
        peers=others,
    )
    take = usage.endpoints()[0]
    assert [it["timestamp"] for it in await answered(take, count="3")] == ["1", "2", "3"]
    assert others.asked == ["/usage-queue?count=2"]
    others.documents = []
    assert [it["timestamp"] for it in await answered(take, count="9")] == ["5"]


async def test_results_of_credentials_are_summed_and_failures_are_put_in_order() -> None:
    bucket = {"time": "00:00-00:10", "success": 1, "failed": 0}
    row = {"id": "a", "success": 1, "failed": 2, "recent_requests": [bucket]}
    errors = {"errors": [{"time": "1"}]}
    own = {"/auth-files": {"files": [row]}, "/api-key-usage": {"p": {"k": row}}, "/request-errors": errors}
    theirs = {"/auth-files": {"files": [row]}, "/api-key-usage": {}, "/request-errors": {"errors": [{"time": "2"}]}}

    async def merged(path: str) -> Any:
        async def handle(call: Call) -> web.Response:
            return web.Response(body=msgspec.json.encode(own[path]))

        (endpoint,) = for_all_workers(iter([Endpoint("GET", path, handle)]), Others([theirs[path], theirs[path]]))
        return await answered(endpoint)

    (summed,) = (await merged("/auth-files"))["files"]
    assert (summed["success"], summed["failed"], summed["recent_requests"][0]["success"]) == (3, 6, 3)
    assert (await merged("/api-key-usage"))["p"]["k"]["success"] == 1
    assert [it["time"] for it in (await merged("/request-errors"))["errors"]] == ["2", "2", "1"]


async def test_a_worker_that_does_not_answer_in_time_is_missing_in_the_metrics_and_fails_nothing() -> None:
    others = Others([{"text": "a"}, {"text": "b"}], late=2)
    assert await MetricsGatherer(others)() == [(3, "b")]


async def test_a_worker_that_is_asked_to_do_something_has_longer_for_it_than_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    limits: list[float] = []

    def mute(config_path: Path, method: str, path: str, **fields: Any) -> tuple[int, dict[str, str]]:
        limits.append(fields["timeout_s"])
        return 504, {"error": f"the running proxy did not answer within {fields['timeout_s']:g} s"}

    monkeypatch.setattr(host.peers, "ask", mute)
    peers = ControlPeers(tmp_path / "config.yaml", Worker(1, 2))
    with capture_logs() as lines:
        (changed,) = await peers.ask("POST", "/plugins/p/reload")
        assert (lines, changed.status) == ([], 504)
        (shown,) = await peers.ask("GET", "/plugins")
    assert (shown.worker, shown.status) == (2, 504)
    assert [(line["event"], line["worker"]) for line in lines] == [("worker.unreachable", 2)]
    assert limits[0] > limits[1]
