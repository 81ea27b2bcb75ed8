"""Short directories (a socket path has 100 bytes), signs of life, and a host to call back."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from host.runtime.guardian import Guardian
from host.runtime.process import ProcessPlugin
from host.tasks import TaskGroup
from tests.support.liveness import LifeSigns
from tests.support.processes import FAST, HostDouble, fault_spec


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


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


@pytest.fixture
async def guardian() -> AsyncIterator[Guardian]:
    guardian = Guardian()
    yield guardian
    await guardian.stop()


@pytest.fixture
async def plugins(directory: Path, host: HostDouble, tasks: TaskGroup) -> AsyncIterator[Callable[..., ProcessPlugin]]:
    """`plugins(mode, *options, **fields)` makes a plugin; all of them are stopped at the end."""
    made: list[ProcessPlugin] = []

    def make(mode: str = "healthy", *options: str, **fields: Any) -> ProcessPlugin:
        given = {
            name: fields.pop(name)
            for name in ("timings", "events", "guardian", "clock", "dice", "refusals")
            if name in fields
        }
        folder = directory / f"p{len(made)}"
        folder.mkdir()
        spec = fields.pop("spec", None) or fault_spec(folder, mode, *options, **fields)
        plugin = ProcessPlugin(spec, callbacks=host, tasks=tasks, **{"timings": FAST, **given})
        made.append(plugin)
        return plugin

    yield make
    for plugin in made:
        await plugin.stop()


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The host runs on uvloop where there is one, and on asyncio's own loop elsewhere: both must work."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
