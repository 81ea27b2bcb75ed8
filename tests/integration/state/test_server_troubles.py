"""A state server in trouble: nobody waits longer than was promised, and `/readyz` and the log say what is wrong."""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from host.config.model import Config, State
from host.runtime.callback_kv import KvCallbacks
from host.runtime.scope import CallScope
from host.state.opening import StateSetupError, open_state
from host.state.redis import RedisState
from host.state.store import StateFull, StateUnavailable
from pluginabi.errors import PluginError
from pluginabi.payloads.callbacks import KvGetRequest, KvIncrementRequest
from tests.support.proxy import running_proxy
from tests.support.redis_server import PATIENCE_S, RedisServer

TIMEOUT_S = 1.0
"""Of those who are to find out that the server does not answer."""


@pytest.fixture
async def state(server: RedisServer) -> AsyncIterator[RedisState]:
    made = server.state()
    await made.start()
    yield made
    await made.stop()


async def until(state: RedisState, *, available: bool, problem: str) -> None:
    """Probe until it looks like this."""
    async with asyncio.timeout(30):
        while (state.available, state.problem) != (available, problem):
            await state.probe()


async def test_a_stopped_process_costs_each_command_the_time_limit_once_and_then_nothing(
    server: RedisServer, state: RedisState
):
    assert server.process is not None
    await state.store.set("a", "k", b"1")
    patient, state = state, server.state(timeout_s=TIMEOUT_S)
    await state.start()
    await until(state, available=True, problem="")
    server.process.send_signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        found = await asyncio.gather(*(state.store.get("a", "k") for _ in range(20)), return_exceptions=True)
        assert {type(error) for error in found} == {StateUnavailable}
        assert time.monotonic() - began_s < 10 * TIMEOUT_S, "all of them waited at once"
        began_s = time.monotonic()
        for _ in range(50):
            with pytest.raises(StateUnavailable):
                await state.store.get("a", "k")
        assert time.monotonic() - began_s < TIMEOUT_S
        assert state.problem == "unreachable"
    finally:
        server.process.send_signal(signal.SIGCONT)
    await until(state, available=True, problem="")
    await state.stop()
    assert await patient.store.get("a", "k") == b"1"


