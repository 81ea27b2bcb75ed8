"""The short form of `make upgrade`: a plugin is replaced under load, by good versions and by broken ones."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.upgrade.scenario import MAX_GENERATIONS, Options, run_upgrades

SHORT = Options(
    requests=750, upgrades=15, calm_requests=0, callers=4, longest_every=200, longest_events=15, broken_every=3
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("carrier", ["process", "inprocess"])
async def test_no_request_and_no_event_of_a_stream_is_lost_or_seen_twice_while_a_plugin_is_replaced(carrier):
    with tempfile.TemporaryDirectory(prefix="jf-") as directory:
        options = replace(SHORT, carrier=carrier)
        report = await run_upgrades(options, Path(directory))
    assert report.problems == []
    assert (report.requests, report.lost, report.duplicated, report.failed) == (SHORT.requests, 0, 0, 0)
    assert report.upgrades.total() == SHORT.upgrades
    assert report.upgrades["refused"] == SHORT.upgrades // 3
    assert report.generations_max <= MAX_GENERATIONS
