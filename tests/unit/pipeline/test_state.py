"""The gateway state: formats, who serves what, and what survives a reload."""

import dataclasses

import pytest

from host.config.model import CompatProvider, Config, ModelEntry, ProviderKey
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.pipeline.formats import Formats, declared, negotiate
from host.pipeline.plugin_credentials import provider_of
from host.pipeline.state import EXECUTE, GatewayState, Plan, build_state
from pluginabi.errors import ErrorBody
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.lifecycle import ExecutorRegistration
from tests.support.pipeline import FakePlugin, answering, client_request, compat_config, executor, snapshot, world

ACME = "openai-compatible-acme"


def registration(inputs: str, outputs: str) -> ExecutorRegistration:
    return ExecutorRegistration(input_formats=inputs.split(), output_formats=outputs.split())


def test_X78_declared_formats_are_canonical_and_named_once():
    assert declared(["chat-completions", "none", "", " Anthropic "]) == ("openai", "claude")
    assert declared(["responses", "openai_responses"]) == ("openai-response",)
    assert declared([]) == ("*",)


@pytest.mark.parametrize(
    ("inputs", "outputs", "source", "wanted", "translates", "expected"),
    [
        ("openai", "openai", "openai", "openai", False, Formats("openai", "openai")),
        ("*", "*", "gemini", "gemini", False, Formats("gemini", "gemini")),
        ("claude", "claude", "openai", "openai", False, None),
        ("claude", "claude", "openai", "openai", True, Formats("claude", "claude")),
        ("openai", "claude openai", "claude", "claude", True, Formats("openai", "claude")),
        ("openai", "gemini openai", "claude", "claude", True, Formats("openai", "openai")),
        ("openai", "gemini", "openai", "openai", True, Formats("openai", "gemini")),
    ],
)
def test_formats_are_matched_exactly_or_by_translation(inputs, outputs, source, wanted, translates, expected):
    def can(here: str, there: str) -> bool:
        return here == there or translates

    found = negotiate(registration(inputs, outputs), source=source, wanted=wanted, request=can, response=can)
    assert found == expected


def test_without_a_registration_an_executor_takes_whatever_comes():
    found = negotiate(None, source="claude", wanted="claude", request=lambda *_: False, response=lambda *_: False)
    assert found == Formats("claude", "claude")


async def test_X87_of_two_executors_of_a_provider_the_first_is_used_and_its_removal_promotes_the_other():
    first, second = executor(answering(), id="a", priority=2), executor(answering(), id="b", priority=1)
    w = world(first, second)
    await w.gateway.execute(client_request())
    w.gateway.state = build_state(compat_config(), snapshot(second), previous=w.gateway.state)
    await w.gateway.execute(client_request())
    assert (len(first.seen(EXECUTE)), len(second.seen(EXECUTE))) == (1, 1)


def serving(name: str, *models: str, **fields) -> FakePlugin:
    return FakePlugin(
        id=name, hooks={EXECUTE: answering({"by": name})}, models=[ModelInfo(id=model) for model in models], **fields
    )


async def test_a_plugin_with_models_and_an_executor_serves_them_on_its_own():
    plugin = serving("echo", "echo-1", providers=["echo"])
    w = world(plugin, config=Config())
    await w.gateway.execute(client_request(model="echo-1"))
    (seen,) = plugin.seen(EXECUTE)
    assert (seen.credential, seen.model, seen.metadata["selected_auth_id"]) == (
        None,
        "echo-1",
        "plugin:echo:echo:executor",
    )
    assert [info.id for info in w.gateway.state.registry.list()] == ["echo-1"]
    assert w.gateway.state.pool.providers() == ("echo",)


async def test_X88_a_plugin_does_not_claim_a_model_that_a_credential_or_an_earlier_plugin_serves():
    first, second = serving("first", "m", "x", priority=2), serving("second", "x", "y", priority=1)
    w = world(executor(answering({"by": "upstream"})), first, second)
    answers = {}
    for model in ("m", "x", "y"):
        answers[model] = (await w.gateway.execute(client_request(model=model))).body
    assert answers == {"m": b'{"by":"upstream"}', "x": b'{"by":"first"}', "y": b'{"by":"second"}'}


