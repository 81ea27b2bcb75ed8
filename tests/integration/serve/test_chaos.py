"""The short form of `make chaos`: every fault once, while streams run through other plugins. No time is asserted."""

import tempfile
from pathlib import Path

import pytest

from tests.chaos.scenario import FAULTS, Options, run_once

SHORT = Options(streams=40, seconds=13.0, lead_s=1.5, strikes=1, host_core=None, other_core=None, ping_kill_ms=2000)
"""Not pinned, and nobody is taken for dead because the machine is busy."""
AWAY_S = 30.0
"""Generous: a restart that had to wait is still one."""
MEMORY_MB = 10.0


@pytest.mark.timeout(120)
async def test_a_plugin_that_misbehaves_in_every_way_is_unseen_by_the_streams_of_others():
    with tempfile.TemporaryDirectory(prefix="jf-") as directory:
        figures = await run_once(FAULTS, SHORT, Path(directory))
    assert figures.affected == []
    assert len(figures.ready_again_s) == sum(fault.deadly for fault in FAULTS)
    assert max(figures.ready_again_s) < AWAY_S
    assert figures.rss_growth_mb < MEMORY_MB
    assert figures.own_events > 0
