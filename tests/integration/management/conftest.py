"""A short directory, because sockets lie in it."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.management import Managed, managed_proxy


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        # The control socket of one test is never that of another.
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)


@pytest.fixture
async def managed_router(directory: Path) -> AsyncIterator[Managed]:
    """A proxy with one plugin, `router`."""
    code = "class P(Plugin):\n    async def model_route(self, request, ctx):\n        return None\n"
    async with managed_proxy(directory, {"router": code}) as managed:
        yield managed
