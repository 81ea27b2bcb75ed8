"""The kit in an author's own suite: `pytest_plugins = ["pluginapi.conformance.pytest_plugin"]`, and then

@pytest.fixture(scope="session")
def conformance_target():
    return target_of_folder(Path(__file__).parent.parent)

def test_contract(conformance_check):   # one test per check
    conformance_check()
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pluginapi.conformance.bench import Options
from pluginapi.conformance.checks import CHECKS
from pluginapi.conformance.outcome import Report
from pluginapi.conformance.runner import run
from pluginapi.conformance.target import Target, target_of_folder


@pytest.fixture(scope="session")
def conformance_target(request: pytest.FixtureRequest) -> Target:
    """What is tested: the folder in which pytest runs. Override it for another one."""
    return target_of_folder(Path(request.config.rootpath))


@pytest.fixture(scope="session")
def conformance_options() -> Options:
    """How: override it for a configuration, samples, a level or a timeout."""
    return Options()


@pytest.fixture(scope="session")
def conformance_report(conformance_target: Target, conformance_options: Options) -> Report:
    """The report of one run, shared by all tests."""
    return asyncio.run(run(conformance_target, conformance_options))


@pytest.fixture(params=[check.id for check in CHECKS])
def conformance_check(request: pytest.FixtureRequest, conformance_report: Report) -> Callable[[], None]:
    """For each check a function that passes, fails or skips the test."""

    def verify() -> None:
        outcome = next((outcome for outcome in conformance_report.outcomes if outcome.id == request.param), None)
        if outcome is None:
            pytest.skip(f"not part of the level {conformance_report.level}")
        elif outcome.verdict == "skip":
            pytest.skip(outcome.reason)
        elif outcome.verdict == "fail":
            stderr = "".join(f"\nstderr: {line}" for line in outcome.stderr)
            pytest.fail(f"{outcome.sentence}\nexpected {outcome.expected}\ngot {outcome.got}{stderr}", pytrace=False)

    return verify