def test_X89_scope_says_whether_models_are_served_with_or_without_a_credential():
    config = Config(openai_compatibility=[CompatProvider(name="acme", base_url="https://a.test")])

    def served(scope: str, use: Config) -> dict[str, list[str]]:
        plugin = serving("p", "m", providers=["openai-compatible-acme"], executor=ExecutorRegistration(scope=scope))
        state = build_state(use, snapshot(plugin))
        return {
            info.id: [lane.credential.id.partition(":")[0] for lane in plan_of(state, info.id).lanes()]
            for info in state.registry.list()
        }

    assert served("oauth", Config()) == {}
    assert served("oauth", config) == {"m": ["openai-compatibility"]}
    assert served("static", Config()) == {"m": ["plugin"]}
    assert served("both", Config()) == {"m": ["plugin"]}
    assert served("both", config) == {"m": ["openai-compatibility"]}


def plan_of(state: GatewayState, model: str) -> Plan:
    return state.plan(model, method=EXECUTE, source="openai", wanted="openai")


def test_a_native_key_without_models_serves_its_vendors_names():
    config = Config(claude_api_key=[ProviderKey(api_key="k", excluded_models=["claude-2*"])])
    state = build_state(config, snapshot(executor(answering(), providers=["claude"])))
    plan = state.plan("claude-new", method=EXECUTE, source="claude", wanted="claude")
    assert [lane.upstreams for lane in plan.lanes()] == [("claude-new",)]
    assert state.plan("claude-2.1", method=EXECUTE, source="claude", wanted="claude").known is False


def test_the_provider_of_a_plugin_is_its_first_exact_key_else_its_id():
    view = snapshot(serving("P", "m", providers=["x-*", " Acme "])).plugins["P"]
    assert provider_of(view) == "acme"
    assert provider_of(dataclasses.replace(view, providers=("x-*",))) == "P"


def test_cooldowns_cursors_and_handles_survive_a_reload_and_gone_credentials_are_forgotten():
    plugins = snapshot(executor(answering()))
    old = build_state(compat_config(keys=("k1", "k2")), plugins)
    kept, gone = old.pool.credentials
    for credential in (kept, gone):
        old.pool.failed(credential, "m", classify(ErrorBody(http_status=401)), cause=NO_CAUSE)
    old.pool.health.cursors.move("c", 1)
    new = build_state(compat_config(keys=("k1",), models=("m", "other")), plugins, previous=old)
    assert new.pool.credentials[0].handle == kept.handle
    assert new.pool.book.block(kept.id, "m") is not None
    assert new.pool.book.block(gone.id, "m") is None
    assert new.pool.health.cursors.positions == {"c": 1}


@pytest.mark.parametrize(("setting", "rest_s"), [(0, 60.0), (-1, 0.0), (5, 5.0)])
def test_F7_the_transient_cooldown_setting(setting, rest_s):
    assert build_state(Config(transient_error_cooldown_seconds=setting), snapshot()).policy.transient_s == rest_s


def test_a_plan_is_made_once_per_state():
    state = build_state(compat_config(), snapshot(executor(answering())))
    ask = {"method": EXECUTE, "source": "openai", "wanted": "openai"}
    assert state.plan("m", **ask) is state.plan("m", **ask)


def test_a_routed_name_that_is_too_long_to_be_kept_is_served_by_nobody():
    state = build_state(compat_config(), snapshot(executor(answering())))
    for length, is_known in ((200, True), (300, False)):
        plan = state.plan("x" * length, method=EXECUTE, source="openai", wanted="openai", provider=ACME)
        assert plan.known is is_known
    assert len(state.pool._ready) == 1


def test_lanes_are_ordered_by_priority_then_provider_then_id():
    models = [ModelEntry(name="m")]
    config = Config(
        openai_compatibility=[
            CompatProvider(name=name, base_url="https://a.test", priority=priority, models=models)
            for name, priority in (("z", 5), ("b", 1), ("a", 1))
        ]
    )
    plan = build_state(config, snapshot(executor(answering()))).plan(
        "m", method=EXECUTE, source="openai", wanted="openai"
    )
    assert [lane.credential.label for lane in plan.lanes()] == ["z", "a", "b"]
