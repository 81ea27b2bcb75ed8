"""Configurations are applied one at a time, and the newest wins."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from host.config.load import LoadedConfig, Problem
from host.config.model import Config
from host.management.applier import ConfigApplier
from host.tasks import TaskGroup


class Target:
    """Where configurations are applied; named by their port."""

    def __init__(self) -> None:
        self.applied: list[int] = []
        self.go = asyncio.Event()
        self.go.set()
        self.begun = asyncio.Event()
        self.problem: str | None = None

    async def __call__(self, loaded: LoadedConfig) -> str | None:
        self.begun.set()
        await self.go.wait()
        self.applied.append(loaded.config.port)
        return self.problem


def config(port: int) -> LoadedConfig:
    return LoadedConfig(Config(port=port), (), "")


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("applier")
    yield group
    await group.stop()


async def test_M137_I12_a_late_reload_with_an_older_generation_is_ignored(tasks: TaskGroup) -> None:
    target = Target()
    applier = ConfigApplier(target, tasks)
    older, newer = applier.stamp(), applier.stamp()
    assert await applier.apply(config(2), newer) is True
    assert await applier.apply(config(1), older) is False
    applier.submit(config(1), older)
    async with asyncio.timeout(20):
        await tasks.join()
    assert target.applied == [2]
    assert (applier.status.state, applier.status.applied_generation) == ("applied", newer)


async def test_numbers_of_several_processes_follow_each_other_as_their_configurations_do(tasks: TaskGroup) -> None:
    one, other = (ConfigApplier(Target(), tasks, several=True) for _ in range(2))
    now_ms = int(time.time() * 1000)
    found = [one.stamp(), one.stamp(), other.stamp()]
    assert now_ms <= found[0] < found[1] and found[2] >= found[0]
    assert await one.apply(config(1), found[0]) and await other.apply(config(1), found[2])
    assert one.status.content == other.status.content != ""


async def test_of_those_that_wait_only_the_newest_is_applied(tasks: TaskGroup) -> None:
    target = Target()
    applier = ConfigApplier(target, tasks)
    target.go.clear()
    applier.submit(config(1), applier.stamp())
    await target.begun.wait()
    stamps = [applier.stamp() for _ in range(3)]
    for port, stamp in ((4, stamps[2]), (2, stamps[0]), (3, stamps[1])):
        applier.submit(config(port), stamp)
    assert applier.status.state == "applying"
    target.go.set()
    async with asyncio.timeout(20):
        await tasks.join()
    assert target.applied == [1, 4]


async def test_a_configuration_that_cannot_be_applied_shows_and_the_one_in_force_stays(tasks: TaskGroup) -> None:
    target = Target()
    applier = ConfigApplier(target, tasks)
    good = applier.stamp()
    await applier.apply(config(1), good)
    target.problem = "no way"
    bad = applier.stamp()
    assert await applier.apply(config(2), bad) is False
    status = applier.status
    assert (status.state, status.generation, status.applied_generation) == ("failed", bad, good)
    assert status.problems == ("no way",)


async def test_a_file_that_cannot_be_read_shows_even_while_an_older_one_is_being_applied(tasks: TaskGroup) -> None:
    target = Target()
    applier = ConfigApplier(target, tasks)
    target.go.clear()
    first = applier.stamp()
    applier.submit(config(1), first)
    await target.begun.wait()
    broken = applier.stamp()
    applier.rejected([Problem("c.yaml", 3, "unknown key")], broken)
    target.go.set()
    async with asyncio.timeout(20):
        await tasks.join()
    status = applier.status
    assert (status.state, status.generation, status.applied_generation) == ("failed", broken, first)
    assert status.problems == ("c.yaml:3: unknown key",)


async def test_an_application_that_breaks_is_a_failed_one(tasks: TaskGroup) -> None:
    async def broken(loaded: LoadedConfig) -> str | None:
        raise ZeroDivisionError

    applier = ConfigApplier(broken, tasks)
    with pytest.raises(ZeroDivisionError):
        await applier.apply(config(1), applier.stamp())
    assert (applier.status.state, bool(applier.status.problems)) == ("failed", True)
