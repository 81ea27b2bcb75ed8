"""What the result of an attempt leaves on its credential, also after the first byte and when the world has changed."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, ProviderKey
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential, CredentialModel
from host.credentials.secret import Secret
from host.pipeline.state import build_state
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import ModelRouteResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    answering,
    client_request,
    compat_config,
    executor,
    read_all,
    snapshot,
    streaming,
    world,
)
from tests.support.streams import chat_chunk, one_stream, sse

FIRST = sse(chat_chunk("a"))
CLAUDE_FIRST = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'


def resting(w: World) -> dict[str, float]:
    """The rest of each model of the only credential."""
    now_s = w.clock()
    return {
        it.model: round(it.until_s - now_s, 3)
        for _, states in w.gateway.state.pool.book.all_states()
        for it in states.values()
    }


@pytest.mark.parametrize(
    ("told", "rest_s"),
    [
        ({"message": "busy", "type": "server_error"}, 60),
        ({"message": "slow", "type": "rate_limit_error"}, 1),
        ({"message": "no", "code": "context_length_exceeded", "type": "invalid_request_error"}, 0),
    ],
)
async def test_5_8_an_error_event_after_the_first_one_lets_its_credential_rest(told, rest_s):
    w = world(executor(stream=streaming(FIRST, sse({"error": told}))))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    await read_all(stream)
    assert resting(w) == ({"m": rest_s} if rest_s else {})
    [credential] = w.gateway.state.pool.credentials
    assert w.gateway.state.pool.health.tallies.of(credential.id) == (0, 1)


async def test_5_8_an_overload_that_a_claude_stream_reports_lets_its_credential_rest():
    event = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    w = one_stream("claude", FakeItems([CLAUDE_FIRST, event]))
    stream = await w.gateway.execute_stream(client_request(stream=True, protocol="claude"))
    await read_all(stream)
    assert resting(w) == {"m": 60}


async def test_B13_a_client_that_leaves_in_mid_stream_leaves_no_mark():
    w = world(executor(stream=streaming(FIRST, asyncio.Event())))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    await stream.__anext__()
    await stream.aclose("client_gone")
    [credential] = w.gateway.state.pool.credentials
    assert (resting(w), w.gateway.state.pool.health.tallies.of(credential.id)) == ({}, (0, 0))


async def fails_after(change, status: int = 429) -> World:
    """A request that fails once `change` has happened to the gateway in the middle of it."""

    def execute(_):
        change(w)
        return PluginError("no", http_status=status)

    w = world(executor(execute))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    return w


def reload(w: World, **config) -> None:
    w.gateway.state = build_state(compat_config(**config), snapshot(executor(answering())), previous=w.gateway.state)


async def test_a_credential_that_was_removed_during_an_attempt_leaves_nothing_behind():
    w = await fails_after(lambda w: reload(w, keys=("other",)))
    assert resting(w) == {}
    reload(w, keys=("k1", "other"))
    assert [w.gateway.state.pool.health.tallies.of(it.id) for it in w.gateway.state.pool.credentials] == [(0, 0)] * 2


@pytest.mark.parametrize("result", [PluginError("no", http_status=429), PluginError("no", http_status=404), None])
async def test_results_of_a_credential_are_nothing_to_another_one_that_came_in_its_place(result):
    def execute(_):
        for key in ("other", "k1"):
            reload(w, keys=(key,))
        [credential] = w.gateway.state.pool.credentials
        w.gateway.state.pool.book.failed(credential.id, "m", classify(ErrorBody(http_status=500)))
        w.clock.now_s += 1
        return result

    w = world(executor(execute))
    with contextlib.nullcontext() if result is None else pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    [credential] = w.gateway.state.pool.credentials
    assert (resting(w), w.gateway.state.pool.health.tallies.of(credential.id)) == ({"m": 59}, (0, 0))


async def test_a_success_of_a_credential_that_was_removed_meanwhile_counts_for_nobody():
    def execute(_):
        reload(w, keys=("other",))
        return ExecutorResponse()

    w = world(executor(execute))
    [credential] = w.gateway.state.pool.credentials
    await w.gateway.execute(client_request())
    assert w.gateway.state.pool.health.tallies.of(credential.id) == (0, 0)


async def test_a_credential_whose_cooling_was_switched_off_during_an_attempt_does_not_rest():
    w = await fails_after(lambda w: reload(w, disable_cooling=True))
    assert resting(w) == {}


async def test_a_credential_whose_cooling_was_switched_on_during_an_attempt_rests():
    w = world()
    upstream = executor(lambda _: (reload(w, disable_cooling=False), PluginError("no", http_status=503))[1])
    w = world(upstream, config=compat_config(disable_cooling=True))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert resting(w) == {"m": 60}


async def test_a_quota_that_was_reset_during_an_attempt_is_marked_anew_by_its_failure():
    def reset(w: World) -> None:
        [credential] = w.gateway.state.pool.credentials
        w.gateway.state.reset_quota(credential.auth_index)

    assert resting(await fails_after(reset)) == {"m": 1}


def of_file(token: str) -> Credential:
    return Credential(
        id="f.json", provider="openai-compatible-acme", label="f", handle="h", source_kind="file", path="f",
        secret=Secret(token), models=(CredentialModel(upstream="m", client="m"),),
    )  # fmt: skip


def world_of_a_file(upstream: FakePlugin) -> tuple[World, CredentialManager]:
    manager = CredentialManager()
    manager.set_source("f", [of_file("old")])
    w = world(upstream)
    w.gateway.state = build_state(Config(), snapshot(upstream), manager=manager, clock=w.clock)
    return w, manager


@pytest.mark.parametrize("retries", [0, 2])
async def test_nothing_new_is_begun_with_a_credential_that_was_switched_off_meanwhile(retries):
    """Neither the next attempt of a request that began before, nor one of its next round."""

    def execute(_):
        for it in credentials:
            manager.set_source(it.path, [replace(it, disabled=True)])
        w.gateway.state = build_state(config, snapshot(upstream), previous=w.gateway.state, manager=manager)
        return PluginError("no", http_status=503)

    upstream, config, manager = (
        executor(execute),
        Config(request_retry=retries, max_retry_interval=90),
        CredentialManager(),
    )
    credentials = [replace(of_file(name), id=name, path=name, handle=name) for name in ("a", "b")]
    for it in credentials:
        manager.set_source(it.path, [it])
    w = world(upstream)
    w.gateway.state = build_state(config, snapshot(upstream), previous=w.gateway.state, manager=manager)
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert (len(upstream.seen("executor.execute")), raised.value.http_status) == (1, 503)


def gemini_keys(*, off: bool = False) -> Config:
    keys = [
        ProviderKey(api_key=name, models=[ModelEntry(name="m")], excluded_models=["*"] if off else [])
        for name in ("k1", "k2")
    ]
    return Config(gemini_api_key=keys)


async def test_1_10_a_configured_key_that_is_switched_off_is_not_tried_again_and_comes_back_with_a_clean_record():
    def apply(config: Config) -> None:
        w.gateway.state = build_state(config, snapshot(upstream), previous=w.gateway.state)

    def execute(_):
        apply(gemini_keys(off=True))
        return PluginError("no", http_status=429, retry_after_ms=60_000)

    upstream = executor(execute, providers=["gemini"])
    w = world(upstream, config=gemini_keys())
    [first, second] = w.gateway.state.pool.credentials
    w.gateway.state.pool.book.failed(second.id, "other", classify(ErrorBody(http_status=404)))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert len(upstream.seen("executor.execute")) == 1
    apply(gemini_keys())
    assert (resting(w), {it.id for it in w.gateway.state.pool.credentials}) == ({}, {first.id, second.id})


async def test_12_4_a_refusal_of_a_token_that_somebody_replaced_meanwhile_is_no_refusal_of_the_new_one():
    def execute(_):
        if len(upstream.seen("executor.execute")) > 1:
            return ExecutorResponse()
        manager.set_source("f", [of_file("new")])
        return PluginError("no", http_status=401)

    upstream = executor(execute)
    w, manager = world_of_a_file(upstream)
    assert (await w.gateway.execute(client_request())).status == 200
    assert resting(w) == {}


async def test_12_4_a_refusal_is_not_of_the_token_in_a_file_that_came_in_the_place_of_another():
    def execute(_):
        if len(upstream.seen("executor.execute")) > 1:
            return ExecutorResponse()
        manager.set_source("f", [])
        manager.set_source("f", [of_file("new")])
        return PluginError("no", http_status=401)

    upstream = executor(execute)
    w, manager = world_of_a_file(upstream)
    assert (await w.gateway.execute(client_request())).status == 200
    assert resting(w) == {}


def of_a_pool() -> Config:
    models = [ModelEntry(name=name, alias="m") for name in ("a", "b", "c")]
    keys = [CompatKey(api_key="k1"), CompatKey(api_key="k2")]
    return Config(openai_compatibility=[
        CompatProvider(name="acme", base_url="https://a.test", api_key_entries=keys, models=models)
    ])  # fmt: skip


@pytest.mark.parametrize(("scope", "asked"), [("credential", ["a", "a"]), ("model", ["a", "c", "a"])])
async def test_3_5_a_model_that_was_limited_while_the_one_before_it_was_tried_is_left_out(scope, asked):
    """The second model is limited by another request, or the whole credential is: then nobody asks it for the third."""

    def execute(request):
        first = upstream.seen("executor.execute")[0].credential.handle
        if request.credential.handle != first:
            return ExecutorResponse()
        limit = classify(ErrorBody(http_status=429, scope=scope, retry_after_ms=60_000))
        w.gateway.state.pool.failed(w.gateway.state.pool.by_handle[first], "b", limit, cause=NO_CAUSE)
        return PluginError("no", http_status=503)

    upstream = executor(execute)
    w = world(upstream, config=of_a_pool())
    await w.gateway.execute(client_request())
    assert [it.model for it in upstream.seen("executor.execute")] == asked


async def test_12_4_another_token_ends_what_the_refusal_of_the_old_one_has_blocked():
    w, manager = world_of_a_file(executor(lambda _: PluginError("no", http_status=401)))
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert resting(w) == {"m": 1800}
    manager.set_source("f", [of_file("new")])
    assert resting(w) == {}


async def test_an_api_key_that_came_in_the_place_of_another_starts_with_a_clean_record():
    """In a file it keeps the name of the one before; a limit of that account says nothing about the new one."""
    w, manager = world_of_a_file(executor(lambda _: PluginError("no", http_status=429, retry_after_ms=3_600_000)))
    manager.set_source("f", [replace(of_file("old"), auth_kind="apikey")])
    w.gateway.state = build_state(Config(), w.gateway.state.plugins, previous=w.gateway.state, manager=manager)
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    manager.set_source("f", [replace(of_file("old"), auth_kind="apikey", note="mine")])
    assert resting(w) == {"m": 3600}
    manager.set_source("f", [replace(of_file("new"), auth_kind="apikey")])
    assert resting(w) == {}


async def test_a_failure_of_an_api_key_is_counted_and_sets_the_one_that_came_in_its_place_not_aside():
    def execute(_):
        manager.set_source("f", [replace(of_file("new"), auth_kind="apikey")])
        return PluginError("unpaid", http_status=402)

    w, manager = world_of_a_file(executor(execute))
    manager.set_source("f", [replace(of_file("old"), auth_kind="apikey")])
    w.gateway.state = build_state(Config(), w.gateway.state.plugins, previous=w.gateway.state, manager=manager)
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert (resting(w), w.gateway.state.pool.health.tallies.of("f.json")) == ({}, (0, 1))


async def test_a_plugin_that_a_router_chose_has_nothing_that_could_rest():
    to_itself = ModelRouteResponse(target_kind="self")
    hooks = {
        "model.route": lambda _: to_itself,
        "executor.execute": lambda _: ExecutorResponse(),
        "executor.execute_stream": streaming(FIRST, PluginError("no", http_status=503)),
    }
    w = world(FakePlugin(id="p", hooks=hooks), executor(answering()))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    with pytest.raises(PluginError):
        await read_all(stream)
    assert resting(w) == {}
