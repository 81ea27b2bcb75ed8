"""No attack of a hostile plugin comes through, and each is seen where it should be; the table is `make hostile`."""

import os

import pytest

from tests.hostile.stage import hostile_stage
from tests.hostile.table import ATTEMPTS
from tests.hostile.trial import BREACH, NOT_ENFORCEABLE, attempt_rows

HARMLESS = (
    "read the configuration",
    "read it through a link in its own folder",
    "read a credential file",
    "read the host's command line",
    "read the host's limits",
    "signal the host",
    "connect by TCP",
    "connect to the control socket",
    "connect to an abstract socket",
)


async def test_every_attack_is_refused_and_reported():
    rows = [row async for row in attempt_rows()]
    assert len(rows) > 120
    assert [row for row in rows if row.verdict == BREACH] == []
    unseen = [row for row in rows if row.problem and row.verdict != NOT_ENFORCEABLE]
    assert unseen == []
    weak = [row for row in rows if row.verdict == NOT_ENFORCEABLE]
    if weak and os.environ.get("CI") != "true":
        pytest.skip(f"not enforceable on this kernel: {', '.join(row.name for row in weak)}")
    assert weak == []


async def test_the_attacks_are_real_they_come_through_without_confinement():
    async with hostile_stage(confinement="off") as stage:
        for attempt in ATTEMPTS:
            if attempt.name in HARMLESS:
                found = await stage.attack(attempt.by, attempt.attack, attempt.args(stage))
                assert "got" in found, (attempt.name, found)
        assert stage.status("hostile").refused == {}
