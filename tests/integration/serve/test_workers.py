"""`workers: 2`: one port, shared state, and one answer from both for everything an operator asks."""

import asyncio
import contextlib
import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector

from tests.support.pids import descendants, end_of
from tests.support.proxy import ServeProcess, run_command, serve_process

CONFIG = """
host: 127.0.0.1
port: 0
workers: 2
api-keys: [{key: k, name: ann}]
plugins:
  configs:
    limits:
      enabled: true
      rules: [{concurrency: 3, each: []}, {caller: ann, model: shared, budget: 1000, period: month}]
      prices: {"*": {input: 1000000}}
"""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: the control sockets lie below it, and systems limit how long the name of a socket is."""
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        yield Path(made)


async def one_each(url: str, *, asked: int) -> list[tuple[int, str]]:
    """Status and id of requests that each come on a connection of their own."""

    async def ask(number: int) -> tuple[int, str]:
        async with ClientSession(connector=TCPConnector(force_close=True)) as client:
            async with client.post(f"{url}/v1/chat/completions", json=CHAT, headers=KEY) as answer:
                await answer.read()
                return answer.status, answer.headers["x-request-id"]

    answers = []
    for number in range(asked):
        answers.append(await ask(number))
    return answers


KEY = {"authorization": "Bearer k"}


async def served_by(url: str) -> dict[str, float]:
    """Worker -> requests it has served."""
    async with ClientSession() as client, client.get(f"{url}/metrics") as answer:
        text = await answer.text()
    sample = r'jackfield_requests_total\{worker="(\d)",.*endpoint="POST /v1/chat/completions".*\} (\S+)'
    found = re.findall(sample, text)
    return {worker: float(count) for worker, count in found}


async def ready(served: ServeProcess, *, after: int = 0) -> str:
    entry = await served.event("workers.ready", after=after)
    return str(entry["url"])


async def test_two_workers_serve_one_port_share_state_and_answer_for_each_other(directory: Path):
    config = directory / "config.yaml"
    config.write_text(CONFIG)
    async with serve_process(config, "--demo", wait_ready=False) as served:
        url = await ready(served)

        answers = await one_each(url, asked=40)
        assert {status for status, _ in answers} == {200}
        counts = await served_by(url)
        assert set(counts) == {"1", "2"}, "the kernel spreads connections over both"
        assert sum(counts.values()) == 40

        # A request is explained whichever worker served it.
        for _, request_id in answers[:10]:
            explained = await run_command(config, "explain", request_id)
            assert explained.exit_code == 0, explained.stderr
            assert request_id in explained.stdout

        listed = json.loads((await run_command(config, "plugins", "list", "--json")).stdout)
        router = next(row for row in listed if row["id"] == "demo-router")
        assert [row["worker"] for row in router["workers"]] == [1, 2]
        pids = [row["pid"] for row in router["workers"]]
        assert len(set(pids)) == 2, "each worker supervises a process of its own"
        reloaded = await run_command(config, "plugins", "reload", "demo-router")
        assert reloaded.exit_code == 0, reloaded.stderr
        listed = json.loads((await run_command(config, "plugins", "list", "--json")).stdout)
        router = next(row for row in listed if row["id"] == "demo-router")
        assert not set(pids) & {row["pid"] for row in router["workers"]}, "both have loaded it anew"

        # A worker that ends is started again, and the port is never without one.
        lines = len(served.lines)
        victim = child_of(served.pid, "2/2")
        os.kill(victim, signal.SIGKILL)
        await served.event("worker.ended", after=lines, worker=2)
        await served.event("proxy.ready", after=lines)
        assert {status for status, _ in await one_each(url, asked=10)} == {200}

        ends = [end_of(pid) for pid in descendants(served.pid)]
        assert len(ends) >= 3, "two workers and the state server"
        served.send(signal.SIGTERM)
        assert await served.exit_code() == 0
        await asyncio.gather(*ends)


async def test_everything_ends_with_a_parent_that_was_killed_and_the_next_start_finds_what_was_kept(directory: Path):
    config = directory / "config.yaml"
    config.write_text(CONFIG)
    async with serve_process(config, "--demo", wait_ready=False) as served:
        await ready(served)
        sockets = state_directory(served.pid)
        ends = [end_of(pid) for pid in descendants(served.pid)]
        assert len(ends) >= 4, "two workers, the state server and its keeper"
        served.send(signal.SIGKILL)
        await asyncio.gather(*ends)
    assert not sockets.exists()
    kept = directory / "state-server" / "dump.rdb"
    assert kept.exists(), "the server had time to save"
    async with serve_process(config, "--demo", wait_ready=False) as served:
        await ready(served)
        # Now all at once, as when the machine runs out of memory: nobody has time to tidy up, and nobody is left.
        family = descendants(served.pid)
        ends = [end_of(pid) for pid in family]
        for pid in (served.pid, *family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*ends)


def state_directory(parent: int) -> Path:
    """Where the state server of this parent has its socket."""
    arguments = Path(f"/proc/{child_with(parent, 'keeper_script')}/cmdline").read_text().split("\0")
    return Path(arguments[5])


async def test_a_worker_that_cannot_start_ends_everything_with_its_reason(directory: Path):
    config = directory / "config.yaml"
    config.write_text(CONFIG + "tls: {enable: true}\n")
    async with serve_process(config, wait_ready=False) as served:
        assert await served.exit_code() == 69
        assert any("`tls.enable` is true and `tls.cert` is missing" in line for line in served.lines)


def child_of(pid: int, worker: str) -> int:
    """The process of a worker."""
    return child_with(pid, f"--worker\0{worker}:")


def child_with(pid: int, text: str) -> int:
    """The first descendant that was started with arguments like this."""
    return next(child for child in descendants(pid) if text in command_of(child))


def command_of(pid: int) -> str:
    """Empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
