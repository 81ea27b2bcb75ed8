"""What requests and credentials did, over HTTP: usage records, failures, counters, the log."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_upstream import Behaviour, running_upstream
from tests.support.logged import logged_lines
from tests.support.management import Managed, managed_proxy


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """The log of the process as JSON lines."""
    with logged_lines() as stream:
        yield stream


def compat(url: str) -> list[dict[str, Any]]:
    models = [{"name": name} for name in ("m-one", "m-two", "m-bad")]
    keys = [{"api-key": "sk-upstream-secret-1"}]
    return [{"name": "Acme", "base-url": f"{url}/v1", "api-key-entries": keys, "models": models}]


async def chat(managed: Managed, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": "Bearer client-secret-1"}
    answer = await managed.api.call("POST", "/v1/chat/completions", below="", json=body, headers=headers)
    return answer.status


async def test_J6_J7_usage_is_fetched_oldest_first_once_and_failures_are_remembered(directory: Path) -> None:
    async with running_upstream() as upstream:
        upstream.behave("m-bad", Behaviour(status=400, error={"error": {"message": "no: api_key=sk-very-secret-123"}}))
        fields: dict[str, Any] = {
            "openai_compatibility": compat(upstream.url),
            "api_keys": [{"key": "client-secret-1", "name": "Bob"}],
            "usage_statistics_enabled": True,
        }
        async with managed_proxy(directory, **fields) as managed:
            api = managed.api
            for count in ("0", "-1", "many"):
                refused = await api.get(f"/usage-queue?count={count}")
                assert refused.error == (400, "count must be a positive integer")
            assert [await chat(managed, model) for model in ("m-one", "m-two", "m-bad")] == [200, 200, 400]
            assert (await api.call("HEAD", "/usage-queue?count=3")).status == 405
            first, second = (await api.get("/usage-queue?count=2")).json
            assert (first["model"], second["model"]) == ("m-one", "m-two")
            assert (first["api_key"], first["provider"], first["failed"]) == ("Bob", "openai-compatible-acme", False)
            assert first["tokens"]["total_tokens"] > 0 and len(first["auth_index"]) == 16
            failed = await api.get("/usage-queue")
            assert [it["fail"]["status_code"] for it in failed.json] == [400]
            assert (await api.get("/usage-queue?count=9")).json == []
            errors = await api.get("/request-errors")
            (error,) = errors.json["errors"]
            assert (error["status"], error["model"], error["credential"], error["caller"]) == (
                400,
                "m-bad",
                "Acme",
                "Bob",
            )
            assert error["request_id"] and error["auth_index"] == first["auth_index"]
            counters = await api.get("/api-key-usage")
            ((key, counted),) = counters.json["acme"].items()
            assert key.startswith(f"{upstream.url}/v1|***-") and counted["success"] == 2
            for answer in (failed, errors, counters):
                assert b"secret" not in answer.body
            assert await chat(managed, "m-one") == 200
            switched = await api.call("PUT", "/usage-statistics-enabled", json={"value": False})
            assert switched.status == 200
            await managed.settled()
            assert (await api.get("/usage-queue?count=9")).json == []
            models = (await api.get("/model-definitions/openai-compatible-acme")).json["models"]
            assert [model["id"] for model in models] == ["m-bad", "m-one", "m-two"]
            assert (await api.get("/model-definitions/nobody")).error == (400, "unknown channel")


async def test_the_log_is_read_from_where_it_was_left_and_goes_to_files_as_well(
    directory: Path, logged: io.StringIO
) -> None:
    async with managed_proxy(directory) as managed:
        api = managed.api
        tail = (await api.get("/logs?limit=1000")).json
        assert any(json.loads(line)["event"] == "proxy.ready" for line in tail["lines"])
        assert tail["line-count"] == len(tail["lines"]) and tail["latest-timestamp"] > 1_600_000_000
        await api.call("PUT", "/request-retry", json={"value": 1})
        more = (await api.get(f"/logs?cursor={tail['next-cursor']}")).json
        assert not more["cursor-reset"] and "management.write" in str(more["lines"])
        assert not set(more["lines"]) & set(tail["lines"])
        assert (await api.get(f"/logs?cursor={more['next-cursor'] + 1000}")).json["cursor-reset"]
        await api.call("PUT", "/logging-to-file", json={"value": True})
        await managed.settled()
        await api.call("PUT", "/request-retry", json={"value": 2})
        await api.get("/logs")
        file = directory / "logs" / "jackfield.log"
        assert '"path":"/request-retry"' in file.read_text() and file.stat().st_mode & 0o777 == 0o600
        assert (await api.call("DELETE", "/logs")).json["success"]
        # Whoever watches the configuration may have said something since.
        assert "/request-retry" not in file.read_text()
        assert "/request-retry" not in str((await api.get("/logs")).json["lines"])
        await api.call("PUT", "/logging-to-file", json={"value": False})
        await managed.settled()
        file.write_text("")
        await api.call("PUT", "/request-retry", json={"value": 3})
        await api.get("/logs")
        assert file.read_text() == ""
