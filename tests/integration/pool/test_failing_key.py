"""What the pool does when a key is refused, or its upstream says nothing."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.fake_upstream import Behaviour, running_upstream
from tests.support.families import CLAUDE
from tests.support.proxy import run_command, running_proxy


async def asked_over_a_failing_key(fault: Behaviour, folder: Path) -> tuple[int, list[str]]:
    """The status of a request whose first key fails, and the credentials that `jackfield explain` names."""
    async with running_upstream() as upstream:
        upstream.behave("m1", fault, Behaviour())
        config = CLAUDE.config(upstream.url, "k1", "k2", top={"timeouts": {"first-byte": "1s"}})
        async with running_proxy(config, directory=folder) as proxy, aiohttp.ClientSession() as client:
            path, body = CLAUDE.request()
            async with client.post(proxy.url + path, data=body) as response:
                status, request_id = response.status, response.headers["X-Request-Id"]
            printed = await run_command(proxy.config_file, "explain", request_id, "--json")
    decisions = json.loads(printed.stdout)["decisions"]
    return status, [it["fields"]["credential"] for it in decisions if it["kind"] == "attempt"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)


async def test_another_credential_answers_when_the_first_upstream_is_silent(folder: Path) -> None:
    status, _ = await asked_over_a_failing_key(Behaviour(hang=True), folder)
    assert status == 200


async def test_explain_tells_the_configured_keys_apart(folder: Path) -> None:
    status, credentials = await asked_over_a_failing_key(Behaviour(status=401), folder)
    assert status == 200
    assert len(set(credentials)) == 2
