"""A registry with real plugin processes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.runtime.timings import ProcessTimings
from tests.support.carriers import ALL, CARRIERS, CODE, Stage
from tests.support.runtime import Bench, process_bench


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench whose plugin processes are real."""
    timings = ProcessTimings(
        hello_s=60.0,
        connect_s=60.0,
        register_s=60.0,
        queue_wait_s=60.0,
        ping_unresponsive_s=30.0,
        ping_kill_s=60.0,
        backoff_min_s=0.01,
        backoff_max_s=0.02,
        stable_s=60.0,
    )
    async with process_bench(tmp_path, timings) as made:
        yield made


@pytest.fixture(params=list(CARRIERS))
async def plugin(request: pytest.FixtureRequest, stage: Bench) -> AsyncIterator[Stage]:
    lines = CARRIERS[request.param][0]
    permissions = "permissions = [" + ", ".join(f'"{name}"' for name in ALL) + "]"
    stage.inprocess_plugin(
        "p", CODE, manifest=f'{lines}\nentry = "plugin:P"\n{permissions}\n', helpers="PROVIDER = 'from-helpers'\n"
    )
    made = Stage(stage, request.param)
    await made.apply({"a": {"b": [1, "x"]}})
    yield made
