"""Fixtures of all tests: a clean environment and bounded waits."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import hypothesis
import pytest

T = TypeVar("T")
WAIT_S = 60.0
"""A bound, not an expectation: a crowded machine needs many times what a quiet one does."""

# A crowded machine takes its time over an example, and making one: neither says that the code is wrong. The examples
# are the same in every run, so that a failure is one for everybody; `make lives` looks for new ones.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize="LIVES" not in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy settings, keys or overrides of the developer's shell reach the code under test."""
    for name in list(os.environ):
        if name.startswith("JACKFIELD_") or name.lower().endswith("_proxy") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture
def within() -> Callable[[Awaitable[T]], Awaitable[T]]:
    """`await within(something())`: a bounded wait; a hang fails with a stack instead of blocking the run."""

    async def bounded(work: Awaitable[T]) -> T:
        async with asyncio.timeout(WAIT_S):
            return await work

    return bounded
