"""A state server of each test's own, and what its nodes talk to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.state import redis as shared
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PROBE_INTERVAL_S", 0.05)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as running:
        yield running
