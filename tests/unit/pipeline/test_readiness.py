"""executor.prepare: a credential is made ready before its first request."""

import asyncio

import pytest

from pluginabi.errors import PluginError
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import FakePlugin, World, client_request, compat_config, world

EXECUTE, PREPARE = "executor.execute", "executor.prepare"


def preparing(prepare, execute=lambda _: ExecutorResponse()) -> FakePlugin:
    return FakePlugin(id="upstream", hooks={EXECUTE: execute, PREPARE: prepare}, providers=["openai-compatible-*"])


def order(upstream: FakePlugin) -> list[str]:
    return [method.partition(".")[2] for method, _ in upstream.handle.calls]


async def both(w: World) -> None:
    await asyncio.gather(*(w.gateway.execute(client_request(request_id=f"r{number}")) for number in range(2)))


async def test_F30_a_credential_is_prepared_once_and_before_its_first_request():
    upstream = preparing(lambda _: None)
    w = world(upstream)
    for _ in range(3):
        await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "execute", "execute", "execute"]
    asked, used = upstream.seen(PREPARE)[0], upstream.seen(EXECUTE)[0]
    assert (asked.credential.handle, asked.model) == (used.credential.handle, "m")


async def test_requests_of_the_same_moment_wait_for_one_preparation():
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def prepare(_) -> None:
        entered.set()
        await go_on.wait()

    upstream = preparing(prepare)
    w = world(upstream)
    requests = asyncio.create_task(both(w))
    async with asyncio.timeout(5):
        await entered.wait()
        go_on.set()
        await requests
    assert order(upstream) == ["prepare", "execute", "execute"]


async def test_a_credential_that_cannot_be_prepared_rests_and_the_next_one_is_tried():
    failing: list[str] = []

    def prepare(request):
        failing.append(request.credential.handle)
        return PluginError("no project", http_status=403) if len(failing) == 1 else None

    upstream = preparing(prepare)
    w = world(upstream, config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "prepare", "execute"]
    assert upstream.seen(EXECUTE)[0].credential.handle == failing[1]
    assert w.decisions("cooldown")[0]["reason"] == "payment_required"


async def test_without_another_credential_the_error_of_the_preparation_is_the_answer():
    w = world(preparing(lambda _: PluginError("no project", http_status=403, code="no_project")))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert raised.value.code == "no_project"


async def test_a_credential_that_was_refused_is_prepared_again():
    answers = [PluginError("old token", http_status=401), ExecutorResponse()]
    upstream = preparing(lambda _: None, lambda _: answers.pop(0))
    w = world(upstream)
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    w.clock.now_s += 1800
    await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "execute", "prepare", "execute"]
