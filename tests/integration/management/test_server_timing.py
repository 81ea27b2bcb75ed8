"""`Server-Timing`: whose time a request took, up to its first byte."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from host.runtime import invoke
from host.runtime.handle import Reply
from host.web.timing import timing_line
from pluginabi.body import StreamItem
from pluginabi.errors import PluginError
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.management import Api, managed_proxy
from tests.support.pipeline import FakeItems, FakePlugin, answering, client_request, executor, world

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
BURNS = """
import time

class P(Plugin):
    async def model_route(self, request, ctx):
        # Of the processor, which a busy machine gives to others as well: then the host's part takes longer, too.
        end_s = time.thread_time() + 0.06
        while time.thread_time() < end_s:
            pass
        return None
"""
FAILS = '[on_error]\n"request.intercept_before" = "fail"\n'
WAITS = """
class P(Plugin):
    async def request_intercept_before(self, request, ctx):
        await asyncio.sleep(0.06)
        return None
"""


def parts(header: str) -> dict[str, float]:
    return {name: float(text) for name, text in re.findall(r"([\w.-]+);dur=([\d.]+)", header)}


async def timed(api: Api, **fields: Any) -> dict[str, float]:
    answer = await api.call("POST", "/v1/chat/completions", below="", json={**CHAT, **fields}, headers={})
    assert answer.status == 200
    return parts(answer.headers["Server-Timing"])


@pytest.mark.parametrize("stream", [False, True])
async def test_each_plugin_has_a_part_and_the_host_at_most_a_fifth_of_a_request_that_plugins_make_slow(
    directory: Path, stream: bool
) -> None:
    plugins = {"burns": BURNS, "waits": WAITS}
    async with managed_proxy(directory, plugins, demo=True, server_timing=True) as managed:
        # A busy machine may take the processor away in any one request, but not in each of them.
        runs = [await timed(managed.api, stream=stream) for _ in range(5)]
        for run in runs:
            assert run.keys() == {"burns", "waits", "echo", "demo-router", "host"}
            assert run["burns"] >= 55 and run["waits"] >= 55
        assert min(run["host"] / sum(run.values()) for run in runs) <= 0.2


async def test_it_is_off_unless_it_is_switched_on(directory: Path) -> None:
    async with managed_proxy(directory, demo=True) as managed:
        answer = await managed.api.call("POST", "/v1/chat/completions", below="", json=CHAT, headers={})
        assert answer.status == 200 and "Server-Timing" not in answer.headers


async def test_an_error_says_whose_time_it_took_as_well(directory: Path) -> None:
    code = "class P(Plugin):\n    async def request_intercept_before(self, request, ctx):\n"
    plugins = {"guard": (code + "        raise PluginError('no', http_status=403)\n", FAILS)}
    async with managed_proxy(directory, plugins, demo=True, server_timing=True) as managed:
        answer = await managed.api.call("POST", "/v1/chat/completions", below="", json=CHAT, headers={})
        assert answer.status == 403
        assert parts(answer.headers["Server-Timing"]).keys() == {"guard", "demo-router", "host"}


class Clock:
    """Moves only when a plugin works."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def takes(self, seconds: float, answer: Any = None) -> Any:
        def hook(_: Any) -> Any:
            self.now_s += seconds
            return answer(_) if callable(answer) else answer

        return hook


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(invoke, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


async def test_a_plugins_time_is_the_sum_of_its_calls_failed_ones_included(clock: Clock) -> None:
    times_s: dict[str, float] = {}
    router = FakePlugin(
        id="both",
        hooks={
            "model.route": clock.takes(0.010),
            "request.intercept_before": clock.takes(0.020, PluginError("x")),
        },
    )
    w = world(executor(clock.takes(0.050, answering())), router)
    await w.gateway.execute(client_request(times_s=times_s))
    assert times_s == pytest.approx({"both": 0.030, "upstream": 0.050})


async def test_waiting_for_the_first_item_of_a_stream_is_the_executors_time(clock: Clock) -> None:
    times_s: dict[str, float] = {}

    class SlowItems(FakeItems):
        async def __aiter__(self) -> AsyncIterator[StreamItem]:
            clock.now_s += 0.030
            async for item in super().__aiter__():
                yield item

    items = SlowItems([{"t": "a"}])
    opened = Reply(result=ExecutorResponse(), items=items)
    w = world(executor(stream=clock.takes(0.040, opened)))
    stream = await w.gateway.execute_stream(client_request(stream=True, times_s=times_s))
    assert times_s == pytest.approx({"upstream": 0.070})
    await stream.aclose("finished")


def test_the_host_has_what_is_nobody_elses_and_no_part_is_negative() -> None:
    line = timing_line({"a": 0.001, "host": 0.002}, total_s=0.0065, read_s=0.003)
    assert line == b"Server-Timing: a;dur=1.000, plugin-host;dur=2.000, host-read;dur=3.000, host;dur=0.500\r\n"
    assert timing_line({"a": 1.0}, total_s=0.5, read_s=0.0).endswith(b"host;dur=0.000\r\n")
