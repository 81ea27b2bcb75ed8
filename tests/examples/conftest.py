"""The examples in compiled languages are built once, before the first test of this folder; what examples talk to."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.example_languages import build_examples
from tests.support.fake_upstream import FakeUpstream, running_upstream
from tests.support.patience import patient_hooks

__all__ = ["patient_hooks"]


@pytest.fixture(scope="session", autouse=True)
def _built_examples() -> None:
    build_examples()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with running_upstream() as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        yield session
