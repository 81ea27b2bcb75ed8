"""What steps coroutines by hand has to hold on both event loops."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

ON_BOTH_LOOPS = frozenset({"test_drive.py", "test_inprocess.py", "test_invoke.py", "test_callbacks.py"})


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's loop everywhere, uvloop as well for modules in `ON_BOTH_LOOPS`."""
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
