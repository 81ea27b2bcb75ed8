"""A fake provider and a plain HTTP client, for tests that need nothing special of them."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.fake_upstream import FakeUpstream, running_upstream
from tests.support.patience import patient_hooks

__all__ = ["patient_hooks"]


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with running_upstream() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session
