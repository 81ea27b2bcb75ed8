"""The short form of `make faults`: every fault once, under load, beside a neighbour that must not notice."""

import pytest

from tests.faults.scenarios import (
    PATIENT,
    REFUSED_COMMANDS,
    RUNNING_FAULTS,
    START_FAULTS,
    run_fault,
    run_kills,
    run_refused_command,
    run_start_fault,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # what the host runs on; the rest runs on both


@pytest.mark.parametrize("fault", RUNNING_FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_a_fault_under_load_is_clean_for_its_own_calls_and_unseen_by_others(fault, directory):
    assert (await run_fault(fault, directory, PATIENT)).problems == []


@pytest.mark.parametrize("mode", START_FAULTS)
async def test_a_plugin_that_breaks_while_it_starts_is_unseen_by_others(mode, directory):
    assert (await run_start_fault(mode, directory, PATIENT)).problems == []


@pytest.mark.parametrize("name", sorted(REFUSED_COMMANDS))
async def test_a_command_that_cannot_be_executed_is_unseen_by_others(name, directory):
    assert (await run_refused_command(name, directory, PATIENT)).problems == []


async def test_a_plugin_that_is_killed_five_times_under_load_is_ready_again_each_time(directory):
    outcome = await run_kills(5, directory, PATIENT)
    assert outcome.problems == []
    assert len(outcome.ready_again_s) == 5
