"""Every broken plugin fails the checks of the rule it breaks, and no other check."""

import sys
from pathlib import Path

import pytest

from pluginapi.conformance import Options, Report, Target, run, target_of_command

BROKEN = Path(__file__).with_name("broken")

FAILS: dict[str, set[str]] = {
    "answers_twice": {"calls.closed_once"},
    "answers_unknown_methods": {"calls.unknown_method"},
    "blocks_its_reader": {"ping.answered"},
    "changing_hello": {"hello.constant", "describe.same"},
    "cut_json": {"frames.valid"},
    "describe_differs": {"describe.same"},
    "dies_of_late_cancel": {"calls.deadline", "cancel.closed", "cancel.at_once"},
    "dies_of_oversize": {"frames.oversize"},
    "dies_of_unknown_fields": {"frames.unknown_fields"},
    "dies_of_unknown_kinds": {"frames.unknown_kind"},
    "does_not_listen": {"socket.opened"},
    "drops_unknown_methods": {"calls.unknown_method", "calls.beside"},
    "drops_when_cancelled_early": {"cancel.at_once", "calls.deadline"},
    "error_as_string": {"errors.well_formed"},
    "error_without_message": {"errors.well_formed"},
    "forgets_cancelled": {"cancel.closed"},
    "future_abi": {"hello.versions"},
    "huge_answer": {"frames.size"},
    "ignores_eof": {"exit.stdin"},
    "ignores_term": {"exit.term"},
    "invented_method": {"hello.capabilities"},
    "invents_ids": {"calls.known_ids"},
    "item_after_end": {"calls.closed_once"},
    "item_before_result": {"streams.order", "streams.credit"},
    "leaves_child": {"exit.children"},
    "lets_strangers_in": {"socket.token"},
    "missing_schema": {"hello.fields"},
    "never_pongs": {"ping.answered"},
    "no_describe": {"describe.exits", "describe.same"},
    "no_features": {"hello.features"},
    "no_hello": {"hello.answered"},
    "no_shutdown": {"exit.shutdown"},
    "odd_inputs": {"hello.inputs"},
    "one_at_a_time": {"calls.beside", "streams.credit"},
    "overruns_credit": {"streams.credit"},
    "pongs_unasked": {"frames.kinds"},
    "prints_on_stdout": {"stdout.clean"},
    "promises_more": {"register.accepted"},
    "quits_on_goaway": {"goaway.finishes"},
    "repeats_callback_ids": {"callbacks.well_formed"},
    "says_hello_twice": {"frames.kinds"},
    "serial": {"calls.parallel"},
    "silent_by_hand": {"terminal.sentence"},
    "small_appetite": {"frames.large", "frames.oversize"},
    "splits_at_unicode": {"frames.line_ends"},
    "status_200_error": {"errors.well_formed"},
    "status_as_string": {"errors.well_formed"},
    "streams_unasked": {"streams.order"},
    "wrong_id": {"hello.id"},
    "wrong_shape": {"calls.answered"},
}
WAIT_IN_VAIN = {
    "drops_unknown_methods",
    "drops_when_cancelled_early",
    "forgets_cancelled",
    "ignores_eof",
    "ignores_term",
    "lets_strangers_in",
    "never_pongs",
    "no_hello",
    "no_shutdown",
    "one_at_a_time",
    "silent_by_hand",
}
"""What these should say or do never comes: a short timeout, and a longer one where that is too short for what comes.

The others answer, however busy the machine is.
"""
WAITS_S = (1.0, 5.0, 20.0)


def target_of(name: str) -> Target:
    over_socket = name in ("does_not_listen", "lets_strangers_in")
    command = (sys.executable, "-S", "-B", str(BROKEN / f"{name}.py"))
    return target_of_command(command, plugin_id="broken", transport="unix" if over_socket else "stdio")


async def report_of(name: str) -> Report:
    level = "full" if name == "no_features" else "auto"
    if name not in WAIT_IN_VAIN:
        return await run(target_of(name), Options(level=level, timeout_s=60.0))
    for timeout_s in WAITS_S:
        report = await run(target_of(name), Options(level=level, timeout_s=timeout_s))
        if {outcome.id for outcome in report.failed} <= FAILS[name]:
            break
    return report


def explained(report: Report) -> str:
    return "; ".join(f"{outcome.id}: expected {outcome.expected}, got {outcome.got}" for outcome in report.failed)


async def test_the_plugin_that_the_broken_ones_are_made_of_keeps_the_whole_contract():
    report = await run(target_of("plugin"), Options())
    assert report.ok, explained(report)
    assert report.level == "full"
    skipped = {outcome.id for outcome in report.outcomes if outcome.verdict == "skip"}
    assert skipped == {"hello.inputs", "socket.opened", "socket.token"}


async def test_it_keeps_the_minimal_level_as_well_when_the_host_offers_no_features():
    report = await run(target_of("plugin"), Options(level="minimal"))
    assert report.ok, explained(report)
    assert not any(outcome.id.startswith(("cancel.", "ping.", "describe.")) for outcome in report.outcomes)


async def test_it_keeps_the_contract_over_a_socket():
    target = target_of_command(target_of("plugin").command, plugin_id="broken", transport="unix")
    report = await run(target, Options())
    assert report.ok, explained(report)
    assert {outcome.id: outcome.verdict for outcome in report.outcomes}["socket.token"] == "pass"


def test_every_broken_plugin_is_listed():
    assert {path.stem for path in BROKEN.glob("*.py")} - {"plugin"} == set(FAILS)


@pytest.mark.parametrize("name", sorted(FAILS))
async def test_a_broken_plugin_fails_for_the_rule_it_breaks_and_for_nothing_else(name):
    report = await report_of(name)
    assert {outcome.id for outcome in report.failed} == FAILS[name], explained(report)
    assert all(outcome.expected and outcome.got for outcome in report.failed)
