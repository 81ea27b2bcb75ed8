"""A web layer on a real socket."""

from collections.abc import AsyncIterator

import pytest

from tests.support.web import Proxy, running


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with running() as served:
        yield served
