"""Aliases, pools and mixed providers through the whole pipeline."""

import pytest
from msgspec.structs import replace

from host.config.model import CompatKey, CompatProvider, Config, ModelAliasEntry, ModelEntry, ProviderKey, Routing
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.errors import RequestError
from host.pipeline.candidates import candidate
from host.pipeline.state import build_state
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import ModelRouteResponse, SchedulerPickResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    answering,
    client_request,
    executor,
    raw_bytes,
    read_all,
    snapshot,
    world,
)

EXECUTE, STREAM = "executor.execute", "executor.execute_stream"
DONE = b"data: [DONE]\n\n"
CHUNK = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def acme(*keys: str, models: dict[str, str], **fields) -> Config:
    """Provider acme; `models` maps upstream names to aliases."""
    provider = CompatProvider(
        name="acme", base_url="https://a.test", api_key_entries=[CompatKey(api_key=key) for key in keys],
        models=[ModelEntry(name=name, alias=alias) for name, alias in models.items()],
    )  # fmt: skip
    return Config(openai_compatibility=[provider], **fields)


def pool_of_two(*keys: str, **fields) -> Config:
    return acme(*(keys or ("k",)), models={"d": "big", "g": "big"}, **fields)


def asked(upstream: FakePlugin, method: str = EXECUTE) -> list[str]:
    return [seen.model for seen in upstream.seen(method)]


async def test_C17_a_routers_provider_gets_a_name_that_is_no_alias_as_it_is():
    target = ModelRouteResponse(
        target_kind="provider", target="openai-compatible-acme", target_model="gemini-2.5-pro-exp(8192)"
    )
    router = FakePlugin(id="router", hooks={"model.route": lambda _: target})
    upstream = executor(answering())
    w = world(router, upstream, config=acme("k", models={"gemini-2.5-pro-exp": "g25p"}))
    await w.gateway.execute(client_request())
    assert asked(upstream) == ["gemini-2.5-pro-exp"]


async def test_what_a_router_calls_auto_is_a_name_like_any_other():
    target = ModelRouteResponse(target_kind="provider", target="openai-compatible-acme", target_model="auto")
    router = FakePlugin(id="router", hooks={"model.route": lambda _: target})
    upstream = executor(answering())
    await world(router, upstream, config=acme("k", models={"m": ""})).gateway.execute(client_request())
    assert asked(upstream) == ["auto"]


async def test_C19_after_a_reload_an_alias_leads_to_its_new_target():
    upstream = executor(answering())
    w = world(upstream, config=acme("k", models={"old": "a"}))
    await w.gateway.execute(client_request(model="a"))
    w.gateway.state = build_state(acme("k", models={"new": "a"}), snapshot(upstream), previous=w.gateway.state)
    await w.gateway.execute(client_request(model="a"))
    assert asked(upstream) == ["old", "new"]


@pytest.mark.parametrize("status", [400, 422])
async def test_C24_a_model_of_a_pool_that_is_not_supported_is_left_out_for_twelve_hours(status):
    error = PluginError("no", http_status=status, code="model_not_supported")
    upstream = executor(lambda it: error if it.model == "d" else ExecutorResponse())
    w = world(upstream, config=pool_of_two())
    for _ in range(3):
        await w.gateway.execute(client_request(model="big"))
    assert asked(upstream) == ["d", "g", "g", "g"]
    w.clock.now_s += 12 * 3600
    await w.gateway.execute(client_request(model="big"))
    await w.gateway.execute(client_request(model="big"))
    assert "d" in asked(upstream)[4:]


async def test_C25_a_stream_of_a_pool_that_ends_empty_is_served_by_the_next_model():
    upstream = executor(stream=lambda it: FakeItems([] if it.model == "d" else [CHUNK, DONE]))
    w = world(upstream, config=pool_of_two())
    stream = await w.gateway.execute_stream(client_request(model="big", stream=True))
    assert raw_bytes(await read_all(stream)) == CHUNK + DONE
    assert asked(upstream, STREAM) == ["d", "g"]


