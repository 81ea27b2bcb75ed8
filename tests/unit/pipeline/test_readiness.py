"""executor.prepare: a credential is made ready before its first request."""

import asyncio
from dataclasses import replace

import pytest
from msgspec import Raw

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, Routing
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.credentials.pool import CredentialPool
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import CredentialSourceResponse
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import FakePlugin, World, client_request, compat_config, executor, world

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


async def test_who_waited_for_a_preparation_that_failed_does_not_try_it_once_more():
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def prepare(_):
        if len(upstream.seen(PREPARE)) > 1:
            return None
        entered.set()
        await go_on.wait()
        return PluginError("no project", http_status=403)

    upstream = preparing(prepare)
    w = world(upstream, config=compat_config(keys=("k1", "k2"), routing=Routing(strategy="fill-first")))
    requests = asyncio.create_task(both(w))
    async with asyncio.timeout(5):
        await entered.wait()
        first = w.gateway.state.pool.by_handle[upstream.seen(PREPARE)[0].credential.handle]
        # Nothing that waits lies between a request's beginning and the preparation.
        assert [it["credential"] for it in w.decisions("picked", "r1")] == [first.id]
        go_on.set()
        await requests
    assert order(upstream) == ["prepare", "prepare", "execute", "execute"]


async def test_a_credential_that_cannot_be_made_ready_rests_for_every_model_of_a_pool():
    def prepare(_):
        return PluginError("no project", http_status=403) if len(upstream.seen(PREPARE)) == 1 else None

    upstream = preparing(prepare)
    keys, models = [CompatKey(api_key="k1"), CompatKey(api_key="k2")], [ModelEntry(name=it, alias="m") for it in "dg"]
    provider = CompatProvider(name="acme", base_url="https://a.test", api_key_entries=keys, models=models)
    w = world(upstream, config=Config(openai_compatibility=[provider]))
    for _ in range(3):
        await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "prepare", "execute", "execute", "execute"]
    failed = w.gateway.state.pool.by_handle[upstream.seen(PREPARE)[0].credential.handle].id
    assert w.gateway.state.pool.health.tallies.of(failed) == (0, 1)


async def test_a_credential_that_was_limited_while_it_was_made_ready_is_not_used():
    def prepare(request):
        if len(upstream.seen(PREPARE)) == 1:
            pool = w.gateway.state.pool
            limit = classify(ErrorBody(http_status=429))
            pool.failed(pool.by_handle[request.credential.handle], "m", limit, cause=NO_CAUSE)

    upstream = preparing(prepare)
    w = world(upstream, config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "prepare", "execute"]


async def test_a_credential_that_was_switched_off_while_it_was_made_ready_is_not_used():
    def prepare(request):
        if len(upstream.seen(PREPARE)) == 1:
            pool = w.gateway.state.pool
            credential = pool.by_handle[request.credential.handle]
            others = [replace(it, disabled=it is credential) for it in pool.credentials]
            CredentialPool(others, health=pool.health).settle()

    upstream = preparing(prepare)
    w = world(upstream, config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "prepare", "execute"]
    assert len({it.credential.handle for it in upstream.seen(PREPARE)}) == 2


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


class HandingOut:
    """A plugin that hands out one credential after the other, for a provider that is prepared."""

    def __init__(self, *records: CredentialRecord) -> None:
        left = list(records)
        self.upstream = preparing(lambda _: None)
        source = FakePlugin(
            id="source", hooks={"credential_source.next": lambda _: CredentialSourceResponse(record=left.pop(0))}
        )
        self.world = world(self.upstream, source)

    async def asked(self, times: int) -> list[str]:
        for _ in range(times):
            await self.world.gateway.execute(client_request(model="remote"))
        return order(self.upstream)


def handed(key: str, name: str = "x") -> CredentialRecord:
    return CredentialRecord(provider="openai-compatible-acme", id=name, storage=Raw(b'{"api_key":"%s"}' % key.encode()))


async def test_what_a_plugin_hands_out_is_prepared_once_as_it_is_and_again_when_it_is_another():
    handing = HandingOut(handed("k1"), handed("k1"), handed("k2"))
    assert await handing.asked(3) == ["prepare", "execute", "execute", "prepare", "execute"]


async def test_what_plugins_hand_out_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("host.pipeline.readiness.MAX_READY", 2)
    handing = HandingOut(*(handed("k", str(number)) for number in range(5)))
    await handing.asked(5)
    health = handing.world.gateway.state.pool.health
    assert len(health.ready) == 2
    assert not any(health.tallies.of(f"remote:source:{number}")[0] for number in range(5))


class Renewing:
    """A refresher that renews whatever it is asked to."""

    def __init__(self, *, succeeds: bool) -> None:
        self.succeeds = succeeds
        self.asked: list[str] = []
        self.in_vain: list[str] = []

    async def refresh_now(self, credential_id: str, *, started_s: float | None = None) -> bool:
        self.asked.append(credential_id)
        return self.succeeds

    def refreshed_in_vain(self, credential_id: str, *, started_s: float) -> None:
        self.in_vain.append(credential_id)


@pytest.mark.parametrize("succeeds", [True, False])
async def test_12_4_a_refused_token_is_renewed_once_and_the_same_credential_tried_again(succeeds):
    upstream = executor(lambda _: PluginError("old token", http_status=401))
    w = world(upstream)
    manager = w.gateway.state.manager
    manager.refresher = renewing = Renewing(succeeds=succeeds)
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert len(renewing.asked) == 1
    assert renewing.in_vain == (renewing.asked if succeeds else [])
    assert len(upstream.seen(EXECUTE)) == (2 if succeeds else 1)
    assert w.decisions("cooldown")[0]["reason"] == "unauthorized"


async def test_12_4_with_the_new_token_the_request_succeeds_and_nothing_rests():
    answers = [PluginError("old token", http_status=401), ExecutorResponse()]
    upstream = executor(lambda _: answers.pop(0))
    w = world(upstream, config=compat_config(keys=("k1", "k2")))
    w.gateway.state.manager.refresher = Renewing(succeeds=True)
    await w.gateway.execute(client_request())
    assert len({seen.credential.handle for seen in upstream.seen(EXECUTE)}) == 1
    assert w.gateway.state.pool.book.empty
    assert len(w.decisions("token_renewed")) == len(w.decisions("picked")) == 1


@pytest.mark.parametrize("succeeds", [True, False])
async def test_12_4_a_token_that_is_refused_when_it_is_made_ready_is_renewed_as_well(succeeds):
    def prepare(_):
        return PluginError("old token", http_status=401) if len(upstream.seen(PREPARE)) == 1 else None

    upstream = preparing(prepare)
    w = world(upstream, config=compat_config(keys=("k1", "k2")))
    w.gateway.state.manager.refresher = renewing = Renewing(succeeds=succeeds)
    await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "prepare", "execute"]
    assert len(renewing.asked) == 1
    assert len({it.credential.handle for it in upstream.seen(PREPARE)}) == (1 if succeeds else 2)
    assert w.gateway.state.pool.book.empty is succeeds


@pytest.mark.parametrize("status", [401, 503])
async def test_a_new_token_that_is_refused_at_once_was_renewed_in_vain_and_one_that_meets_another_failure_was_not(
    status,
):
    answers = [PluginError("old token", http_status=401), PluginError("new token", http_status=status)]
    upstream = preparing(lambda _: answers.pop(0))
    w = world(upstream)
    w.gateway.state.manager.refresher = renewing = Renewing(succeeds=True)
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert order(upstream) == ["prepare", "prepare"]
    assert renewing.in_vain == (renewing.asked if status == 401 else [])