async def test_requests_that_need_no_shared_state_do_not_notice_a_stopped_process(server: RedisServer, tmp_path: Path):
    config = f"state: {{url: '{server.url}', timeout: {TIMEOUT_S:g}s}}\n"
    async with running_proxy(config, directory=tmp_path, demo=True) as running, aiohttp.ClientSession() as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(10):
                began_s = time.monotonic()
                async with client.post(f"{running.url}/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200
                assert time.monotonic() - began_s < TIMEOUT_S, "it waited for the server"
            async with asyncio.timeout(30):
                while (await (await client.get(f"{running.url}/readyz")).json()).get("state") != "unavailable":
                    pass
            async with client.get(f"{running.url}/readyz") as answer:
                found = await answer.json()
                assert (answer.status, found["state_problem"]) == (200, "unreachable")
                assert str(server.port) not in str(found)
        finally:
            server.process.send_signal(signal.SIGCONT)


async def test_one_that_became_a_replica_counts_as_away_until_it_takes_writes_again(
    server: RedisServer, state: RedisState
):
    await server.say("REPLICAOF", "127.0.0.1", "1")
    with capture_logs() as lines:
        with pytest.raises(StateUnavailable):
            await state.store.set("a", "k", b"1")
        await until(state, available=False, problem="read-only")
        await state.probe()
    assert [line["problem"] for line in lines if line["event"] == "state.unavailable"] == ["read-only"]
    await server.say("REPLICAOF", "NO", "ONE")
    await until(state, available=True, problem="")
    assert await state.store.set("a", "k", b"1") is True


async def test_one_that_is_full_is_read_from_and_says_so(server: RedisServer, state: RedisState):
    await state.store.set("a", "k", b"1")
    await server.say("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StateFull):
        await state.store.set("a", "l", b"1")
    await until(state, available=True, problem="full")
    assert await state.store.get("a", "k") == b"1"
    await server.say("CONFIG", "SET", "maxmemory", "0")
    await until(state, available=True, problem="")


async def test_one_that_cannot_save_and_so_takes_no_writes_says_how_many_share_it(
    server: RedisServer, state: RedisState
):
    await server.say("CONFIG", "SET", "save", "3600 1")
    await server.say("CONFIG", "SET", "dir", "/proc")
    kv = KvCallbacks(state.store, nodes=lambda: 3)
    scope = CallScope(plugin_id="p", method="model.route", permissions=frozenset({"kv"}))
    await kv.increment(scope, KvIncrementRequest(key="n"))
    await server.say("BGSAVE")
    async with asyncio.timeout(30):
        while True:
            try:
                await kv.increment(scope, KvIncrementRequest(key="n"))
            except PluginError as error:
                refused = error.body
                break
    assert (refused.http_status, refused.code, refused.details) == (503, "kv_unavailable", {"nodes": 3})
    assert (await kv.get(scope, KvGetRequest(key="n"))).found
    await until(state, available=True, problem="error")


async def test_a_wrong_password_is_told_at_the_start_and_never_shown(server: RedisServer, tmp_path: Path):
    await server.say("CONFIG", "SET", "requirepass", "right-one")
    url = server.url.replace("redis://", "redis://:wrong-secret@")
    for wrong in (url, server.url):
        state = RedisState(wrong, timeout_s=PATIENCE_S)
        with capture_logs() as lines:
            await state.start()
            await state.probe()
        await state.stop()
        [line] = [line for line in lines if line["event"] == "state.unavailable"]
        assert (line["log_level"], line["problem"], state.problem) == ("error", "refused", "refused")
        assert "secret" not in str(lines)
    config = f"state: {{url: '{url}', timeout: {PATIENCE_S:g}s}}\n"
    async with running_proxy(config, directory=tmp_path) as running, aiohttp.ClientSession() as client:
        async with client.get(f"{running.url}/readyz") as answer:
            assert (await answer.json())["state_problem"] == "refused"


async def test_one_that_is_not_there_at_the_start_is_told_once():
    state = RedisState("redis://127.0.0.1:1/0")
    with capture_logs() as lines:
        await state.start()
        await state.probe()
        await state.stop()
    assert [line["problem"] for line in lines if line["event"] == "state.unavailable"] == ["unreachable"]


async def test_foreign_data_under_our_prefix_is_no_reason_to_fail(server: RedisServer, state: RedisState):
    await state.store.set("a", "k", b"1")
    await server.say("LPUSH", "jackfield:a:list", "x")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"*3\r\n$3\r\nSET\r\n$13\r\njackfield:a:\xff\r\n$1\r\nx\r\n")
    assert await reader.readline() == b"+OK\r\n"
    writer.close()
    found = await state.store.items("a")
    assert found["k"] == b"1"
    assert "list" not in found


@pytest.mark.parametrize(
    "url", ["redis://:hid#den@h:6379/0", "redis://:hid/den@h:6379", "rediss://u:hidden@h:99999/0", "hid://u:den@h", "x"]
)
def test_an_address_that_cannot_be_used_is_refused_without_showing_any_of_it(url: str):
    with pytest.raises(StateSetupError) as refused:
        open_state(Config(state=State(url=url)))
    assert "hid" not in str(refused.value)


async def test_under_load_every_answer_is_a_value_a_miss_or_a_failure_while_the_server_comes_and_goes(
    server: RedisServer, state: RedisState
):
    answers: Counter[str] = Counter()
    stopped, came, busy, failing = (asyncio.Event() for _ in range(4))
    state.on_available(lambda: came.set() if stopped.is_set() else None)

    async def use(number: int) -> None:
        for turn in itertools.count():
            try:
                await state.store.set("a", f"{number}", f"{number}.{turn}".encode())
                found = await state.store.get("a", f"{number}")
            except StateUnavailable:
                answers["failure"] += 1
                if answers["failure"] == 20:
                    failing.set()
                await asyncio.sleep(0)
            else:
                # Nobody else writes this key: an older value would be the answer to another command.
                assert found in (None, f"{number}.{turn}".encode())
                answers["miss" if found is None else "value"] += 1
            if answers["value"] > 50:
                busy.set()
            if came.is_set() and answers["value"] > before:
                return

    before = 10**9
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(use(number))
        await busy.wait()
        await server.stop()
        stopped.set()
        await failing.wait()
        before = answers["value"] + 20
        await server.start()
    assert set(answers) <= {"value", "miss", "failure"}


async def test_a_command_that_was_cancelled_leaves_no_answer_behind_for_the_next_one(state: RedisState):
    for number in range(20):
        await state.store.set("a", f"{number}", f"v{number}".encode())
    for steps in range(12):
        asked = [asyncio.create_task(state.store.get("a", f"{number}")) for number in range(20)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asked[::2]:
            task.cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [found[number] for number in range(1, 20, 2)] == [f"v{number}".encode() for number in range(1, 20, 2)]
        again = await asyncio.gather(*(state.store.get("a", f"{number}") for number in range(20)))
        assert again == [f"v{number}".encode() for number in range(20)]
