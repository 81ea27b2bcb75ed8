"""What keeps one of several workers alive: whatever it says, whenever it is told, and when it cannot start."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from host import workers
from host.workers import READY_LINE, _Worker

READY = f"print({READY_LINE!r}, flush=True)"
WAIT_S = 30.0


@asynccontextmanager
async def child(*commands: str) -> AsyncIterator[tuple[_Worker, "asyncio.Task[int]"]]:
    worker = _Worker(1, [sys.executable, "-S", "-c", "\n".join(("import os, signal, sys, time", *commands))])
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(WAIT_S):
            yield worker, running
    finally:
        worker.stop()
        worker.send(signal.SIGKILL)
        await asyncio.wait([running])


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


async def test_a_line_of_any_length_does_not_end_the_parent():
    async with child("print('x' * 1_000_000, flush=True)", READY, "sys.stdin.read()") as (worker, running):
        ready = asyncio.create_task(worker.ready.wait())
        await asyncio.wait([ready, running], return_when=asyncio.FIRST_COMPLETED)
        assert ready.done()
        worker.stop()
        assert await running == -signal.SIGTERM


async def test_a_reload_while_it_is_coming_up_comes_when_it_can_be_taken():
    handler = "signal.signal(signal.SIGHUP, lambda *_: os._exit(7))"
    async with child("time.sleep(0.2)", handler, READY, "sys.stdin.read()") as (worker, running):
        await until(lambda: worker.process is not None)
        worker.reload()
        await worker.ready.wait()
        worker.stopping.set()
        assert await running == 7


async def test_one_that_waits_for_its_next_start_keeps_nobody_from_stopping(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "BACKOFF_MIN_S", WAIT_S * 10)
    monkeypatch.setattr(workers, "BACKOFF_MAX_S", WAIT_S * 10)
    async with child(READY, "sys.exit(3)") as (worker, running):
        await worker.ready.wait()
        await until(lambda: worker.process is not None and worker.process.returncode is not None)
        worker.stop()
        assert await running == 3


async def test_one_that_the_system_cannot_start_now_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "BACKOFF_MIN_S", 0.01)
    create, tries = asyncio.create_subprocess_exec, 0

    async def refused(*arguments: str, **options: object) -> asyncio.subprocess.Process:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise BlockingIOError(11, "no more processes")
        return await create(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    async with child(READY, "sys.exit(3)") as (_, running):
        await until(lambda: tries >= 3 or running.done())
        assert not running.done()
