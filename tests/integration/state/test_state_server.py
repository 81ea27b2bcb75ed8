"""The state server that the parent of several workers starts: it lasts as long as anybody needs it, and no longer."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from host.state import server as state_server
from host.state.server import NoStateServer, StateServer
from tests.support.pids import end_of

HOLDER = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StateServer]:
    server = StateServer(tmp_path)
    try:
        async with asyncio.timeout(60):
            await server.start()
        yield server
    finally:
        await server.stop()


async def asked(server: StateServer, *command: str) -> object:
    client = Redis.from_url(server.url)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def pid_of(server: StateServer) -> int:
    client = Redis.from_url(server.url)
    try:
        return int((await client.info("server"))["process_id"])
    finally:
        await client.aclose()


async def back(server: StateServer, *, instead_of: int) -> int:
    """The process id of the server that answers now, once it is another one."""
    async with asyncio.timeout(60):
        while True:
            try:
                found = await pid_of(server)
            except RedisConnectionError:
                found = instead_of
            if found != instead_of:
                return found
            await asyncio.sleep(0)


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_what_it_knows_is_kept_and_nothing_of_it_is_left_behind(tmp_path: Path):
    for expected in (None, b"1"):
        server = StateServer(tmp_path)
        async with asyncio.timeout(60):
            await server.start()
            assert await asked(server, "GET", "k") == expected
            await asked(server, "SET", "k", "1")
            await server.stop()
            await server.stop()
        assert not Path(server.url.removeprefix("unix://")).parent.exists()


@pytest.mark.parametrize("victim", ["server", "keeper"])
async def test_one_that_was_killed_is_there_again_at_the_same_place(
    server: StateServer, victim: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state_server, "RESTART_S", 0.0)
    first = await pid_of(server)
    first_end = end_of(first)
    os.kill(first if victim == "server" else keeper_of(first), signal.SIGKILL)
    await first_end
    assert await back(server, instead_of=first) != first


async def test_one_that_cannot_be_started_again_at_once_is_tried_again(
    server: StateServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state_server, "RESTART_S", 0.0)
    monkeypatch.setattr(state_server, "RESTART_MAX_S", 0.0)
    create, tries = asyncio.create_subprocess_exec, 0

    async def refused(*arguments: str, **options: object) -> asyncio.subprocess.Process:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise BlockingIOError(11, "no more processes")
        return await create(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    first = await pid_of(server)
    os.kill(first, signal.SIGKILL)
    assert await back(server, instead_of=first) != first


async def test_it_stays_for_a_worker_that_outlives_the_parent_and_ends_with_it(tmp_path: Path):
    server = StateServer(tmp_path)
    worker = None
    try:
        async with asyncio.timeout(60):
            await server.start()
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-c", HOLDER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(server.held,),
            )
            assert worker.stdout is not None and worker.stdin is not None
            await worker.stdout.readline()
            end = end_of(await pid_of(server))
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            assert await asked(server, "PING")
            worker.stdin.close()
            await end
            await stopping
    finally:
        if worker is not None and worker.returncode is None:
            worker.kill()
            await worker.wait()
        await server.stop()


async def test_the_socket_of_a_run_that_was_killed_as_a_whole_is_removed_and_nothing_else(tmp_path: Path):
    left = tmp_path / "jackfield-state-left"
    foreign = tmp_path / "foreign"
    for directory in (left, foreign):
        directory.mkdir()
        (directory / "socket").touch()
    (tmp_path / "temp-1.rdb").touch()
    for noted, gone in ((foreign, False), (left, True)):
        (tmp_path / "runtime").write_text(str(noted))
        server = StateServer(tmp_path)
        async with asyncio.timeout(60):
            await server.start()
            await server.stop()
        assert noted.exists() is not gone
    assert not (tmp_path / "temp-1.rdb").exists()


class Heard:
    """In place of the log: waits for a warning."""

    def __init__(self) -> None:
        self.warned = asyncio.Event()

    def warning(self, event: str, **fields: object) -> None:
        assert event == "state.waits_for_earlier_server"
        self.warned.set()


async def test_a_second_one_waits_until_the_first_has_saved(
    server: StateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    heard = Heard()
    monkeypatch.setattr(state_server, "log", heard)
    await asked(server, "SET", "k", "1")
    second = StateServer(tmp_path)
    starting = asyncio.create_task(second.start())
    try:
        async with asyncio.timeout(60):
            await heard.warned.wait()
            assert await asked(server, "PING")
            await server.stop()
            await starting
        assert await asked(second, "GET", "k") == b"1"
    finally:
        starting.cancel()
        await second.stop()


async def test_a_file_that_cannot_be_read_is_set_aside_and_the_reason_is_told_when_that_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "dump.rdb").write_bytes(b"REDIS0009 and then nothing of the kind")
    server = StateServer(tmp_path)
    async with asyncio.timeout(60):
        await server.start()
        assert (tmp_path / "dump.broken").exists()
        await server.stop()
    monkeypatch.setattr(state_server, "find_program", lambda: "/bin/false")
    other = StateServer(tmp_path)
    with pytest.raises(NoStateServer, match="/bin/false ended"):
        await other.start()
    await other.stop()
    assert (tmp_path / "dump.rdb").exists(), "it was not the fault of what was kept"