async def test_C26_a_credential_whose_whole_pool_rests_does_not_count_as_tried():
    upstream = executor(answering())
    w = world(upstream, config=pool_of_two("k1", "k2", max_retry_credentials=1))
    pool = w.gateway.state.pool
    first, second = sorted(pool.credentials, key=lambda it: it.id)
    for model in ("d", "g"):
        pool.failed(first, model, classify(ErrorBody(http_status=429)), cause=NO_CAUSE)
    await w.gateway.execute(client_request(model="big"))
    assert [seen.credential.handle for seen in upstream.seen(EXECUTE)] == [second.handle]


async def test_D5_variants_of_one_model_take_turns_together():
    upstream = executor(answering())
    w = world(upstream, config=acme("k1", "k2", models={"m": ""}))
    for model in ("m(high)", "m(low)", "m"):
        await w.gateway.execute(client_request(model=model))
    handles = [seen.credential.handle for seen in upstream.seen(EXECUTE)]
    assert handles[0] != handles[1]
    assert handles[2] == handles[0]


def mixed(*names: str) -> Config:
    """Providers with one key each per name; `a` and `a` make two keys."""
    providers = [
        CompatProvider(
            name=name, base_url=f"https://{name}.test", models=[ModelEntry(name="m")],
            api_key_entries=[CompatKey(api_key=f"{name}{number}") for number in range(names.count(name))],
        )
        for name in dict.fromkeys(names)
    ]  # fmt: skip
    return Config(openai_compatibility=providers)


async def test_D9_when_several_providers_cool_down_none_is_named():
    w = world(executor(lambda _: PluginError("slow", http_status=429, retry_after_ms=60_000)), config=mixed("a", "b"))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request())
    error = refused.value.body.body.value()["error"]
    assert "provider" not in error
    assert error["message"] == "All credentials for model m are cooling down"


async def test_D13_only_the_provider_of_the_best_priority_serves():
    config = mixed("a", "b")
    config = replace(config, openai_compatibility=[replace(it, priority=5 * (it.name == "b"))
                                                   for it in config.openai_compatibility])  # fmt: skip
    upstream = executor(answering())
    w = world(upstream, config=config)
    for _ in range(3):
        await w.gateway.execute(client_request())
    assert {seen.credential.provider for seen in upstream.seen(EXECUTE)} == {"openai-compatible-b"}


async def test_4_4_fill_first_stays_with_the_first_provider_that_has_somebody_free():
    upstream = executor(answering())
    w = world(upstream, config=replace(mixed("b", "a"), routing=Routing(strategy="fill-first")))
    first, second = w.gateway.state.plan("m", method=EXECUTE, source="openai", wanted="openai").providers
    for _ in range(2):
        await w.gateway.execute(client_request())
    pool = w.gateway.state.pool
    for it in pool.credentials:
        if it.provider == first:
            pool.failed(it, "m", classify(ErrorBody(http_status=429)), cause=NO_CAUSE)
    await w.gateway.execute(client_request())
    assert [seen.credential.provider for seen in upstream.seen(EXECUTE)] == [first, first, second]


async def test_D14_a_provider_that_nobody_executes_is_left_out():
    config = Config(
        claude_api_key=[ProviderKey(api_key="k", models=[ModelEntry(name="m")])],
        openai_compatibility=mixed("a").openai_compatibility,
    )
    upstream = executor(answering())
    w = world(upstream, config=config)
    for _ in range(2):
        await w.gateway.execute(client_request())
    assert {seen.credential.provider for seen in upstream.seen(EXECUTE)} == {"openai-compatible-a"}


