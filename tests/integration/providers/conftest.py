"""A fake provider and a plain HTTP client; the proxies between them are made by each test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pytest
import uvloop

from tests.support.families import FAMILIES, Family


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Sends and receives bytes as they are: nothing is decompressed, no header is added but `Host` and framing."""
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        headers=headers,
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=60),
    ) as session:
        yield session


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On the loop that `serve` runs on."""
    return {"uvloop": uvloop.new_event_loop}
