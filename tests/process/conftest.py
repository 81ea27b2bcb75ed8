"""Short directories (a socket path has 100 bytes), signs of life, and a host to call back."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.liveness import LifeSigns
from tests.support.processes import HostDouble


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="jf-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def life(directory: Path) -> AsyncIterator[LifeSigns]:
    async with LifeSigns(directory) as signs:
        yield signs


@pytest.fixture
def host() -> HostDouble:
    return HostDouble()
