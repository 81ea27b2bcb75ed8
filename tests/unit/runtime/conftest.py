"""Benches for the runtime; what steps coroutines by hand has to hold on both event loops."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from host.runtime.callbacks import HostCallbacks
from host.tasks import TaskGroup
from tests.support.runtime import Bench, bench, new_callbacks

ON_BOTH_LOOPS = frozenset(
    {
        "test_callback_models.py",
        "test_callbacks.py",
        "test_drive.py",
        "test_inprocess.py",
        "test_inprocess_life.py",
        "test_inprocess_streams.py",
        "test_invoke.py",
    }
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Bench]:
    """A registry whose processes are scripted."""
    async with bench(tmp_path) as made:
        yield made


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


@pytest.fixture
def callbacks(tasks: TaskGroup) -> HostCallbacks:
    return new_callbacks(tasks)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's loop everywhere, uvloop as well for modules in `ON_BOTH_LOOPS`."""
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