async def test_D22_a_delegated_round_robin_goes_over_all_providers():
    scheduler = FakePlugin(id="s", hooks={"scheduler.pick": lambda _: SchedulerPickResponse(delegate="round-robin")})
    upstream = executor(answering())
    w = world(scheduler, upstream, config=mixed("a", "a", "b"))
    for _ in range(4):
        await w.gateway.execute(client_request())
    found = [seen.credential for seen in upstream.seen(EXECUTE)]
    assert [it.provider[-1] for it in found] == ["a", "a", "b", "a"]
    assert found[3].handle == found[0].handle


def test_D24_nothing_that_a_scheduler_is_shown_can_be_changed():
    shown = candidate(Credential(id="a", provider="p", label="", attributes={"note": "x"}))
    with pytest.raises(AttributeError):
        shown.priority = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        shown.attributes["note"] = "y"  # type: ignore[index]


def account(name: str = "a.json") -> Credential:
    return Credential(
        id=name, provider="gem", label=name, source_kind="file", auth_kind="oauth", path=name, handle=name,
        auth_index="0123456789abcdef",
    )  # fmt: skip


def accounts(upstream: FakePlugin, **config) -> World:
    w = world(upstream, config=Config(**config))
    manager = CredentialManager()
    manager.set_source("a.json", [account()])
    state = w.gateway.state
    w.gateway.state = build_state(state.config, state.plugins, previous=state, manager=manager)
    return w


async def test_F24_the_health_of_an_aliased_model_is_that_of_the_model_itself():
    upstream = executor(answering(), providers=["gem"], models=[ModelInfo(id="u")])
    w = accounts(upstream, oauth_model_alias={"gem": [ModelAliasEntry(name="u", alias="a")]})
    pool = w.gateway.state.pool
    quota = classify(ErrorBody(http_status=429, retry_after_ms=60_000))
    pool.failed(pool.by_id["a.json"], "a", quota, cause=NO_CAUSE)
    await w.gateway.execute(client_request(model="a"))
    assert asked(upstream) == ["u"]
    pool.failed(pool.by_id["a.json"], "u", quota, cause=NO_CAUSE)
    with pytest.raises(RequestError):
        await w.gateway.execute(client_request(model="a(high)"))


def test_F31_a_reset_names_the_blocked_models_else_all_that_the_credential_serves():
    upstream = executor(answering(), providers=["gem"], models=[ModelInfo(id="u"), ModelInfo(id="v")])
    state = accounts(upstream).gateway.state
    index = "0123456789abcdef"
    state.pool.failed(state.pool.by_id["a.json"], "u", classify(ErrorBody(http_status=401)), cause=NO_CAUSE)
    assert state.reset_quota(index) == ("u",)
    assert state.pool.book.empty
    assert state.reset_quota(index) == ("u", "v")
    assert (state.reset_quota("a.json"), state.reset_quota("")) == (None, None)


async def test_F27_when_the_last_stream_fails_before_its_first_item_the_client_gets_its_status():
    upstream = executor(stream=lambda _: FakeItems([PluginError("slow", http_status=429, headers={"x-up": ["1"]})]))
    w = world(upstream, config=acme("k1", "k2", models={"m": ""}))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute_stream(client_request(stream=True))
    assert (raised.value.http_status, raised.value.body.headers["x-up"]) == (429, ["1"])
    assert len(upstream.seen(STREAM)) == 2


async def test_the_trace_of_a_refused_request_says_how_many_rest_and_when_the_first_is_back():
    error = PluginError("slow", http_status=429, retry_after_ms=60_000)
    w = world(executor(lambda _: error), config=acme("k1", "k2", models={"m": ""}))
    for request_id in ("r1", "r2"):
        with pytest.raises((PluginError, RequestError)):
            await w.gateway.execute(client_request(request_id=request_id))
    [refused] = w.decisions("no_credential", "r2")
    assert refused == {"why": "cooling", "resting": 2, "of": 2, "back_in_s": 60.0}
    assert [it["resting"] for it in w.decisions("picked", "r1")] == [None, 1]
